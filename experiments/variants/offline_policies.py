"""Policies of many kinds from the branches of finished training runs, as arbiters to evaluate.

    python experiments/variants/offline_policies.py FILE --collect RUN [RUN ...]
    python experiments/variants/offline_policies.py FILE --like ARBITER --out FOLDER

A run is a folder of ``cospec train`` (with its ``state.pt``). The first command joins the branches
of all runs, in an order drawn by seed, into one safetensors file. The second lets each arbiter of
`VARIANTS` learn from them with one thing changed, or from the first N alone, and writes it for the
pair of another arbiter. So one evaluation tells what features, shape, price of time and number of
branches are worth, apart from the luck of rollouts: ``cospec eval --arbiter FOLDER/NAME``.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from cospec.arbiters.learned import LearnedArbiter
from cospec.arbiters.policy import Policy, PolicyConfig
from cospec.features import SCALAR_NAMES
from cospec.rl.config import ObjectiveConfig, OptimizerConfig, TrainConfig
from cospec.rl.types import BranchData, Decisions
from cospec.rl.updates import known_branches, update

if TYPE_CHECKING:
    from torch import Tensor

_CONFIDENCE = ("log_p_draft", "log_p_target", "log_q_draft", "log_q_target", "gap_p", "gap_q")
_NUM_UPDATES = 300


@dataclass(frozen=True)
class Variant:
    """What differs from the arbiter ``all``."""

    policy: PolicyConfig = PolicyConfig()  # noqa: RUF009  # frozen
    cost_weight: float = 0.05
    entropy_bonus: float = 0.05
    num_branches: int | None = None
    without: tuple[str, ...] = ()
    """Features that are left out, by how their names begin."""
    only: tuple[str, ...] = SCALAR_NAMES


VARIANTS = {
    "all": Variant(),
    "linear": Variant(policy=PolicyConfig(kind="linear")),
    "two-layers": Variant(policy=PolicyConfig(num_layers=2)),
    "no-lookahead": Variant(without=("lookahead",)),
    "no-kinds": Variant(without=("draft_", "target_")),
    "no-distributions": Variant(only=(*_CONFIDENCE, *(n for n in SCALAR_NAMES if "ahead" in n))),
    "confidence-only": Variant(only=_CONFIDENCE),
    "no-entropy-bonus": Variant(entropy_bonus=0.0),
    **{f"lambda-{x:g}": Variant(cost_weight=x) for x in (0.0, 0.2, 0.5, 1.0, 2.0)},
    **{f"branches-{n}": Variant(num_branches=n) for n in (250, 500, 1000, 2000, 4000, 8000)},
}


def learn(variant: Variant, features: Tensor, delta_reward: Tensor, delta_cost: Tensor) -> Policy:
    """A policy from branches: features (N, F), differences of being right and of cost (N,)."""
    number = variant.num_branches or len(features)
    x, right, cost = features[:number], delta_reward[:number], delta_cost[:number]
    config = TrainConfig(
        policy=variant.policy,
        objective=ObjectiveConfig(
            cost_weight=variant.cost_weight, entropy_bonus=variant.entropy_bonus
        ),
        optimizer=OptimizerConfig(num_epochs=_NUM_UPDATES),
    )
    policy = Policy(x.shape[1], config.policy)
    used = [n in variant.only and not n.startswith(variant.without or "-") for n in SCALAR_NAMES]
    policy.normalize_by(x, is_used=torch.tensor(used))
    known = known_branches([BranchData(x, right, cost, right == 0)], config)
    none = torch.zeros_like(right)
    update(policy, policy, Decisions(x, none.bool(), none), known, config, seed=0)
    return policy


def collect(runs: list[Path], file: Path) -> None:
    """Write the branches of runs to a file."""
    replays = [
        part for run in runs for part in torch.load(run / "state.pt", weights_only=True)["replay"]
    ]
    features, right, cost = (torch.cat(parts) for parts in list(zip(*replays, strict=True))[:3])
    order = torch.randperm(len(right), generator=torch.Generator().manual_seed(0))
    tensors = {
        "features": features[order],
        "delta_reward": right[order],
        "delta_cost": cost[order],
    }
    save_file(tensors, file, {"feature_names": json.dumps(SCALAR_NAMES)})
    print(f"{file}: {len(order)} branches of {len(runs)} runs")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--collect", type=Path, nargs="+")
    parser.add_argument("--like", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.collect:
        collect(args.collect, args.file)
        return
    found = load_file(args.file)
    branches = [found[name] for name in ("features", "delta_reward", "delta_cost")]
    branches[0] = branches[0][:, : len(SCALAR_NAMES)]  # hidden states come after the scalars
    base = LearnedArbiter.load(args.like)
    for name, variant in VARIANTS.items():
        policy = learn(variant, *branches)
        about = {"name": name, "pair": base.about["pair"], "num_branches": len(branches[0])}
        replace(base, policy=policy, label=name, threshold=0.5, about=about).save(args.out / name)
        with torch.no_grad():
            kept = policy(branches[0]) > 0
        print(
            f"{name}: keeps {float(kept.float().mean()):.3f} of {len(kept)} branches, net "
            f"{float(branches[1][kept].sum()):+.0f} answers on them",
            flush=True,
        )


if __name__ == "__main__":
    main()
