#!/usr/bin/env bash
# Everything behind the table of README.md; each step is skipped where its files exist.
# Needs pip install -e '.[tasks]' (reasoning-gym 0.1.25) and a C++ compiler. One thread, two hours.
# Usage: run.sh FOLDER
set -euo pipefail
cd "$(dirname "$0")/../.."
work=${1:?usage: run.sh FOLDER}
export OMP_NUM_THREADS=1

teach() {
    python experiments/equal_teaching/teach.py bundled:family "$1" "$work/$1-$2-$3" --tiers 10 \
        --rate "$2" --epochs "$3"
}
# Tune problems choose the target's rate and passes; the draft has the same.
teach target 0.03 2
teach target 0.1 1
teach target 0.1 2
teach target 0.4 1
teach draft 0.1 2
target=$(python experiments/equal_teaching/summarise.py --best target "$work")
draft=$(python experiments/equal_teaching/summarise.py --best draft "$work")

# The test problems of experiments/heldout_templates, with one model taught and with both: under a
# rule, and under an arbiter that learns the same solutions.
heldout=(python experiments/heldout_templates/heldout.py bundled:family)
decode() {
    local options=(--work "$work/$1" --tiers 10 "${@:2}")
    "${heldout[@]}" test "${options[@]}" --arms lossless draft rule
    "${heldout[@]}" read "${options[@]}"
    "${heldout[@]}" train "${options[@]}" --seen
    "${heldout[@]}" test "${options[@]}" --arms seen-seed0-n8000
}
decode taught_target --target "$target"
decode taught_draft --draft "$draft"
decode taught_pair --target "$target" --draft "$draft"

# The target with as many solutions as the shipped arbiter had (two hours more), and of its rule
# the setting that 300 tune problems chose.
more=$work/more-0.1-1
python experiments/equal_teaching/teach.py bundled:family target "$more" --tiers 125 --epochs 1
tune=()
for alpha in 0.3 0.2 0.1 0 -0.1 -0.2 -0.3; do tune+=(--arbiter "cascade_diff:alpha=$alpha"); done
[[ -e $work/tune_rule.json ]] || cospec eval --target "$more" --draft src/cospec/bundled/family --dtype float32 -k 16 --threads 1 \
    --task reasoning_gym:gsm_symbolic --split tune --num-problems 300 --batch-size 100 \
    "${tune[@]}" --json "$work/tune_rule.json"
decode taught_more --target "$more" --alpha -0.3  # the best of tune_rule.json
"${heldout[@]}" test --work "$work/taught_more" --tiers 10 --target "$more" \
    --arms shipped --shipped src/cospec/bundled/arbiters/family-scalar
python experiments/equal_teaching/summarise.py "$work"

# The draft with as many solutions (twenty minutes), alone and with either target. Of each pair's
# rule the setting that 300 tune problems chose; fewer target forwards break ties.
more_draft=$work/more-draft
python experiments/equal_teaching/teach.py bundled:family draft "$more_draft" --tiers 125 --epochs 1
tuned() {
    [[ -e $work/tune_rule_$1.json ]] || cospec eval "${@:2}" --dtype float32 -k 16 --threads 1 \
        --task reasoning_gym:gsm_symbolic --split tune --num-problems 300 --batch-size 100 \
        "${tune[@]}" --json "$work/tune_rule_$1.json"
}
tuned draft --target src/cospec/bundled/target --draft "$more_draft"
tuned pair --target "$more" --draft "$more_draft"
decode taught_draft_more --draft "$more_draft" --alpha 0.1  # the best of tune_rule_draft.json
decode taught_pair_more --target "$more" --draft "$more_draft" --alpha 0
python experiments/equal_teaching/summarise.py "$work"

# What teaching costs on other tasks that the models know.
for task in chain_sum products gcd simple_geometry; do
    common=(--dtype float32 -k 16 --threads 1 --task "reasoning_gym:$task" --split test --num-problems 300
        --seed 20 --batch-size 100)
    cospec eval --pair bundled:family "${common[@]}" --arbiter bundled --json "$work/other_${task}_family.json"
    cospec eval --target "$more" --draft src/cospec/bundled/family "${common[@]}" \
        --json "$work/other_${task}_taught.json"
    cospec eval --target src/cospec/bundled/target --draft "$more_draft" "${common[@]}" \
        --arbiter cascade_diff:alpha=0.1 --json "$work/other_${task}_draft.json" \
        --arbiter "$work/taught_draft_more/family/seen-seed0-n8000"
done
python experiments/equal_teaching/other_tasks.py "$work"
