#!/usr/bin/env bash
# What an arbiter could win: the commands of the published run, from the root of the repository.
# Options as of the commits named; see the README beside this file.
set -euo pipefail
mkdir -p runs

# audit_family.json: commit eca23fe, 1 min, Intel Xeon, 1 thread.
cospec audit --pair bundled:family --task reasoning_gym:gsm_symbolic --num-problems 192 --seed 1 \
    -k 4 --batch-size 32 --problems-per-chunk 32 --threads 1 --json runs/audit_family.json

# audit_specialist.json: commit abddf4f, 1 min, Intel Xeon, 1 thread.
cospec audit --pair bundled:specialist --task reasoning_gym:gsm_symbolic --num-problems 192 \
    --seed 1 -k 4 --batch-size 32 --problems-per-chunk 32 --threads 1 \
    --json runs/audit_specialist.json

# audit_real_gsm8k.json: commit 1155fb7, 87 min, Intel Xeon, 1 thread.
cospec audit --target real/target --draft real/draft --task gsm8k --data-dir data \
    --num-problems 150 --branches-per-problem 4 --no-oracle --max-new-tokens 512 -k 4 \
    --batch-size 64 --problems-per-chunk 75 --threads 1 --dataset runs/audit_real_gsm8k.safetensors \
    --json runs/audit_real_gsm8k.json
