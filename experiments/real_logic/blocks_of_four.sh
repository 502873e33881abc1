#!/usr/bin/env bash
# Logic on the real pair in blocks of four: the commands of the older run, from the root of the repository.
# Options as of the commits named; see the README beside this file.
set -euo pipefail
mkdir -p runs

# Commit d2d0aca.
cospec train --task reasoning_gym:propositional_logic,reasoning=off --target real/target \
    --draft real/draft --num-rounds 2 --prompts-per-round 220 --num-tune 100 --threads 1 \
    --out runs/real-logic

# Commit d2d0aca.
cospec train --task reasoning_gym:propositional_logic,reasoning=off --target real/target \
    --draft real/draft --num-rounds 2 --prompts-per-round 220 --features hidden --dropout 0.3 \
    --num-tune 100 --threads 1 --out runs/real-logic-hidden

# eval_real_logic.json: commit d2d0aca, 41 min, AMD EPYC, 2 cores, 1 thread.
cospec eval --target real/target --draft real/draft \
    --task reasoning_gym:propositional_logic,reasoning=off --num-problems 300 --seed 71 -k 4 \
    --batch-size 64 --threads 1 --arbiter runs/real-logic --arbiter runs/real-logic-hidden \
    --arbiter always_draft --json runs/eval_real_logic.json

# first_difference_real_logic.json.
python experiments/real_logic/first_difference.py runs/eval_real_logic.json \
    real/target/tokenizer.json draft always_draft runs/first_difference_real_logic.json
