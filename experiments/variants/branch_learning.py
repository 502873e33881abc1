"""What policies of many kinds, and rules, would win on branches that they have not learnt from.

    python experiments/variants/branch_learning.py FILE --json runs/NAME.json

FILE is what ``offline_policies.py --collect`` wrote. Policies learn from the branches of all rounds
but those of one fold, and are judged on that fold: answers won and lost by the
mismatches that they would keep, where each branch is followed by the policy of its own round. It
decides between objectives, features and shapes without decoding anything. Rules learn nothing, so
that all branches judge them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from offline_policies import VARIANTS, learn, seen
from safetensors.torch import load_file

from cospec.features import SCALAR_NAMES
from cospec.results import Provenance, document, write_json

if TYPE_CHECKING:
    from torch import Tensor

_MAX_FOLDS = 5


def ruled(features: Tensor) -> dict[str, Tensor]:
    """What rules would keep, (N,) bool each, from features (N, F)."""
    scalars = features[:, : len(SCALAR_NAMES)]
    columns = dict(zip(SCALAR_NAMES, scalars.unbind(dim=1), strict=True))
    names = ("log_p_draft", "log_p_target", "log_q_draft", "log_q_target")
    p_d, p_t, q_d, q_t = (columns[name].exp() for name in names)
    return {
        "always_draft": torch.ones_like(p_d).bool(),
        "gap:max_gap=1": columns["gap_p"] < 1,
        "cascade_chow:alpha=0.2": q_d > 0.8,
        "cascade_diff:alpha=0": q_d > p_t,
        "ensemble:draft_weight=0.3": 0.3 * (q_d - q_t) + 0.7 * (p_d - p_t) > 0,
        "ensemble:draft_weight=0.5": q_d - q_t + p_d - p_t > 0,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    provenance = Provenance()
    data = load_file(args.file)
    features, right, cost = (data[name] for name in ("features", "delta_reward", "delta_cost"))
    num_folds = min(_MAX_FOLDS, int(data["round"].max()) + 1)
    folds = data["round"] % num_folds
    kept = ruled(features)
    for name, variant in VARIANTS.items():
        if (variant.num_branches or 0) > len(right) * (num_folds - 1) // num_folds:
            continue
        if variant.sees_hidden and features.shape[1] == len(SCALAR_NAMES):
            continue
        kept[name] = torch.zeros_like(right).bool()
        for fold in range(num_folds):
            is_held_out = folds == fold
            policy = learn(variant, *(part[~is_held_out] for part in (features, right, cost)))
            with torch.no_grad():
                kept[name][is_held_out] = policy(seen(variant, features[is_held_out])) > 0
    rows = []
    for name, keep in kept.items():
        won, lost = int((right[keep] > 0).sum()), int((right[keep] < 0).sum())
        net = 100 * (won - lost) / len(right)
        rows.append({"name": name, "kept": int(keep.sum()), "won": won, "lost": lost, "net": net})
        print(f"{name}: {int(keep.sum())} kept, {won} won, {lost} lost, {net:+.2f}", flush=True)
    counts = {
        "file": args.file.name,
        "num_branches": len(right),
        "num_folds": num_folds,
        "for_the_draft": int((right > 0).sum()),
        "for_the_target": int((right < 0).sum()),
    }
    where = provenance.to_dict("cpu", "torch.float32")
    write_json(args.json, document("branch_learning", counts, where, rows=rows))


if __name__ == "__main__":
    main()
