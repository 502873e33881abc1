#!/usr/bin/env bash
# GSM8K on the real pair: the commands of the published run, from the root of the repository.
# Options as of the commits named; see the README beside this file.
# Needs runs/audit_real_gsm8k.safetensors of audits/run.sh. real-gsm8k-mlp was trained by a command
# that was not kept (`git show f2c4389:dev/LOG.md` has its settings): leave it out. family-seed2 is of rounds_alone.
set -euo pipefail
mkdir -p runs

# Commit 272cd61.
cospec train --task gsm8k --data-dir data --num-problems 180 --target real/target \
    --draft real/draft --num-rounds 1 --prompts-per-round 180 --branches-per-rollout 3.0 \
    --cost-weight 0.2 --num-epochs 300 --entropy-bonus 0.02 --kind linear --max-new-tokens 512 \
    --tune-every 1 --num-tune 16 --warm-start runs/audit_real_gsm8k.safetensors --threads 1 \
    --seed 1 --out runs/real-gsm8k

# eval_real_gsm8k_660.json: commit 19b7712, 70 min, AMD EPYC, 2 cores, 2 threads.
cospec eval --target real/target --draft real/draft --task gsm8k --data-dir data \
    --num-problems 660 --seed 72 --max-new-tokens 512 -k 4 --batch-size 75 --threads 2 \
    --arbiter runs/real-gsm8k:threshold=0.7 --json runs/eval_real_gsm8k_660.json

# eval_real_gsm8k.json.gz: commit ede23ce, 56 min, Intel Xeon, 1 thread.
cospec eval --target real/target --draft real/draft --task gsm8k --data-dir data --split test \
    --num-problems 150 --seed 1 --max-new-tokens 512 -k 4 --batch-size 75 --threads 1 \
    --arbiter gap:max_gap=1 --json runs/eval_real_gsm8k.json

# eval_real_gsm8k_mlp.json.gz: commit 4dfdd45, 99 min, AMD EPYC, 2 cores, 1 thread.
cospec eval --target real/target --draft real/draft --task gsm8k --data-dir data \
    --num-problems 150 --seed 2 --max-new-tokens 512 -k 4 --batch-size 75 --threads 1 \
    --arbiter runs/real-gsm8k-mlp --json runs/eval_real_gsm8k_mlp.json

# bench_real_gsm8k.json: commit e451275, 118 min, AMD EPYC, 2 cores, 1 thread.
cospec bench --target real/target --draft real/draft --task gsm8k --data-dir data \
    --num-problems 96 --seed 3 --max-new-tokens 512 -k 4 --batch-sizes 48 --repeats 1 \
    --num-tune-problems 0 --threads 1 --arms typical cosd ensemble runs/family-seed2 \
    --json runs/bench_real_gsm8k.json
