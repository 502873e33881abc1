#!/usr/bin/env bash
# Everything behind the table of README.md; each step is skipped where its files exist.
# Needs pip install -e '.[tasks]' (reasoning-gym 0.1.25). One thread, an hour and a half.
# Usage: run.sh FOLDER TEACHING, where TEACHING is the folder of equal_teaching/run.sh.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=${1:?usage: run.sh FOLDER TEACHING} teaching=${2:?usage: run.sh FOLDER TEACHING}
export OMP_NUM_THREADS=1
target=src/cospec/bundled/target draft=$teaching/more-draft
pair=(--target "$target" --draft "$draft" --dtype float32 -k 16 --threads 1)
r=reasoning_gym
mix=mix:$r:gsm_symbolic@4+$r:chain_sum@1+$r:products@1+$r:gcd@1+$r:simple_geometry@1

# Two arbiters, by reinforcement alone.
[[ -e $work/scalar/config.json ]] || cospec train "${pair[@]}" --task "$mix" --out "$work/scalar"
[[ -e $work/hidden/config.json ]] || cospec train "${pair[@]}" --task "$mix" --features hidden \
    --num-rounds 4 --tune-every 1 --config experiments/mixed_traffic/hidden.json --out "$work/hidden"

# The rule's alpha, from tune problems of the mixture.
rules=()
for alpha in 0.4 0.3 0.2 0.1 0 -0.1 -0.2; do rules+=(--arbiter "cascade_diff:alpha=$alpha"); done
[[ -e $work/tune_rule_mix.json ]] || cospec eval "${pair[@]}" --task "$mix" --split tune \
    --num-problems 400 --batch-size 100 "${rules[@]}" --json "$work/tune_rule_mix.json"

# The arbiter of equal_teaching that read 8,000 solutions, as it is, with its limit on mismatches,
# and trained further on the mixture.
solutions=$teaching/taught_draft_more/family/seen-seed0-n8000
[[ -e $work/solutions_limited ]] || python experiments/mixed_traffic/mixed.py limit \
    "$target" "$draft" "$solutions" "$work/solutions_limited"
[[ -e $work/one_step ]] || python experiments/mixed_traffic/mixed.py rounds \
    "$target" "$draft" "$solutions" "$work/one_step"

# The test. ALPHA is the best of tune_rule_mix.json.
test=(--split test --num-problems 300 --seed 20 --batch-size 100)
for task in gsm_symbolic chain_sum products gcd simple_geometry; do
    [[ -e $work/$task.json ]] || cospec eval "${pair[@]}" --task "$r:$task" "${test[@]}" \
        --arbiter "cascade_diff:alpha=${ALPHA:--0.2}" --arbiter "$solutions" \
        --arbiter "$work/solutions_limited" --arbiter "$work/scalar" --arbiter "$work/hidden" \
        --arbiter "$work/one_step" \
        --json "$work/$task.json"
done
[[ -e $work/taught.json ]] || cospec eval --target "$teaching/more-0.1-1" \
    --draft src/cospec/bundled/family --dtype float32 -k 16 --threads 1 \
    --task "$r:gsm_symbolic" "${test[@]}" --json "$work/taught.json"
python experiments/mixed_traffic/mixed.py gather "$work"

# Models that were taught all five tasks, at about the same cost (a quarter of an hour each), and
# arbiters of the pair with that draft, by reinforcement alone (half an hour each). ALPHA2 is the
# best of its tune_rule_mix.json.
more=$work/mixture
teach() {
    python experiments/equal_teaching/teach.py bundled:family "$1" "$more/$1" --tiers "$2" \
        --others "$3" --rate 0.1 --epochs 1
}
mkdir -p "$more"
teach draft 50 10000
teach target 9 1800
pair=(--target "$target" --draft "$more/draft" --dtype float32 -k 16 --threads 1)
[[ -e $more/tune_rule_mix.json ]] || cospec eval "${pair[@]}" --task "$mix" --split tune \
    --num-problems 400 --batch-size 100 "${rules[@]}" --json "$more/tune_rule_mix.json"
for method in one_step rl; do
    [[ -e $more/$method/config.json ]] || cospec train "${pair[@]}" --task "$mix" \
        --method $method --out "$more/$method"
done
for task in gsm_symbolic chain_sum products gcd simple_geometry; do
    [[ -e $more/taught_$task.json ]] || cospec eval --target "$more/target" \
        --draft src/cospec/bundled/family --dtype float32 -k 16 --threads 1 --task "$r:$task" \
        "${test[@]}" --json "$more/taught_$task.json"
    [[ -e $more/$task.json ]] || cospec eval "${pair[@]}" --task "$r:$task" "${test[@]}" \
        --arbiter "cascade_diff:alpha=${ALPHA2:--0.2}" --arbiter "$more/one_step" \
        --arbiter "$more/rl" --json "$more/$task.json"
done
python experiments/mixed_traffic/mixed.py gather_mixture "$more"
