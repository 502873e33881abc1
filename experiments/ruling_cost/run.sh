#!/usr/bin/env bash
# What a ruling costs: the commands of the published run, from the root of the repository.
# Options as of the commits named; see the README beside this file.
set -euo pipefail
mkdir -p runs

# ruling_cost_real.json: commit 350db9d, 5 min, Intel Xeon, 2 threads.
python experiments/ruling_cost/ruling_cost.py --target real/target --draft real/draft -k 4 \
    --num-new 32 --num-trials 5 --threads 2 --json runs/ruling_cost_real.json

# ruling_cost_specialist.json: commit 350db9d, 0 min, Intel Xeon, 1 thread.
python experiments/ruling_cost/ruling_cost.py --pair bundled:specialist -k 6 --num-new 64 \
    --threads 1 --json runs/ruling_cost_specialist.json
