"""What hidden features are worth, by decisions of worked solutions that a policy has not seen.

    python experiments/trained_arbiters/solution_learning.py FILE --json OUT

FILE is what ``cospec train --num-solutions N --solutions FILE --features hidden`` keeps. Policies
learn from the decisions of some problems as in training, each with some of the features, and are
judged on those of the others: ``net`` is right overrides minus wrong ones, which is what counts for
answers, and ``right`` the share of decisions that are right.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from cospec.arbiters.policy import Policy, PolicyConfig
from cospec.evaluation.audit.dataset import read_tensors
from cospec.features import SCALAR_NAMES, HiddenFeatures
from cospec.results import Json, Provenance, document, write_json
from cospec.rl.config import OptimiserConfig, TrainConfig, WarmupConfig
from cospec.rl.types import SolutionData
from cospec.rl.updates import imitate

if TYPE_CHECKING:
    from torch import Tensor

_LAST = ("target_hidden", "draft_hidden")
_AFTER, _EMBEDDINGS = ("target_hidden_after",), ("draft_embedding", "target_embedding")
SEEN = {
    "scalars": (),
    "last states": _LAST,
    "last states, state behind": (*_LAST, *_AFTER),
    "last states, embeddings": (*_LAST, *_EMBEDDINGS),
    "all": (*_LAST, *_AFTER, *_EMBEDDINGS),
}
"""What is seen beside the scalars, by name without the number behind it."""
SHARES = (0.25, 0.5)
"""Of the decisions, learnt from with all features."""
_POLICY = PolicyConfig(hidden_projection=128, hidden_size=256, num_layers=2, dropout=0.5)
_CHUNK = 100
"""Neighbours may be of one problem: they are held out together, but for those at the ends."""


def judge(
    config: TrainConfig,
    known: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor],
    is_used: Tensor,
) -> Json:
    """Learn from decisions, features (N, F) and delta (N,), and count on others."""
    features, delta = known
    num_hidden = features.shape[1] - len(SCALAR_NAMES)
    policy = Policy(features.shape[1], config.policy, config.seed, num_hidden)
    policy.normalise_by(features, math.inf, is_used)
    imitate(policy, SolutionData(features, delta), config)
    with torch.no_grad():
        keep = policy(held_out[0]) > 0
    is_draft = held_out[1] > 0
    is_right = keep == is_draft
    net = int((keep & is_draft).sum() - (keep & ~is_draft).sum())
    return {
        "num_decisions": len(delta),
        "net": net,
        "right": float(is_right.float().mean()),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--num-decisions", type=int, help="by default all")
    parser.add_argument("--num-seeds", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    provenance = Provenance()
    tensors, about = read_tensors(args.file, "what was read of solutions")
    spec = json.loads(about["features"])
    none = torch.zeros(0, dtype=torch.int64)
    embeddings = torch.empty(0, spec["embedding_size"])
    names = HiddenFeatures(none, tuple(spec["hidden_sizes"]), embeddings).names
    chunks = torch.arange(len(tensors["delta"])).split(_CHUNK)
    mixed = torch.randperm(len(chunks), generator=torch.Generator().manual_seed(0)).tolist()
    order = torch.cat([chunks[i] for i in mixed])[: args.num_decisions]
    features, delta = tensors["features"][order], tensors["delta"][order]
    num_held_out = len(order) // 5
    held_out = features[:num_held_out], delta[:num_held_out]
    tries = [(name, seen, 1.0) for name, seen in SEEN.items()]
    tries += [(f"all, {share:.0%} of the decisions", SEEN["all"], share) for share in SHARES]
    rows = []
    for name, seen, share in tries:
        used = [n in SCALAR_NAMES or n.rpartition("_")[0] in seen for n in names]
        stop = num_held_out + round(share * (len(order) - num_held_out))
        known = features[num_held_out:stop], delta[num_held_out:stop]
        for seed in range(args.num_seeds):
            config = TrainConfig(
                warmup=WarmupConfig(num_solutions=1),
                optimiser=OptimiserConfig(weight_decay=0.1),
                policy=_POLICY,
                seed=seed,
            )
            found = judge(config, known, held_out, torch.tensor(used))
            rows.append({"seen": name, "seed": seed} | found)
            print(rows[-1], flush=True)
    config = {"num_decisions": args.num_decisions, "num_seeds": args.num_seeds, "solutions": about}
    counts = {"num_held_out": num_held_out, "num_draft_right": int((held_out[1] > 0).sum())}
    where = provenance.to_dict("cpu", "torch.float32")
    write_json(args.json, document("solution_learning", config, where, **counts, rows=rows))


if __name__ == "__main__":
    main()
