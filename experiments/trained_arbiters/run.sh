#!/usr/bin/env bash
# The bundled arbiters with hidden states: the commands of the published run, from the root of the repository.
# Options as of the commits named; see the README beside this file.
# *-before-seed* and *-after-seed* are these arbiters before and after their rounds, taken from the
# runs' states; *-hidden-autojudge are of all_rules/run.sh.
set -euo pipefail
mkdir -p runs

# Commit 0517ae6.
for seed in 0 1 2; do
    cospec train --task reasoning_gym:gsm_symbolic --pair bundled:family --dtype bfloat16 \
        --num-rounds 4 --cost-weight 0.3 --weight-decay 0.1 --entropy-bonus 0.0 \
        --kl-weight 0.03 --features hidden --hidden-size 256 --num-layers 2 \
        --hidden-projection 128 --dropout 0.5 --correction --num-speculative-tokens 16 \
        --tune-every 4 --num-tune 1500 --num-solutions 100000 \
        --solutions runs/sol3-family.safetensors --threads 1 --seed "$seed" \
        --out "runs/family-corrected-seed$seed"
done

# Commit 0517ae6.
for seed in 0 1 2; do
    cospec train --task reasoning_gym:gsm_symbolic --pair bundled:specialist --dtype bfloat16 \
        --num-rounds 4 --cost-weight 0.3 --weight-decay 0.1 --entropy-bonus 0.0 \
        --kl-weight 0.03 --features hidden --hidden-size 256 --num-layers 2 \
        --hidden-projection 128 --dropout 0.5 --correction --num-speculative-tokens 16 \
        --tune-every 4 --num-tune 1500 --num-solutions 130000 \
        --solutions runs/sol3-specialist.safetensors --threads 1 --seed "$seed" \
        --out "runs/specialist-corrected-seed$seed"
done

# eval_family_batch16.json: commit f79e12a, 32 min, AMD EPYC, 2 cores, 1 thread.
cospec eval --pair bundled:family --task reasoning_gym:gsm_symbolic --num-problems 3000 --seed 63 \
    -k 16 --batch-size 16 --threads 1 --json runs/eval_family_batch16.json \
    --arbiter runs/family-corrected-seed0 --arbiter runs/family-corrected-seed1 \
    --arbiter runs/family-corrected-seed2 --arbiter cascade_diff:alpha=-0.2

# eval_specialist_batch16.json: commit f79e12a, 34 min, AMD EPYC, 2 cores, 1 thread.
cospec eval --pair bundled:specialist --task reasoning_gym:gsm_symbolic --num-problems 3000 \
    --seed 64 -k 16 --batch-size 16 --threads 1 --json runs/eval_specialist_batch16.json \
    --arbiter runs/specialist-corrected-seed0 --arbiter runs/specialist-corrected-seed1 \
    --arbiter runs/specialist-corrected-seed2 --arbiter cascade_diff:alpha=0.1

# eval_family_corrected.json: commit f81a469, 30 min, Intel Xeon, 1 thread.
cospec eval --pair bundled:family --task reasoning_gym:gsm_symbolic --seed 43 --num-problems 3000 \
    -k 16 --batch-size 128 --threads 1 --json runs/eval_family_corrected.json \
    --arbiter runs/family-before-seed0 --arbiter runs/family-after-seed0 \
    --arbiter runs/family-before-seed1 --arbiter runs/family-after-seed1 \
    --arbiter runs/family-before-seed2 --arbiter runs/family-after-seed2 \
    --arbiter runs/family-hidden-autojudge --arbiter ensemble:draft_weight=0.4

# eval_specialist_corrected.json: commit 1292158, 30 min, Intel Xeon, 1 thread.
cospec eval --pair bundled:specialist --task reasoning_gym:gsm_symbolic --seed 42 \
    --num-problems 3000 -k 16 --batch-size 128 --threads 1 \
    --json runs/eval_specialist_corrected.json --arbiter runs/specialist-before-seed0 \
    --arbiter runs/specialist-after-seed0 --arbiter runs/specialist-before-seed1 \
    --arbiter runs/specialist-after-seed1 --arbiter runs/specialist-before-seed2 \
    --arbiter runs/specialist-after-seed2 --arbiter runs/specialist-hidden-autojudge \
    --arbiter ensemble:draft_weight=0.4

# speed_family_corrected.json: commit 55d1d09, 8 min, Intel Xeon, 1 thread.
cospec bench --pair bundled:family --task reasoning_gym:gsm_symbolic --num-problems 60 --seed 55 \
    --arms runs/family-corrected-seed0 runs/family-corrected-seed1 runs/family-corrected-seed2 \
    --num-tune-problems 0 -k 16 --batch-sizes 1 4 16 --repeats 3 --threads 1 \
    --json runs/speed_family_corrected.json

# speed_specialist_corrected.json: commit 55d1d09, 8 min, Intel Xeon, 1 thread.
cospec bench --pair bundled:specialist --task reasoning_gym:gsm_symbolic --num-problems 60 \
    --seed 55 --arms runs/specialist-corrected-seed0 runs/specialist-corrected-seed1 \
    runs/specialist-corrected-seed2 --num-tune-problems 0 -k 16 --batch-sizes 1 4 16 --repeats 3 \
    --threads 1 --json runs/speed_specialist_corrected.json

# margins_*.json: AMD EPYC, 1 thread each, both at once, 24 min.
for pair in family specialist; do
    cospec bench --pair "bundled:$pair" --task reasoning_gym:gsm_symbolic --num-problems 240 \
        --seed 101 --arms bundled lossless --num-tune-problems 0 -k 16 --batch-sizes 1 16 \
        --repeats 3 --threads 1 --json "runs/margins_$pair.json" &
done
wait
