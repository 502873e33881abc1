#!/usr/bin/env bash
# Drafts that stop where they are unsure: the commands of the published run, from the root of the repository.
# Options as of the commits named; see the README beside this file.
set -euo pipefail
mkdir -p runs

# speed_real_gsm8k.json: commit 6bdfb4a, 22 min, Intel Xeon, 2 threads.
cospec bench --target real/target --draft real/draft --task gsm8k --data-dir data --num-problems 8 \
    --seed 73 --max-new-tokens 512 --batch-sizes 1 --repeats 1 --num-tune-problems 0 --threads 2 \
    -k 4 --arms lossless --json runs/speed_real_gsm8k.json

# speed_real_gsm8k_early.json: commit 6bdfb4a, 34 min, Intel Xeon, 2 threads.
cospec bench --target real/target --draft real/draft --task gsm8k --data-dir data --num-problems 8 \
    --seed 73 --max-new-tokens 512 --batch-sizes 1 --repeats 1 --num-tune-problems 0 --threads 2 \
    -k 10 --draft-confidence-threshold 0.8 --arms runs/real-gsm8k:threshold=0.7 gap:max_gap=1 \
    --json runs/speed_real_gsm8k_early.json

# early_family_0.json: commit 6bdfb4a, 1 min, Intel Xeon, 1 thread.
cospec bench --pair bundled:family --task reasoning_gym:gsm_symbolic --num-problems 30 --seed 74 \
    --num-tune-problems 0 --batch-sizes 1 16 --repeats 2 --threads 1 -k 16 \
    --draft-confidence-threshold 0 --arms bundled --json runs/early_family_0.json

# early_family_0.5.json: commit 6bdfb4a, 1 min, Intel Xeon, 1 thread.
cospec bench --pair bundled:family --task reasoning_gym:gsm_symbolic --num-problems 30 --seed 74 \
    --num-tune-problems 0 --batch-sizes 1 16 --repeats 2 --threads 1 -k 16 \
    --draft-confidence-threshold 0.5 --arms bundled --json runs/early_family_0.5.json

# early_family_0.8.json: commit 6bdfb4a, 1 min, Intel Xeon, 1 thread.
cospec bench --pair bundled:family --task reasoning_gym:gsm_symbolic --num-problems 30 --seed 74 \
    --num-tune-problems 0 --batch-sizes 1 16 --repeats 2 --threads 1 -k 16 \
    --draft-confidence-threshold 0.8 --arms bundled --json runs/early_family_0.8.json

# early_specialist_0.json: commit 6bdfb4a, 1 min, Intel Xeon, 1 thread.
cospec bench --pair bundled:specialist --task reasoning_gym:gsm_symbolic --num-problems 30 \
    --seed 74 --num-tune-problems 0 --batch-sizes 1 16 --repeats 2 --threads 1 -k 16 \
    --draft-confidence-threshold 0 --arms bundled --json runs/early_specialist_0.json

# early_specialist_0.5.json: commit 6bdfb4a, 1 min, Intel Xeon, 1 thread.
cospec bench --pair bundled:specialist --task reasoning_gym:gsm_symbolic --num-problems 30 \
    --seed 74 --num-tune-problems 0 --batch-sizes 1 16 --repeats 2 --threads 1 -k 16 \
    --draft-confidence-threshold 0.5 --arms bundled --json runs/early_specialist_0.5.json

# early_specialist_0.8.json: commit 6bdfb4a, 1 min, Intel Xeon, 1 thread.
cospec bench --pair bundled:specialist --task reasoning_gym:gsm_symbolic --num-problems 30 \
    --seed 74 --num-tune-problems 0 --batch-sizes 1 16 --repeats 2 --threads 1 -k 16 \
    --draft-confidence-threshold 0.8 --arms bundled --json runs/early_specialist_0.8.json
