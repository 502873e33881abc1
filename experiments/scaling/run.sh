#!/usr/bin/env bash
# Measures on the bundled pair, then fills the table of docs/scaling.md.
set -euo pipefail
cd "$(dirname "$0")/../.."
OMP_NUM_THREADS=1 python experiments/scaling/scaling.py measure
# By the clock: nothing may run beside it; 5 minutes, pip install -e '.[ray]'.
OMP_NUM_THREADS=1 python experiments/scaling/scaling.py replicas
python experiments/scaling/scaling.py plan
