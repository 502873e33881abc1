#!/usr/bin/env bash
# Speed of the real pair by every way to decode. Usage: run.sh TARGET DRAFT DATA [TEXTS [TARGET_GGUF]]
# Nothing may run beside it. TEXTS is the output folder of experiments/text_to_sql/collect.py.
set -euo pipefail
cd "$(dirname "$0")/../.."
mkdir -p runs
target=$1 draft=$2 data=$3 texts=${4:-} gguf=${5:-}
python experiments/speed_real/speed.py --target "$target" --draft "$draft" --data-dir "$data" \
    ${gguf:+--target-gguf "$gguf"} --json runs/speed_real.json
if [ -n "$texts" ]; then
    python experiments/speed_real/draft_cost.py "$draft" "$data" "$texts" --json runs/draft_cost.json
fi
