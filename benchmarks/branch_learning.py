"""What policies of several kinds would win on branches of training runs, each run held out once.

    python benchmarks/branch_learning.py RUN RUN [RUN ...] --json benchmarks/results/NAME.json

A run is a folder of ``cospec train`` on one pair and task, with other seeds and so other problems.
Policies learn from the branches of all runs but one and are judged on those of that one: right
answers won less those lost, per 100 problems, where each branch is followed by the policy of its
own round. It decides between objectives without decoding anything.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from cospec.arbiters.policy import Policy, PolicyConfig
from cospec.results import Provenance, document, write_json
from cospec.rl.losses import branch_loss, entropy, label_loss

if TYPE_CHECKING:
    from torch import Tensor

OBJECTIVES: dict[str, tuple[str, str, int, float]] = {
    "labels, linear": ("linear", "labels", 300, 0.0),
    "labels, MLP": ("mlp", "labels", 150, 0.0),
    "reward, MLP, 60 updates": ("mlp", "reward", 60, 0.0),
    "reward, MLP, 400 updates": ("mlp", "reward", 400, 0.0),
    "reward, MLP, entropy bonus 0.02": ("mlp", "reward", 400, 0.02),
    "reward, MLP, entropy bonus 0.05": ("mlp", "reward", 400, 0.05),
    "reward, linear, entropy bonus 0.02": ("linear", "reward", 400, 0.02),
}
"""By name: kind of policy, what it learns from, updates, and the entropy bonus."""


def learn(name: str, features: Tensor, delta: Tensor) -> Policy:
    """A policy from branches: features (N, F) and differences of rewards (N,)."""
    kind, target, num_updates, bonus = OBJECTIVES[name]
    config = PolicyConfig(kind=kind, init_logit=0.0 if target == "labels" else -2.0)  # type: ignore[arg-type]
    policy = Policy(features.shape[1], config)
    policy.normalise_by(features)
    optimiser = torch.optim.AdamW(policy.parameters(), lr=3e-3, weight_decay=0.01)
    weight = torch.ones_like(delta)
    for _ in range(num_updates):
        logits = policy(features)
        if target == "labels":
            loss = label_loss(logits, delta > 0, delta.abs())
        else:
            loss = branch_loss(logits, delta, weight) - bonus * entropy(logits).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return policy


@torch.no_grad()
def judged(policy: Policy, features: Tensor, delta: Tensor) -> tuple[int, int, int]:
    """Overrides at threshold 0.5, and how many of them win and lose an answer."""
    kept = delta[policy(features) > 0]
    return len(kept), int((kept > 0).sum()), int((kept < 0).sum())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    provenance = Provenance()
    states = [torch.load(run / "state.pt", weights_only=True) for run in args.runs]
    branches = [
        [torch.cat(part) for part in zip(*((f, d) for f, d, *_ in s["replay"]), strict=True)]
        for s in states
    ]
    settings = [json.loads((run / "run.json").read_text())["train"] for run in args.runs]
    num_problems = sum(
        s["prompts_per_round"] * r["round"] for s, r in zip(settings, states, strict=True)
    )
    rows = []
    for name in OBJECTIVES:
        found = []
        for i, (features, delta) in enumerate(branches):
            others = [b for j, b in enumerate(branches) if j != i]
            policy = learn(name, *(torch.cat(part) for part in zip(*others, strict=True)))
            found.append(judged(policy, features, delta))
        kept, won, lost = (sum(values) for values in zip(*found, strict=True))
        net = 100 * (won - lost) / num_problems
        rows.append({"objective": name, "overrides": kept, "won": won, "lost": lost, "net": net})
        print(f"{name}: {kept} overrides, {won} won, {lost} lost, {net:.2f} net", flush=True)
    deltas = torch.cat([delta for _, delta in branches])
    counts = {
        "num_problems": num_problems,
        "num_branches": len(deltas),
        "for_the_draft": int((deltas > 0).sum()),
        "for_the_target": int((deltas < 0).sum()),
    }
    config = {"runs": [run.name for run in args.runs], **counts}
    where = provenance.to_dict("cpu", "torch.float32")
    write_json(args.json, document("branch_learning", config, where, rows=rows))


if __name__ == "__main__":
    main()
