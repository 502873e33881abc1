#!/usr/bin/env bash
# Everything behind the tables of README.md; each step is skipped where its files exist.
# Needs pip install -e '.[tasks]' (reasoning-gym 0.1.25) and a C++ compiler. One thread a pair,
# about an hour each. HELDOUT is the folder of experiments/heldout_templates/run.sh.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=${1:?usage: run.sh FOLDER PAIR} pair=${2:?usage: run.sh FOLDER PAIR}
export OMP_NUM_THREADS=1
teach() { python experiments/equal_teaching/teach.py "bundled:$pair" "$@"; }
heldout() { python experiments/heldout_templates/heldout.py "bundled:$pair" "$@"; }

# The rate, chosen on tune problems after 2,400 solutions.
for rate in 0.1 0.3 1.0; do
    teach target "$work/$pair-target-rate$rate" --tiers 3 --rate "$rate"
    teach draft "$work/$pair-draft-rate$rate" --tiers 3 --rate "$rate"
done
best() {
    python - "$work/$pair-$1-rate" <<'END'
import json, sys
rates = ("0.1", "0.3", "1.0")
print(max(rates, key=lambda r: json.load(open(f"{sys.argv[1]}{r}/taught.json"))["tune_accuracy"]))
END
}
for model in target draft; do
    teach "$model" "$work/$pair-$model" --tiers 10 --rate "$(best "$model")"
done

# The test problems of experiments/heldout_templates: the taught target, with the draft as it ships
# and with the taught one, under the rule, and under an arbiter that learns the same solutions.
taught=(--target "$work/$pair-target" --work "$work/target")
both=("${taught[@]:0:2}" --draft "$work/$pair-draft" --work "$work/both")
for models in taught both; do
    declare -n some=$models
    heldout test "${some[@]}" --arms lossless draft rule
    heldout read "${some[@]}" --tiers 10
    heldout train "${some[@]}" --tiers 10 --seen
    heldout test "${some[@]}" --arms seen-seed0-n8000
done
