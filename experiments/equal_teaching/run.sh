#!/usr/bin/env bash
# Everything behind the table of README.md; each step is skipped where its files exist.
# Needs pip install -e '.[tasks]' (reasoning-gym 0.1.25) and a C++ compiler. One thread, an hour.
# Usage: run.sh FOLDER
set -euo pipefail
cd "$(dirname "$0")/../.."
work=${1:?usage: run.sh FOLDER}
export OMP_NUM_THREADS=1

# Rates and passes; tune problems choose among them.
for setting in "0.03 2" "0.1 1" "0.1 2" "0.4 1"; do
    read -r rate epochs <<<"$setting"
    python experiments/equal_teaching/teach.py bundled:family target \
        "$work/target-$rate-$epochs" --tiers 10 --rate "$rate" --epochs "$epochs"
done
best=$(python experiments/equal_teaching/summarise.py --best "$work")

# The test problems of experiments/heldout_templates: the taught target, and with the draft as it
# ships under a rule and under an arbiter that learns the same solutions.
heldout() {
    python experiments/heldout_templates/heldout.py bundled:family "$@" --work "$work/heldout" \
        --target "$best"
}
heldout test --arms lossless rule
heldout read --tiers 10
heldout train --tiers 10 --seen
heldout test --arms seen-seed0-n8000
python experiments/equal_teaching/summarise.py "$work"
