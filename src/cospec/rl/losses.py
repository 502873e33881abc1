"""Advantages and losses: pure functions on tensors.

The models are frozen and decode greedily, so that the arbiter's coin is the only randomness of a
rollout. A decision is one toss: features, the bit, its log-probability at the time, and an
advantage. Two kinds of credit give the advantage:

* group: the reward of a rollout minus the mean of its group, for every decision of the rollout
  (GRPO, 2402.03300; without the division by the spread as in Dr. GRPO, 2503.20783);
* branch: both bits of one decision were played out. With ``delta`` the reward for the draft's token
  minus that for the target's, the expected reward of the decision is linear in the probability of
  the draft's token, with slope ``delta``: no toss is left to average over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn.functional import logsigmoid, softplus

if TYPE_CHECKING:
    from torch import Tensor


_BASELINE_DECAY = 0.9
_ROUNDING = 1e-6  # rewards are float32, and Adam would make whole steps of it


class PolicyLoss(NamedTuple):
    """A loss and what to watch."""

    loss: Tensor
    entropy: Tensor
    """Mean entropy of the decisions, in nats."""
    kl: Tensor
    """Mean divergence from the reference policy, in nats."""
    clip_fraction: Tensor
    """Share of decisions whose ratio was clipped against its advantage."""


def group_advantages(rewards: Tensor, *, scale: bool = False) -> Tensor:
    """Reward minus the mean of its group.

    Args:
        rewards: (P, G), one group a row.
        scale: Divide by the group's standard deviation.

    Returns:
        (P, G). Groups without spread get exactly 0.
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    centred = torch.where(has_spread(rewards)[:, None], centred, 0.0)
    if not scale:
        return centred
    return centred / (rewards.std(dim=1, keepdim=True, unbiased=False) + 1e-6)


def baseline_advantages(rewards: Tensor, running: float | None) -> tuple[Tensor, float]:
    """Reward minus a running mean, as REINFORCE with a baseline has it.

    Args:
        rewards: Of any shape.
        running: The mean so far; None in the first round, which is compared with its own.

    Returns:
        Advantages of that shape, and the running mean with these rewards in it.
    """
    mean = float(rewards.mean())
    found = rewards - (mean if running is None else running)
    if running is not None:
        mean = _BASELINE_DECAY * running + (1 - _BASELINE_DECAY) * mean
    return torch.where(found.abs() > _ROUNDING, found, 0.0), mean


def has_spread(rewards: Tensor) -> Tensor:
    """Whether the rewards of a group differ, (P,) bool, from (P, G)."""
    return (rewards.max(dim=1).values - rewards.min(dim=1).values) > 1e-9


def log_prob(logits: Tensor, keep: Tensor) -> Tensor:
    """Log-probability of each bit, (N,), from logits of keeping (N,) and bits (N,) bool."""
    return torch.where(keep, logsigmoid(logits), logsigmoid(-logits))


def entropy(logits: Tensor) -> Tensor:
    """Entropy of each coin in nats, (N,)."""
    p = torch.sigmoid(logits)
    return softplus(logits) - p * logits


def kl_to(logits: Tensor, reference: Tensor) -> Tensor:
    """Divergence of each coin from the reference's, in nats, both (N,) logits."""
    p = torch.sigmoid(logits)
    return p * (logits - reference) + softplus(reference) - softplus(logits)


def group_loss(
    logits: Tensor, keep: Tensor, old_log_prob: Tensor, advantages: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """The clipped surrogate of PPO (1707.06347), negated, and the share that was clipped.

    Args:
        logits: Of the current policy, (N,).
        keep: Bits that were tossed, (N,) bool.
        old_log_prob: Their log-probabilities then, (N,).
        advantages: (N,).
        clip: Epsilon.
    """
    ratio = (log_prob(logits, keep) - old_log_prob).exp()
    plain, clipped = ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages
    return -torch.minimum(plain, clipped).mean(), (clipped < plain).float().mean()


def label_loss(logits: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy of a classifier, for the supervised controls.

    Args:
        logits: Of keeping the draft's token, (N,).
        label: Whether it should be kept, (N,) bool.
        weight: How much each decision counts, (N,).
    """
    loss = -log_prob(logits, label) * weight
    return loss.sum() / weight.sum().clamp(min=1e-9)


def branch_loss(logits: Tensor, delta: Tensor, weight: Tensor) -> Tensor:
    """The expected reward of decisions whose both outcomes are known, negated.

    Args:
        logits: Of the current policy, (N,).
        delta: Reward for the draft's token minus that for the target's, (N,).
        weight: How much each decision counts, (N,).
    """
    return -(torch.sigmoid(logits) * delta * weight).sum() / weight.sum().clamp(min=1e-9)
