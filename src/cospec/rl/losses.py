"""Advantages and losses: pure functions on tensors.

The models are frozen, so that a decision is all that an update needs: features, the ruling (one
bit), its log-probability at the time, and an advantage. Two kinds of credit give the advantage:

* group: the reward of a rollout minus the mean of its group, for every decision of the rollout
  (GRPO, 2402.03300; without the division by the spread as in Dr. GRPO, 2503.20783);
* branch: both rulings of one decision were played out, and ``delta`` is the reward for the draft's
  token minus that for the target's. The expected reward of the decision is linear in the
  probability of the draft's token, with slope ``delta``: no sampling noise of the ruling is left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import logsigmoid, softplus

if TYPE_CHECKING:
    from torch import Tensor


_BASELINE_DECAY = 0.9
_ROUNDING = 1e-6  # of float32 rewards: Adam would make whole steps of it


def group_advantages(rewards: Tensor) -> Tensor:
    """Return each reward minus the mean of its group; groups without spread get exactly 0.

    Args:
        rewards: Rewards, one group a row, (P, G).

    Returns:
        Advantages, (P, G).
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    return torch.where(has_spread(rewards)[:, None], centred, 0.0)


def baseline_advantages(rewards: Tensor, running: float | None) -> tuple[Tensor, float]:
    """Return each reward minus a running mean, as in REINFORCE with a baseline.

    Args:
        rewards: Rewards of any shape.
        running: The mean so far; None in the first round, which is compared with its own mean.

    Returns:
        Advantages of that shape, and the running mean with these rewards in it.
    """
    mean = float(rewards.mean())
    found = rewards - (mean if running is None else running)
    if running is not None:
        mean = _BASELINE_DECAY * running + (1 - _BASELINE_DECAY) * mean
    return torch.where(found.abs() > _ROUNDING, found, 0.0), mean


def has_spread(rewards: Tensor) -> Tensor:
    """Tell whether the rewards of a group differ, (P,) bool, from (P, G)."""
    return (rewards.max(dim=1).values - rewards.min(dim=1).values) > 1e-9


def log_prob(logits: Tensor, keep: Tensor) -> Tensor:
    """Return log-probabilities of rulings, (N,), from logits (N,) and rulings (N,) bool."""
    return torch.where(keep, logsigmoid(logits), logsigmoid(-logits))


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy of each ruling in nats, (N,)."""
    p = torch.sigmoid(logits)
    return softplus(logits) - p * logits


def kl_to(logits: Tensor, reference: Tensor) -> Tensor:
    """Return the KL divergence of each ruling from the reference's in nats, both (N,) logits."""
    p = torch.sigmoid(logits)
    return p * (logits - reference) + softplus(reference) - softplus(logits)


def group_loss(
    logits: Tensor, keep: Tensor, old_log_prob: Tensor, advantages: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """Return the clipped surrogate of PPO (1707.06347), negated, and the share that was clipped.

    Args:
        logits: Logits of the current policy, (N,).
        keep: Rulings for the draft, (N,) bool.
        old_log_prob: Log-probabilities of the rulings when they were made, (N,).
        advantages: Advantages, (N,).
        clip: Epsilon of the clipped ratio.
    """
    ratio = (log_prob(logits, keep) - old_log_prob).exp()
    plain, clipped = ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages
    return -torch.minimum(plain, clipped).mean(), (clipped < plain).float().mean()


def logged_loss(
    logits: Tensor, keep: Tensor, old_log_prob: Tensor, advantages: Tensor, most: float
) -> Tensor:
    """Return the policy-gradient loss of logged rulings with truncated importance weights.

    The weight of a ruling is its probability now over that when it was made, cut at `most`. The
    gradient treats it as a constant (Ionides 2008): a ruling with a larger weight counts `most`
    times.

    Args:
        logits: Logits of the current policy, (N,).
        keep: Rulings for the draft, (N,) bool.
        old_log_prob: Log-probabilities of the rulings when they were made, (N,).
        advantages: Advantages, (N,).
        most: Largest weight.
    """
    now = log_prob(logits, keep)
    weight = (now.detach() - old_log_prob).exp().clamp(max=most)
    return -(weight * now * advantages).mean()


def label_loss(logits: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    """Return the cross-entropy of a classifier, for the supervised controls.

    Args:
        logits: Logits of keeping the draft's token, (N,).
        label: Whether it should be kept, (N,) bool.
        weight: Weight of each decision, (N,).
    """
    loss = -log_prob(logits, label) * weight
    return loss.sum() / weight.sum().clamp(min=1e-9)


def branch_loss(logits: Tensor, delta: Tensor, weight: Tensor) -> Tensor:
    """Return the expected reward of decisions with both outcomes known, negated.

    Args:
        logits: Logits of the current policy, (N,).
        delta: Reward for the draft's token minus that for the target's, (N,).
        weight: Weight of each decision, (N,).
    """
    return -(torch.sigmoid(logits) * delta * weight).sum() / weight.sum().clamp(min=1e-9)
