#!/usr/bin/env bash
# Everything behind the tables of README.md; each step is skipped where its files exist.
# Needs pip install -e '.[tasks]' (reasoning-gym 0.1.25). One thread, about an hour and a half a pair.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=${1:?usage: run.sh FOLDER}
heldout() { python experiments/heldout_templates/heldout.py "$@" --work "$work"; }
export OMP_NUM_THREADS=1

for pair in specialist family; do
    heldout bundled:$pair test --arms lossless
    heldout bundled:$pair read --tiers 10
    for tiers in 5 10; do
        heldout bundled:$pair train --tiers $tiers
        heldout bundled:$pair train --tiers $tiers --seen
    done
    heldout bundled:$pair train --tiers 5 --folds 1 --seeds 1 2
    heldout bundled:$pair test --arms draft rule \
        fold-seed0-n4000 seen-seed0-n4000 fold-seed0-n8000 seen-seed0-n8000
    heldout bundled:$pair test --folds 1 --arms fold-seed1-n4000 fold-seed2-n4000 target
    heldout bundled:$pair test --folds 0 --arms fold-seed0-n4000 --check
    heldout bundled:$pair test --arms shipped --shipped src/cospec/bundled/arbiters/$pair
    heldout bundled:$pair scratch --num-rounds 2  # forty-five minutes
    heldout bundled:$pair test --arms fold-seed0-scratch2
done
for method in rl gold autojudge; do  # controls that learned from the same solutions
    heldout bundled:family train --tiers 10 --seen --rounds --num-rounds 2 --method $method
done
heldout bundled:family test --arms \
    seen-seed0-n8000-rounds seen-seed0-n8000-gold seen-seed0-n8000-autojudge
for method in gold autojudge rl; do  # and on left-out templates, an hour and a half
    heldout bundled:family train --tiers 10 --rounds --num-rounds 2 --method $method
done
heldout bundled:family test --arms \
    fold-seed0-n8000-rounds fold-seed0-n8000-gold fold-seed0-n8000-autojudge
python experiments/heldout_templates/summarise.py "$work" --tiers 10
