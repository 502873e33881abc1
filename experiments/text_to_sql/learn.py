"""Fit arbiters to decisions that gold queries settle, and test them on databases never seen.

Usage: python experiments/text_to_sql/learn.py PIECES [--pair TARGET DRAFT --out ARBITER]

Five folds over databases, for a growing number of train questions: the share of held-out decisions
that go to the token of the gold query, by a policy on scalars, one on hidden states as well, and
the rule `cascade_diff` at the threshold that is best on the train folds. With --out the best kind
is fitted to all and saved as an arbiter of the pair.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from cospec import ModelPair
from cospec.arbiters.learned import LearnedArbiter
from cospec.arbiters.policy import Policy, PolicyConfig
from cospec.features import SCALAR_NAMES, make_features
from cospec.rl.config import TrainConfig, WarmupConfig
from cospec.rl.types import SolutionData
from cospec.rl.updates import imitate

FOLDS = 5
KINDS = ("scalars", "hidden")
NUM_SCALARS = len(SCALAR_NAMES)
NUM_STATES = 2 * 1536 + 896
"""The target's before and after the draft's token, and the draft's."""


def main() -> None:
    """Print the table; fit and save if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pieces", type=Path)
    parser.add_argument("--pair", nargs=2, type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--kind", choices=KINDS, default="hidden")
    parser.add_argument("--dropout", type=float, default=0.3)
    parser.add_argument("--epochs", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pieces = [load_file(path) for path in sorted(options.pieces.glob("gold-*.safetensors"))]
    x = torch.cat([piece["features"] for piece in pieces]).float()
    worth = torch.cat([piece["worth"] for piece in pieces])
    database = torch.cat([piece["database"] for piece in pieces])
    num_draft = int((worth > 0).sum())
    print(f"{len(worth)} decisions of {len(database.unique())} databases, {num_draft} the draft's")
    fold = torch.randperm(1000, generator=torch.Generator().manual_seed(0))[database] % FOLDS
    for share in (0.25, 0.5, 1.0):
        cells = {name: torch.zeros(len(worth), dtype=torch.bool) for name in ("rule", *KINDS)}
        for number in range(FOLDS):
            test, train = fold == number, (fold != number).nonzero()[:, 0]
            train = train[: int(share * len(train))]
            cells["rule"][test] = rule(x[test]) > best_threshold(rule(x[train]), worth[train])
            for kind in KINDS:
                policy = fit(x[train], worth[train], kind, options)
                with torch.no_grad():
                    cells[kind][test] = policy(x[test]) > 0
        line = [f"{name} {right(keep, worth):.3f}" for name, keep in cells.items()]
        print(f"{share:.2f} of the questions: " + ", ".join(line), flush=True)
    if options.out:
        save(x, worth, options)


def rule(x):
    """Return the score of `cascade_diff` before its threshold: how much surer the draft is."""
    q, p = (x[:, SCALAR_NAMES.index(name)].exp() for name in ("log_q_draft", "log_p_target"))
    return q - p


def best_threshold(score, worth) -> float:
    """Return the threshold that gives the most decisions to the right token."""
    places = torch.linspace(-1, 1, 81)
    return float(max(places, key=lambda place: right(score > place, worth)))


def right(keep, worth) -> float:
    """Return the share of decisions for the right token."""
    return float((keep == (worth > 0)).float().mean())


def fit(x, worth, kind, options) -> Policy:
    """Fit a policy; scalars alone leave the states out, and embeddings are always left out."""
    config = TrainConfig(
        warmup=WarmupConfig(num_solutions=1, num_solution_epochs=options.epochs), num_rounds=0
    )
    shape = PolicyConfig(dropout=options.dropout, init_logit=0.0)
    policy = Policy(x.shape[1], shape, 0, x.shape[1] - NUM_SCALARS)
    is_used = torch.ones(x.shape[1], dtype=torch.bool)
    is_used[NUM_SCALARS + NUM_STATES if kind == "hidden" else NUM_SCALARS :] = False
    policy.normalise_by(x, float("inf"), is_used)
    imitate(policy, SolutionData(x, worth), config)
    return policy


def save(x, worth, options) -> None:
    """Fit to all decisions and save."""
    pair = ModelPair.from_pretrained(*options.pair)
    features = make_features("hidden", pair)
    policy = fit(x, worth, options.kind, options)
    about = {"pair": {"fingerprint": pair.fingerprint}, "name": options.out.name}
    replace(LearnedArbiter(policy, features), about=about).save(options.out)


if __name__ == "__main__":
    main()
