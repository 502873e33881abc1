#!/usr/bin/env bash
# Speed of the real pair by every way to decode. Usage: run.sh TARGET DRAFT DATA [TARGET_GGUF]
# Nothing may run beside it.
set -euo pipefail
cd "$(dirname "$0")/../.."
mkdir -p runs
target=$1 draft=$2 data=$3 gguf=${4:-}
python experiments/speed_real/speed.py --target "$target" --draft "$draft" --data-dir "$data" \
    ${gguf:+--target-gguf "$gguf"} --json runs/speed_real.json
