#!/usr/bin/env bash
# Everything behind the table of README.md; each step is skipped where its files exist.
# Needs pip install -e '.[tasks]' (reasoning-gym 0.1.25) and a C++ compiler. One thread, two hours.
# Usage: run.sh FOLDER
set -euo pipefail
cd "$(dirname "$0")/../.."
work=${1:?usage: run.sh FOLDER}
export OMP_NUM_THREADS=1

# Rates and passes of each model; tune problems choose among them.
for model in target draft; do
    for setting in "0.03 2" "0.1 1" "0.1 2" "0.4 1"; do
        read -r rate epochs <<<"$setting"
        python experiments/equal_teaching/teach.py bundled:family $model \
            "$work/$model-$rate-$epochs" --tiers 10 --rate "$rate" --epochs "$epochs"
    done
done
target=$(python experiments/equal_teaching/summarise.py --best target "$work")
draft=$(python experiments/equal_teaching/summarise.py --best draft "$work")

# The test problems of experiments/heldout_templates, with one model taught or both: under a rule,
# and under an arbiter that learns the same solutions.
decode() {
    local heldout=(python experiments/heldout_templates/heldout.py bundled:family)
    local options=(--work "$work/$1" --tiers 10 "${@:2}")
    "${heldout[@]}" test "${options[@]}" --arms lossless draft rule
    "${heldout[@]}" read "${options[@]}"
    "${heldout[@]}" train "${options[@]}" --seen
    "${heldout[@]}" test "${options[@]}" --arms seen-seed0-n8000
}
decode taught_target --target "$target"
decode taught_draft --draft "$draft"
decode taught_pair --target "$target" --draft "$draft"

# Six rules on the taught pair; 300 tune problems choose the rule and its setting.
tuning=$work/tuning.json
[ -f "$tuning" ] || cospec bench --target "$target" --draft "$draft" --dtype float32 \
    --task reasoning_gym:gsm_symbolic --num-problems 16 --seed 96 --tune-knobs \
    --num-tune-problems 300 -k 16 --batch-size 100 --repeats 1 --threads 1 --json "$tuning" \
    --arms cascade_diff chow_average agreement gap cosd ensemble
rule=$(python experiments/equal_teaching/summarise.py --rule "$work")
python experiments/heldout_templates/heldout.py bundled:family test --work "$work/taught_pair" \
    --target "$target" --draft "$draft" --arms spec-tuned --spec "$rule"
python experiments/equal_teaching/summarise.py "$work"
