#!/usr/bin/env bash
# The controls by search; two minutes on one core. DATA holds spider/. Needs pip install -e '.[tasks]' (reasoning-gym
# 0.1.25). Run it from the root of the repository.
set -euo pipefail
mkdir -p runs
python experiments/retrieval/retrieval.py --json runs/retrieval.json
python experiments/retrieval/others.py "${DATA:-data}" --json runs/others.json
