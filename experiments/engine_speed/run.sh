#!/usr/bin/env bash
# What the engine itself costs: the commands of the published run, from the root of the repository.
# Options as of the commits named; see the README beside this file.
set -euo pipefail
mkdir -p runs

# engine_speed_small.json: package of commit e9b89e1, script of 6acfaa7; 8 min, AMD EPYC with AVX2,
# 1 thread.
python experiments/engine_speed/engine_speed.py small --num-new 48 --threads 1 --trials 100 \
    --json runs/engine_speed_small.json

# engine_speed_real.json: commit 032d2ff, 14 min, AMD EPYC, 2 cores, 2 threads.
python experiments/engine_speed/engine_speed.py real/target real/draft -k 4 --json runs/engine_speed_real.json

# strided_head.json: commit d08f3fd, 1 min, AMD EPYC, 2 cores, 2 threads.
python experiments/engine_speed/strided_head.py
