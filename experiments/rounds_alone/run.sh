#!/usr/bin/env bash
# Rounds of RL alone, on scalar features: the commands of the published run, from the root of the repository.
# Options as of the commits named; see the README beside this file.
# family-pooled* and family-hidden-seed2 were trained by commands that were not kept: leave them out.
set -euo pipefail
mkdir -p runs

# Commit 9608825.
for seed in 0 1 2; do
    cospec train --task reasoning_gym:gsm_symbolic --pair bundled:family --dtype float32 \
        --num-rounds 5 --num-speculative-tokens 16 --tune-every 1 --threads 1 --seed "$seed" \
        --out "runs/family-seed$seed"
done

# Commit 93840e3.
for seed in 0 1 2; do
    cospec train --task reasoning_gym:gsm_symbolic --pair bundled:specialist --dtype float32 \
        --num-rounds 5 --num-speculative-tokens 16 --tune-every 1 --threads 1 --seed "$seed" \
        --out "runs/specialist-k16-seed$seed"
done

# Commit ede23ce.
for seed in 0 1 2; do
    cospec train --task reasoning_gym:gsm_symbolic --pair bundled:specialist --dtype bfloat16 \
        --num-rounds 5 --num-speculative-tokens 6 --tune-every 1 --threads 1 --seed "$seed" \
        --out "runs/specialist-seed$seed"
done

# eval_family.json: commit 8628e1b, 36 min, Intel Xeon, 1 thread.
cospec eval --pair bundled:family --task reasoning_gym:gsm_symbolic --num-problems 3000 --seed 18 \
    -k 16 --batch-size 64 --threads 1 --arbiter runs/family-seed0 --arbiter runs/family-seed1 \
    --arbiter runs/family-seed2 --arbiter runs/family-pooled --arbiter runs/family-pooled-linear \
    --arbiter runs/specialist-k16-seed1 --arbiter ensemble:draft_weight=0.4 \
    --arbiter cosd:alpha=0.9,beta=0.5 --arbiter random:rate=0.3 --json runs/eval_family.json

# eval_specialist.json: commit 24b3c7e, 28 min, Intel Xeon, 1 thread.
cospec eval --pair bundled:specialist --task reasoning_gym:gsm_symbolic --num-problems 3000 \
    --seed 16 -k 16 --batch-size 32 --threads 1 --arbiter runs/specialist-k16-seed0 \
    --arbiter runs/specialist-k16-seed1 --arbiter runs/specialist-k16-seed2 \
    --arbiter ensemble:draft_weight=0.4 --arbiter cosd:alpha=0.9,beta=0.5 \
    --arbiter random:rate=0.4 --json runs/eval_specialist.json

# speed_family.json: commit 4414a85, 7 min, AMD EPYC, 2 cores, 1 thread.
cospec bench --pair bundled:family --task reasoning_gym:gsm_symbolic --num-problems 40 --seed 21 \
    --arms runs/family-seed0 runs/family-seed1 runs/family-seed2 ensemble:draft_weight=0.4 \
    --num-tune-problems 0 -k 16 --batch-sizes 1 4 16 --repeats 3 --threads 1 \
    --json runs/speed_family.json

# speed_specialist.json: commit 4414a85, 7 min, AMD EPYC, 2 cores, 1 thread.
cospec bench --pair bundled:specialist --task reasoning_gym:gsm_symbolic --num-problems 40 \
    --seed 21 --arms runs/specialist-k16-seed0 runs/specialist-k16-seed1 runs/specialist-k16-seed2 \
    ensemble:draft_weight=0.4 --num-tune-problems 0 -k 16 --batch-sizes 1 4 16 --repeats 3 \
    --threads 1 --json runs/speed_specialist.json

# eval_specialist_k6.json: commit 8b9d5ce, 48 min, Intel Xeon, 1 thread.
cospec eval --pair bundled:specialist --task reasoning_gym:gsm_symbolic --split test \
    --num-problems 3000 --seed 12 -k 6 --batch-size 32 --threads 1 --arbiter runs/specialist-seed0 \
    --arbiter runs/specialist-seed1 --arbiter runs/specialist-seed2 \
    --arbiter ensemble:draft_weight=0.5 --arbiter random:rate=0.4 \
    --json runs/eval_specialist_k6.json

# audit_specialist_test.json: commit 38107a5, 3 min, Intel Xeon, 1 thread.
cospec audit --pair bundled:specialist --task reasoning_gym:gsm_symbolic --split test \
    --num-problems 1000 --seed 12 -k 6 --batch-size 32 --problems-per-chunk 100 --threads 1 \
    --dataset runs/audit_specialist_test.safetensors --json runs/audit_specialist_test.json

# eval_family_thresholds.json: commit 6901a89, 6 min, Intel Xeon, 1 thread.
cospec eval --pair bundled:family --task reasoning_gym:gsm_symbolic --split tune \
    --num-problems 600 --seed 41 -k 16 --batch-size 128 --threads 1 \
    --json runs/eval_family_thresholds.json --arbiter runs/family-hidden-seed2 \
    --arbiter runs/family-hidden-seed2:threshold=0.3 \
    --arbiter runs/family-hidden-seed2:threshold=0.15
