"""One round's updates of a policy: no language model, no loop but that over epochs."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from cospec.rl.controls import labels
from cospec.rl.losses import branch_loss, entropy, group_loss, kl_to, label_loss, log_prob

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from cospec.arbiters.policy import Correction, Policy
    from cospec.results import Json
    from cospec.rl.config import TrainConfig


_BATCH_SIZE, _LEARNING_RATE = 256, 2e-3  # of `imitate`


class Decisions(NamedTuple):
    """What the policy tossed in rollouts."""

    features: Tensor
    """(N, F)"""
    keep: Tensor
    """The bits, (N,) bool."""
    advantage: Tensor
    """Of each one's rollout, (N,)."""


class KnownBranches(NamedTuple):
    """Decisions whose both outcomes are known, of all rounds."""

    features: Tensor
    """(N, F)"""
    delta: Tensor
    """Reward for the draft's token minus that for the target's, (N,)."""
    is_harmless: Tensor
    """Whether both branches come to the same, (N,) bool."""
    weight: Tensor
    """What each counts, (N,)."""


def known_branches(replay: Sequence[tuple[Tensor, ...]], config: TrainConfig) -> KnownBranches:
    """The branches of all rounds, older ones for less.

    Args:
        replay: Of each round features (N, F), and the differences of being right and of cost and
            whether both are the same, (N,) each.
        config: The price of cost, and how fast old rounds fade.
    """
    features, delta_right, delta_cost, is_harmless = (
        torch.cat(parts) for parts in zip(*replay, strict=True)
    )
    weights = [
        torch.full((len(one[0]),), config.replay_decay**age)
        for one, age in zip(replay, range(len(replay) - 1, -1, -1), strict=True)
    ]
    delta = delta_right - config.cost_weight * delta_cost
    return KnownBranches(features, delta, is_harmless, torch.cat(weights))


def imitate(policy: Policy, features: Tensor, delta: Tensor, config: TrainConfig) -> float:
    """Teach a policy whose token was right, in small batches and at a rate that falls to zero.

    Args:
        policy: What learns; already normalised.
        features: (N, F).
        delta: 1 where the draft's token was right, -1 where the target's was, (N,).
        config: Weight decay, dropout, seed, and how many passes.

    Returns:
        The mean loss of the last pass, in nats.
    """
    order = torch.Generator().manual_seed(config.seed)
    weights = [w for name, w in policy.named_parameters() if not name.startswith("correction")]
    optimiser = torch.optim.AdamW(weights, lr=_LEARNING_RATE, weight_decay=config.weight_decay)
    falling = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, config.num_solution_epochs)
    loss = 0.0
    for _ in range(config.num_solution_epochs):
        loss = 0.0
        for batch in torch.split(torch.randperm(len(delta), generator=order), _BATCH_SIZE):
            guess = policy(features[batch], order)
            found = label_loss(guess, delta[batch] > 0, torch.ones_like(guess))
            optimiser.zero_grad()
            found.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            loss += float(found.detach()) * len(batch) / len(delta)
        falling.step()
    return loss


def update(
    policy: Policy,
    start: Policy,
    decisions: Decisions,
    known: KnownBranches,
    config: TrainConfig,
    seed: int,
) -> Json:
    """Change the policy by what decisions and branches tell, for `config.num_epochs` steps.

    Args:
        policy: What learns.
        start: What a divergence is measured from.
        decisions: Of the round's rollouts; entropy and divergence are those on them.
        known: Branches of all rounds.
        config: Objective and optimiser.
        seed: Of the dropout.

    Returns:
        Of the last step: loss, entropy, kl (both in nats) and clip_fraction.
    """
    features, keep, advantage = decisions
    group_weight = 1.0 if config.method == "reinforce" else config.group_weight
    learns: Policy | Correction = policy
    seen, dropout = known.features, torch.Generator().manual_seed(seed)
    with torch.no_grad():
        old, reference = log_prob(policy(features), keep), start(features)
        if config.policy.correction:  # all else stays, and is worked out once
            learns = policy.correction
            features, seen = policy.corrigible(features), policy.corrigible(seen)
    taught = labels(config.method, known.delta, known.is_harmless, known.weight)
    label, counts = taught or (None, known.weight * known.delta)
    is_taught = bool(counts.any() or (group_weight * advantage).any())
    optimiser = torch.optim.AdamW(
        learns.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    for _ in range(config.num_epochs):
        logits = learns(features, dropout)
        clipped_loss, clip_fraction = group_loss(logits, keep, old, advantage, config.clip)
        divergence = kl_to(logits, reference).mean()
        doubt = entropy(logits).mean()
        guess = learns(seen, dropout)
        if label is None:
            loss = branch_loss(guess, known.delta, known.weight) + group_weight * clipped_loss
        else:
            loss = label_loss(guess, label, counts)
        loss = loss + config.kl_weight * divergence - config.entropy_bonus * doubt
        if not is_taught:
            break  # Adam would follow the entropy bonus alone, in steps of full size
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(learns.parameters(), 1.0)
        optimiser.step()
    return {
        "loss": float(loss.detach()),
        "entropy": float(doubt.detach()),
        "kl": float(divergence.detach()),
        "clip_fraction": float(clip_fraction),
    }
