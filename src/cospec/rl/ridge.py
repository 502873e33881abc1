"""Penalised logistic regression on branches, for data in which few of them matter.

A real pair gives one decision that matters for eight that do not, and a hidden state has thousands
of numbers. So the policy is linear, and each weight has a penalty. Logistic regression predicts
which token leads to the better answer, weighted by the difference. To play the fitted policy,
branch off its path and fit again to all branches is classification-based policy iteration
(Lagoudakis and Parr 2003, "Reinforcement Learning as Classification").

An arbiter of one correction writes one of few answers: the draft's own, or one in which the target
takes over at one of its mismatches. An audit under `always_draft` with ``max_corrections`` 1 plays
them all. So the expected share of right answers is known for any policy, and its gradient is exact:
`fit_reward` climbs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid
from torch.nn.utils.rnn import pad_sequence

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from cospec.arbiters.policy import Policy
    from cospec.features import ScalarFeatures
    from cospec.rl.config import RidgeConfig
    from cospec.rl.methods import Labels

_REWARD_SCALE = 4.0
"""Weight of a right answer beside the penalties of weights."""
TRUSTED = "log_p_draft"
"""The scalar beside hidden states: the target's log-probability of the draft's token."""


def penalties(features: ScalarFeatures, config: RidgeConfig) -> Tensor:
    """Return the penalty of each feature's squared weight, (F,); infinity leaves it out.

    A policy on hidden states sees no embeddings, and by default only one scalar: with few decisions
    it would overfit the others.
    """
    names = [one.name for one in features.scalars]
    seen = config.scalars or ((TRUSTED,) if features.num_hidden else names)
    penalty = config.trusted_penalty if features.num_hidden else config.scalar_penalty
    found = [penalty if name in seen else torch.inf for name in names]
    for states in features.states:
        is_left_out = states.width == "embedding"
        found += [torch.inf if is_left_out else config.state_penalty] * features.width(states)
    return torch.tensor(found)


def fit(policy: Policy, features: Tensor, labels: Labels, penalty: Tensor) -> float:
    """Fit a linear policy, and its normalization, to labelled decisions.

    Args:
        policy: Linear policy with a hidden projection of width 1; its weights are replaced.
        features: Features of the decisions, (N, F). Decisions without weight do not count, not even
            for the normalization.
        labels: Label of each decision.
        penalty: Penalties from `penalties`, (F,).

    Returns:
        The mean loss of a decision, in nats, without the penalties; 0 if none has weight.
    """
    matters = labels.weight > 0
    if not matters.any():
        return 0.0
    x, keep, weight = features[matters], labels.keep[matters].float(), labels.weight[matters]
    policy.normalize_by(x, torch.inf, penalty < torch.inf)
    # The penalty is the same for all weights after scaling, so that L-BFGS converges sooner.
    scale = penalty.rsqrt()
    x = policy.normalized(x) * scale
    found = torch.zeros(x.shape[1] + 1)

    def loss() -> Tensor:
        logits = x @ found[:-1] + found[-1]
        return binary_cross_entropy_with_logits(logits, keep, weight, reduction="sum")

    _minimize(loss, found)
    policy.set_linear(found[:-1] * scale, found[-1])
    return float(loss() / weight.sum())


def fit_reward(
    policy: Policy,
    features: Tensor,
    sizes: Sequence[int],
    corrected: Tensor,
    kept: Tensor,
    penalty: Tensor,
) -> float:
    """Train a fitted policy further, on the expected number of right answers of one correction.

    Args:
        policy: From `fit`; its weights are replaced, its normalization stays.
        features: Features of the mismatches in the draft's answers, problem after problem, (N, F).
        sizes: Number of mismatches of each of the P problems, at least one each.
        corrected: Reward of the answer if the target takes over at a mismatch, (N,) float.
        kept: Reward of the draft's own answer, (P,).
        penalty: Penalties from `penalties`, (F,).

    Returns:
        The expected share of right answers of the policy that draws its rulings.
    """

    def by_problem(rows: Tensor) -> Tensor:
        """Return rows as (P, M, ...), padded with zeros."""
        return pad_sequence(list(torch.split(rows, list(sizes))), batch_first=True)

    scale = penalty.rsqrt()
    x, rewards = by_problem(policy.normalized(features) * scale), by_problem(corrected)
    is_there = by_problem(torch.ones(len(corrected)))
    weights, bias = policy.linear()
    found = torch.cat([torch.where(scale > 0, weights / scale, 0.0), bias[None]])

    def expected() -> Tensor:
        score = x @ found[:-1] + found[-1]
        keep = logsigmoid(score) * is_there
        stop = (keep.cumsum(1) - keep + logsigmoid(-score)).exp() * is_there
        return (stop * rewards).sum() + (keep.sum(1).exp() * kept).sum()

    _minimize(lambda: -_REWARD_SCALE * expected(), found)
    policy.set_linear(found[:-1] * scale, found[-1])
    return float(expected() / len(kept))


def _minimize(loss: Callable[[], Tensor], found: Tensor) -> None:
    """Minimize a loss and the penalty of the weights that it reads, (F + 1,), in place.

    The last number is the bias, which has no penalty.
    """
    found.requires_grad_()
    optimizer = torch.optim.LBFGS([found], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = loss() + found[:-1].square().sum() / 2
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    found.requires_grad_(False)
