"""What rounds of RL can add to a policy that worked solutions have taught, by branches held out.

    python experiments/trained_arbiters/round_learning.py RUN --json OUT

RUN is a folder of ``cospec train --num-solutions N`` whose policy the rounds left as it was
(``--learning-rate 1e-9 --num-epochs 1``), so that all branches are off one policy. Updates on the
branches of some rounds are judged on those of the others, each round held out once:
``net`` is the answers that the kept tokens win, minus those that they lose; ``cost`` is what they
change of lossless's target forwards; ``over_start`` is the net beside that of the policy before any
round, at the threshold at which it saves as much.
"""

from __future__ import annotations

import argparse
import copy
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from cospec.arbiters.policy import Policy, PolicyConfig
from cospec.features import SCALAR_NAMES
from cospec.results import Json, Provenance, document, write_json
from cospec.rl.config import ObjectiveConfig, OptimiserConfig, TrainConfig, WarmupConfig
from cospec.rl.types import Decisions, KnownBranches
from cospec.rl.updates import update

if TYPE_CHECKING:
    from torch import Tensor

_NUM_FOLDS = 3
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
EDGES = (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0)
"""Of the logit of the policy before any round."""


@dataclass(frozen=True)
class Trial:
    """What learns, and how."""

    is_whole: bool
    cost_weight: float
    kl_weight: float

    @property
    def learning_rate(self) -> float:
        """That of a correction would soon spoil a whole policy."""
        return 3e-4 if self.is_whole else 3e-3


TRIALS = (
    *(Trial(False, cost, kl) for cost in (0.0, 0.3, 0.5, 1.0) for kl in (0.0, 0.03)),
    *(Trial(True, cost, kl) for cost in (0.0, 0.3) for kl in (0.03, 0.3)),
)


@dataclass(frozen=True)
class Branches:
    """Those of all rounds of a run."""

    features: Tensor
    """(N, F)"""
    right: Tensor
    """Answer right with the draft's token minus with the target's, (N,)."""
    cost: Tensor
    """What the draft's token changes of lossless's target forwards, (N,)."""
    round: Tensor
    """(N,)"""
    logit: Tensor
    """Of the policy before any round, (N,)."""

    def judge(self, kept: Tensor, num_problems: int) -> Json:
        """What rulings (N,) bool come to."""
        by_boldness = self.logit.sort(descending=True).indices
        saved = self.cost[by_boldness].cumsum(0)
        num_like = int((saved - self.cost[kept].sum()).abs().argmin()) + 1
        like = torch.zeros_like(kept)
        like[by_boldness[:num_like]] = True
        change = self.right * (kept.float() - like.float())
        return {
            "net": int(self.right[kept].sum()),
            "cost": float(self.cost[kept].sum()) / num_problems,
            "over_start": int(change.sum()),
            "over_start_se": float(change.square().sum().sqrt()),
        }

    def zones(self) -> list[Json]:
        """How many branches win and lose, by what the policy says."""
        zone = torch.bucketize(self.logit, torch.tensor(EDGES))
        return [
            {
                "above": EDGES[i - 1] if i else None,
                "upto": EDGES[i] if i < len(EDGES) else None,
                "num": int((zone == i).sum()),
                "won": int((self.right[zone == i] > 0).sum()),
                "lost": int((self.right[zone == i] < 0).sum()),
            }
            for i in range(len(EDGES) + 1)
        ]


def read(run: Path) -> tuple[Policy, Branches, Json]:
    """The policy, the branches and the settings of a run."""
    settings: Json = json.loads((run / "run.json").read_text(encoding="utf-8"))
    state = torch.load(run / "state.pt", weights_only=True)
    features, right, cost = (
        torch.cat(part) for part in list(zip(*state["replay"], strict=True))[:3]
    )
    rounds = [torch.full((len(part[0]),), i) for i, part in enumerate(state["replay"])]
    shape = PolicyConfig(**settings["train"]["policy"])
    num_features = features.shape[1]
    policy = Policy(num_features, shape, num_hidden=num_features - len(SCALAR_NAMES))
    policy.load_state_dict(state["policy"])
    with torch.no_grad():
        logit = policy(features)
    return policy, Branches(features, right, cost, torch.cat(rounds), logit), settings


def learn(trial: Trial, policy: Policy, data: Branches, num_updates: int) -> Tensor:
    """Logits (N,) of policies that have not seen the rounds on which each is asked."""
    shape = replace(policy.config, correction=not trial.is_whole)
    config = TrainConfig(
        policy=shape,
        warmup=WarmupConfig(num_solutions=1),
        objective=ObjectiveConfig(
            cost_weight=trial.cost_weight, entropy_bonus=0.0, kl_weight=trial.kl_weight
        ),
        optimiser=OptimiserConfig(
            num_epochs=num_updates, learning_rate=trial.learning_rate, weight_decay=0.1
        ),
    )
    score = torch.zeros_like(data.logit)
    for fold in range(_NUM_FOLDS):
        held_out = data.round % _NUM_FOLDS == fold
        x, right = data.features[~held_out], data.right[~held_out]
        it = Policy(x.shape[1], shape, num_hidden=policy.num_hidden)
        it.load_state_dict(policy.state_dict(), strict=False)  # without a correction
        if shape.correction:
            it.take_up(x)
        delta = right - trial.cost_weight * data.cost[~held_out]
        known = KnownBranches(x, delta, right == 0, torch.ones_like(right))
        none = Decisions(x, torch.zeros_like(right).bool(), torch.zeros_like(right))
        update(it, copy.deepcopy(it), none, known, config, seed=0)
        with torch.no_grad():
            score[held_out] = it(data.features[held_out])
    return score


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--num-updates", type=int, default=300, help="of a correction")
    parser.add_argument("--num-whole", type=int, default=60, help="updates of a whole policy")
    args = parser.parse_args()
    torch.set_num_threads(1)
    provenance = Provenance()
    policy, data, settings = read(args.run)
    num_rounds = int(data.round.max()) + 1
    num_problems = num_rounds * settings["train"]["prompts_per_round"]
    found: list[tuple[Json, Tensor]] = [({"learns": "nothing"}, data.logit)]
    for trial in TRIALS:
        number = args.num_whole if trial.is_whole else args.num_updates
        about = {"learns": "whole" if trial.is_whole else "correction"} | asdict(trial)
        found.append((about, learn(trial, policy, data, number)))
        print(about, data.judge(found[-1][1] > 0, num_problems), flush=True)
    rows = [
        about | {"threshold": t} | data.judge(torch.sigmoid(score) > t, num_problems)
        for about, score in found
        for t in THRESHOLDS
    ]
    counts = {
        "num_rounds": num_rounds,
        "num_problems": num_problems,
        "num_branches": len(data.right),
        "oracle_net": int(data.right.clamp(min=0).sum()),
    }
    config = {"run": settings, "num_updates": args.num_updates, "num_whole": args.num_whole}
    where = provenance.to_dict("cpu", "torch.float32")
    parts = {**counts, "zones": data.zones(), "rows": rows}
    write_json(args.json, document("round_learning", config, where, **parts))


if __name__ == "__main__":
    main()
