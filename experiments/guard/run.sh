#!/usr/bin/env bash
# The guard against foreign tasks: the commands of the published run, from the root of the repository.
# Options as of the commits named; see the README beside this file.
set -euo pipefail
mkdir -p runs

# Commit a88a9ca.
for seed in 0 1; do
    cospec train \
        --task mix:reasoning_gym:gsm_symbolic@40+reasoning_gym:chain_sum@1+reasoning_gym:simple_geometry@1 \
        --pair bundled:specialist --dtype float32 --num-rounds 4 --branches-per-rollout 2.0 \
        --init-logit -4.0 --num-speculative-tokens 16 --tune-every 1 --threads 1 \
        --seed "$seed" --out "runs/specialist-mix-seed$seed"
done

# guard_tasks.json.gz: commit dff2a3f, 12 min, AMD EPYC, 2 cores, 1 thread.
python experiments/transfer/transfer.py --arbiter bundled-scalar:max_mismatch_rate=inf bundled-scalar \
    runs/specialist-mix-seed0:max_mismatch_rate=inf \
    runs/specialist-mix-seed1:max_mismatch_rate=inf --pair bundled:specialist --task chain_sum \
    simple_geometry products gcd basic_arithmetic -k 16 --num-problems 120 --seed 28 \
    --batch-size 120 --json runs/guard_tasks.json

# guard_specialist.json: commit dff2a3f, 7 min, AMD EPYC, 2 cores, 1 thread.
cospec eval --pair bundled:specialist --task reasoning_gym:gsm_symbolic --num-problems 1000 \
    --seed 28 --batch-size 128 --threads 1 --arbiter bundled-scalar:max_mismatch_rate=inf \
    --arbiter bundled-scalar --json runs/guard_specialist.json

# guard_family.json: commit dff2a3f, 6 min, AMD EPYC, 2 cores, 1 thread.
cospec eval --pair bundled:family --task reasoning_gym:gsm_symbolic --num-problems 1000 --seed 28 \
    --batch-size 128 --threads 1 --arbiter bundled-scalar:max_mismatch_rate=inf --arbiter bundled-scalar \
    --json runs/guard_family.json

# eval_specialist_mix.json: commit 2174d44, 8 min, AMD EPYC, 2 cores, 1 thread.
cospec eval --pair bundled:specialist --task reasoning_gym:gsm_symbolic --num-problems 1000 \
    --seed 27 -k 16 --batch-size 128 --threads 1 \
    --arbiter runs/specialist-k16-seed1:max_mismatch_rate=inf --arbiter runs/specialist-k16-seed1 \
    --arbiter runs/specialist-mix-seed0 --arbiter runs/specialist-mix-seed1 \
    --json runs/eval_specialist_mix.json
