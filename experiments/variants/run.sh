#!/usr/bin/env bash
# Controls, ablations and the price of time: the commands of the published run, from the root of the repository.
# Options as of the commits named; see the README beside this file.
# runs/offline16/* are made by offline_policies.py of branches that were not kept: leave them out.
# specialist-k16-seed* are of rounds_alone/run.sh.
set -euo pipefail
mkdir -p runs

# Commit 8628e1b.
cospec train --task reasoning_gym:gsm_symbolic --pair bundled:specialist --dtype float32 \
    --method gold --num-rounds 5 --num-speculative-tokens 16 --tune-every 1 --threads 1 \
    --out runs/specialist-k16-gold

# Commit 8628e1b.
cospec train --task reasoning_gym:gsm_symbolic --pair bundled:specialist --dtype float32 \
    --method reinforce --num-rounds 5 --num-speculative-tokens 16 --tune-every 1 --threads 1 \
    --out runs/specialist-k16-reinforce

# Commit 4dfdd45.
cospec train --task reasoning_gym:gsm_symbolic --pair bundled:specialist --dtype float32 \
    --method autojudge --num-rounds 5 --num-speculative-tokens 16 --tune-every 1 --threads 1 \
    --out runs/specialist-k16-autojudge

# Commit 4dfdd45.
cospec train --task reasoning_gym:gsm_symbolic --pair bundled:specialist --dtype float32 \
    --num-rounds 5 --prompts-per-round 160 --group-size 4 --group-weight 1.0 \
    --num-speculative-tokens 16 --tune-every 1 --threads 1 --out runs/specialist-k16-group

# Commit 4dfdd45.
for seed in 0 1; do
    cospec train --task reasoning_gym:gsm_symbolic --pair bundled:specialist --dtype float32 \
        --num-rounds 5 --features hidden --num-speculative-tokens 16 --tune-every 1 \
        --threads 1 --seed "$seed" --out "runs/specialist-k16-hidden$seed"
done

# Commit ede23ce.
cospec train --task reasoning_gym:gsm_symbolic --pair bundled:specialist --dtype bfloat16 \
    --method gold --num-rounds 5 --num-speculative-tokens 6 --tune-every 1 --threads 1 \
    --out runs/specialist-gold

# Commit ede23ce.
cospec train --task reasoning_gym:gsm_symbolic --pair bundled:specialist --dtype bfloat16 \
    --method reinforce --num-rounds 5 --num-speculative-tokens 6 --tune-every 1 --threads 1 \
    --out runs/specialist-reinforce

# eval_specialist_variants.json: commit 8628e1b, 34 min, Intel Xeon, 1 thread.
cospec eval --pair bundled:specialist --task reasoning_gym:gsm_symbolic --num-problems 1000 \
    --seed 15 -k 16 --batch-size 128 --threads 1 --arbiter runs/specialist-k16-seed0 \
    --arbiter runs/specialist-k16-seed1 --arbiter runs/specialist-k16-seed2 \
    --arbiter runs/specialist-k16-gold --arbiter runs/specialist-k16-reinforce --arbiter runs/offline16/all \
    --arbiter runs/offline16/linear --arbiter runs/offline16/no-lookahead \
    --arbiter runs/offline16/confidence-only --arbiter runs/offline16/branches-1000 \
    --arbiter runs/offline16/branches-4000 --arbiter runs/offline16/lambda-1 \
    --arbiter cosd:alpha=0.9,beta=0.5 --arbiter cascade_chow:alpha=0.2 \
    --arbiter ensemble:draft_weight=0.4 --arbiter gap:max_gap=4 --arbiter random:rate=0.4 \
    --arbiter runs/offline16/all:threshold=0.1 --arbiter runs/offline16/all:threshold=0.3 \
    --arbiter runs/offline16/all:threshold=0.8 --json runs/eval_specialist_variants.json

# eval_specialist_more.json.gz: commit 42271c8, 9 min, AMD EPYC, 2 cores, 1 thread.
cospec eval --pair bundled:specialist --task reasoning_gym:gsm_symbolic --num-problems 1000 \
    --seed 15 -k 16 --batch-size 128 --threads 1 --arbiter runs/specialist-k16-seed0 \
    --arbiter runs/specialist-k16-seed1 --arbiter runs/specialist-k16-hidden0 \
    --arbiter runs/specialist-k16-hidden1 --arbiter runs/specialist-k16-autojudge \
    --json runs/eval_specialist_more.json

# eval_specialist_group.json.gz: commit 42271c8, 5 min, AMD EPYC, 2 cores, 1 thread.
cospec eval --pair bundled:specialist --task reasoning_gym:gsm_symbolic --num-problems 1000 \
    --seed 15 -k 16 --batch-size 128 --threads 1 --arbiter runs/specialist-k16-group \
    --json runs/eval_specialist_group.json
