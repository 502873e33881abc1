#!/usr/bin/env bash
# The demo: the commands of the published run, from the root of the repository.
# Options as of the commits named; see the README beside this file.
set -euo pipefail
mkdir -p runs

# demo.json: commit 39d5d06, 1 min 30 s, AMD EPYC, 2 cores, 2 threads.
cospec demo --num-problems 200 --json runs/demo.json
