"""Penalised logistic regression on branches, for data in which few of them matter.

A real pair gives one decision that matters for eight that do not, and a hidden state has thousands
of numbers. So the policy is linear, and each weight has a penalty. Logistic regression predicts
which token leads to the better answer, weighted by the difference. To play the fitted policy,
branch off its path and fit again to all branches is classification-based policy iteration
(Lagoudakis and Parr 2003, "Reinforcement Learning as Classification").
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

if TYPE_CHECKING:
    from torch import Tensor

    from cospec.arbiters.policy import Policy
    from cospec.features import ScalarFeatures
    from cospec.rl.config import RidgeConfig
    from cospec.rl.methods import Labels

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
    found = torch.zeros(x.shape[1] + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([found], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        logits = x @ found[:-1] + found[-1]
        return binary_cross_entropy_with_logits(logits, keep, weight, reduction="sum")

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = loss() + found[:-1].square().sum() / 2
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        policy.set_linear(found[:-1] * scale, found[-1])
        return float(loss() / weight.sum())
