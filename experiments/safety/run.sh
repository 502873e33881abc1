#!/usr/bin/env bash
# Refusals and format under relaxed rules: the commands of the published run, from the root of the repository.
# Options as of the commits named; see the README beside this file.
set -euo pipefail
mkdir -p runs
export PYTHONPATH=. # for the scorer

# safety_real.json: commit 28ba5cc, 24 min, Intel Xeon, 1 thread.
cospec eval --target real/target --draft real/draft \
    --task jsonl:examples/safety/prompts.jsonl,scorer=examples.safety.scorer:score,split=test \
    --arbiter gap:max_gap=1 --arbiter gap:max_gap=2 --arbiter ensemble:draft_weight=0.5 \
    --arbiter always_draft -k 4 --max-new-tokens 96 --batch-size 60 --threads 1 \
    --exact-prefix-tokens 0 --json runs/safety_real.json

# safety_real_prefix16.json: commit 28ba5cc, 40 min, Intel Xeon, 1 thread.
cospec eval --target real/target --draft real/draft \
    --task jsonl:examples/safety/prompts.jsonl,scorer=examples.safety.scorer:score,split=test \
    --arbiter gap:max_gap=1 --arbiter gap:max_gap=2 --arbiter ensemble:draft_weight=0.5 \
    --arbiter always_draft -k 4 --max-new-tokens 96 --batch-size 60 --threads 1 \
    --exact-prefix-tokens 16 --json runs/safety_real_prefix16.json
