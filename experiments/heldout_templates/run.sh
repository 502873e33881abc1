#!/usr/bin/env bash
# Everything behind the tables of README.md; each step is skipped where its files exist.
# Needs pip install -e '.[tasks]' (reasoning-gym 0.1.25). One thread, about an hour and a half a pair.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=${1:?usage: run.sh FOLDER}
heldout() { python experiments/heldout_templates/heldout.py "$@" --work "$work"; }
export OMP_NUM_THREADS=1

for pair in specialist family; do
    heldout bundled:$pair test --test-tiers 2 --arms lossless
    heldout bundled:$pair read --tiers 5
    heldout bundled:$pair train --tiers 5
    heldout bundled:$pair train --tiers 5 --seen
    heldout bundled:$pair train --tiers 5 --folds 1 --seeds 1 2
    heldout bundled:$pair test --test-tiers 2 --arms draft rule fold-seed0-n4000 seen-seed0-n4000
    heldout bundled:$pair test --folds 1 --arms fold-seed1-n4000 fold-seed2-n4000
    heldout bundled:$pair test --test-tiers 2 --arms shipped \
        --shipped benchmarks/arbiters/$pair-corrected-seed0
done
python experiments/heldout_templates/summarise.py "$work" --out experiments/heldout_templates
