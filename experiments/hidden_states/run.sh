#!/usr/bin/env bash
# Hidden states with fewer solutions: the commands of the published run, from the root of the repository.
# Options as of the commits named; see the README beside this file.
set -euo pipefail
mkdir -p runs

# Commit d5ff93c.
for seed in 0 1 2; do
    cospec train --task reasoning_gym:gsm_symbolic --pair bundled:family --dtype bfloat16 \
        --num-rounds 3 --learning-rate 0.0003 --weight-decay 0.1 --kl-weight 0.3 \
        --features hidden --hidden-size 256 --num-layers 2 --hidden-projection 128 \
        --dropout 0.5 --num-speculative-tokens 16 --tune-every 1 --num-solutions 60000 \
        --solutions runs/sol2-family.safetensors --threads 1 --seed "$seed" \
        --out "runs/family-hidden-seed$seed"
done

# Commit 36b26b5, d5ff93c.
for seed in 0 1 2; do
    cospec train --task reasoning_gym:gsm_symbolic --pair bundled:specialist --dtype bfloat16 \
        --num-rounds 3 --learning-rate 0.0003 --weight-decay 0.1 --kl-weight 0.3 \
        --features hidden --hidden-size 256 --num-layers 2 --hidden-projection 128 \
        --dropout 0.5 --num-speculative-tokens 16 --tune-every 1 --num-solutions 90000 \
        --solutions runs/sol2-specialist.safetensors --threads 1 --seed "$seed" \
        --out "runs/specialist-hidden-seed$seed"
done

# eval_family_hidden.json: commit 85d0c2f, 24 min, Intel Xeon, 1 thread.
cospec eval --pair bundled:family --task reasoning_gym:gsm_symbolic --seed 34 --num-problems 3000 \
    -k 16 --batch-size 128 --threads 1 --json runs/eval_family_hidden.json \
    --arbiter runs/family-hidden-seed0 --arbiter runs/family-hidden-seed1 \
    --arbiter runs/family-hidden-seed2 --arbiter runs/family-seed2 \
    --arbiter ensemble:draft_weight=0.4 --arbiter random:rate=0.3

# eval_specialist_hidden.json: commit 85d0c2f, 24 min, Intel Xeon, 1 thread.
cospec eval --pair bundled:specialist --task reasoning_gym:gsm_symbolic --seed 33 \
    --num-problems 3000 -k 16 --batch-size 128 --threads 1 --json runs/eval_specialist_hidden.json \
    --arbiter runs/specialist-hidden-seed0 --arbiter runs/specialist-hidden-seed1 \
    --arbiter runs/specialist-hidden-seed2 --arbiter runs/specialist-k16-seed0 \
    --arbiter ensemble:draft_weight=0.4 --arbiter random:rate=0.3

# speed_family_hidden.json: commit 85d0c2f, 5 min, Intel Xeon, 1 thread.
cospec bench --pair bundled:family --task reasoning_gym:gsm_symbolic --num-problems 40 --seed 21 \
    --arms runs/family-hidden-seed0 runs/family-hidden-seed1 runs/family-hidden-seed2 \
    --num-tune-problems 0 -k 16 --batch-sizes 1 4 16 --repeats 3 --threads 1 \
    --json runs/speed_family_hidden.json

# speed_specialist_hidden.json: commit 85d0c2f, 5 min, Intel Xeon, 1 thread.
cospec bench --pair bundled:specialist --task reasoning_gym:gsm_symbolic --num-problems 40 \
    --seed 21 --arms runs/specialist-hidden-seed0 runs/specialist-hidden-seed1 \
    runs/specialist-hidden-seed2 --num-tune-problems 0 -k 16 --batch-sizes 1 4 16 --repeats 3 \
    --threads 1 --json runs/speed_specialist_hidden.json
