#!/usr/bin/env bash
# Counts the near-duplicates of the test problems; a minute of one core.
set -euo pipefail
cd "$(dirname "$0")/../.."
python experiments/twins/twins.py --out experiments/twins/result.json.gz
