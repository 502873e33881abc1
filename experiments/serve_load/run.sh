#!/usr/bin/env bash
# Load on a server of the bundled pair; needs vLLM. Usage: run.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
mkdir -p runs
export OMP_NUM_THREADS=1 VLLM_CPU_KVCACHE_SPACE=1
PYTHONPATH=. python experiments/serve_load/load.py --json runs/load.json
