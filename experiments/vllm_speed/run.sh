#!/usr/bin/env bash
# Inside vLLM: the commands of the published run, from the root of the repository.
# Options as of the commits named; see the README beside this file.
set -euo pipefail
mkdir -p runs

# vllm_speed_specialist.json: commit 55c16c0, 5 min, AMD EPYC, 2 cores, 1 thread.
python experiments/vllm_speed/vllm_speed.py --pair bundled:specialist --arbiter bundled \
    -k 16 --num-problems 200 --json runs/vllm_speed_specialist.json
