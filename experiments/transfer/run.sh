#!/usr/bin/env bash
# Other tasks and the other pair: the commands of the published run, from the root of the repository.
# Options as of the commits named; see the README beside this file.
# Needs the arbiters of rounds_alone/run.sh.
set -euo pipefail
mkdir -p runs

# transfer.json: commit 4dfdd45, 45 min, AMD EPYC, 2 cores, 1 thread.
python experiments/transfer/transfer.py --arbiter runs/family-seed0 runs/family-seed1 \
    runs/family-seed2 runs/specialist-k16-seed0 runs/specialist-k16-seed1 \
    runs/specialist-k16-seed2 ensemble:draft_weight=0.4 cosd:alpha=0.9,beta=0.5 -k 16 \
    --num-problems 300 --json runs/transfer.json

# five_tasks.json: commit 42271c8, 26 min, AMD EPYC, 2 cores, 1 thread.
python experiments/transfer/transfer.py --pair bundled:family --arbiter runs/family-seed0 \
    runs/family-seed1 runs/family-seed2 ensemble:draft_weight=0.4 cosd:alpha=0.9,beta=0.5 -k 16 \
    --num-problems 600 --seed 19 --json runs/five_tasks.json
