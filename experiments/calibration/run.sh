#!/usr/bin/env bash
# Operating points: the commands of the published run, from the root of the repository.
# Options as of the commits named; see the README beside this file.
# family-seed0 is of rounds_alone/run.sh.
set -euo pipefail
mkdir -p runs

# calibrate_specialist.json: commit dff2a3f, 16 min, AMD EPYC, 2 cores, 1 thread.
cospec calibrate --arbiter bundled-scalar --out runs/calibrated \
    --pair bundled:specialist --dtype float32 \
    --task reasoning_gym:gsm_symbolic -k 16 --batch-size 64 --threads 1 \
    --json runs/calibrate_specialist.json --aim guarantee --epsilon 0.02 --num-problems 1500 \
    --seed 7 --thresholds 0.5 0.6 0.7 0.8 0.9

# calibrate_family.json: commit 4dfdd45, 20 min, AMD EPYC, 2 cores, 1 thread.
cospec calibrate --arbiter runs/family-seed0 --pair bundled:family --dtype float32 \
    --task reasoning_gym:gsm_symbolic -k 16 --batch-size 64 --threads 1 \
    --json runs/calibrate_family.json --aim accuracy --num-problems 1500 --seed 7 --thresholds 0.3 \
    0.4 0.5 0.6 0.7 0.8
