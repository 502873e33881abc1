"""Updates of a policy: no language model, and no loop other than the one over epochs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from cospec.errors import ConfigError
from cospec.rl.losses import branch_loss, entropy, group_loss, kl_to, label_loss, log_prob
from cospec.rl.methods import METHODS
from cospec.rl.ridge import fit, penalties
from cospec.rl.types import BranchData, Decisions, KnownBranches, SolutionData

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cospec.arbiters.policy import Correction, Policy
    from cospec.features import ScalarFeatures
    from cospec.results import Json
    from cospec.rl.config import TrainConfig
    from cospec.rl.types import Played


_BATCH_SIZE, _LEARNING_RATE = 256, 2e-3  # for `imitate`


def round_seed(config: TrainConfig, number: int) -> int:
    """Return the seed of a round, counted from 0."""
    return config.seed * 10_007 + number


def normalize_first(
    policy: Policy, played: Sequence[Played], features: ScalarFeatures, config: TrainConfig
) -> None:
    """Normalize a policy by the decisions of the first round, unless a warm start did.

    Raises:
        ConfigError: The rollouts have no decisions.
    """
    seen = [m.features for one in played for m in one.decisions]
    method = METHODS[config.method]
    if config.warmup.num_solutions:
        if config.policy.correction and seen:
            policy.take_up(torch.stack(seen), method.features(features))
        return
    if not seen:
        raise ConfigError(
            "no mismatch was left to the arbiter in the first round: these two models agree on "
            "these problems; pass other problems or another draft."
        )
    # Decisions on the target's path have no overrides before them; under the policy some have.
    spread = math.inf if method.on_target_path else 1.0
    policy.normalize_by(torch.stack(seen), spread, method.features(features))


def known_branches(replay: Sequence[BranchData], config: TrainConfig) -> KnownBranches:
    """Join the branches of all rounds, older ones with less weight.

    Args:
        replay: Branches of each round, the latest last.
        config: Price of cost, and decay of old rounds.
    """
    weights = [
        torch.full((len(one),), config.branches.replay_decay**age)
        for one, age in zip(replay, range(len(replay) - 1, -1, -1), strict=True)
    ]
    data = BranchData.joined(replay)
    delta = data.delta_reward - config.objective.cost_weight * data.delta_cost
    return KnownBranches(
        data.features, delta, data.delta_reward, data.is_harmless, torch.cat(weights)
    )


def imitate(policy: Policy, data: SolutionData, config: TrainConfig) -> float:
    """Train a policy on right tokens, in small batches and at a learning rate that falls to zero.

    Args:
        policy: Policy, already normalized; its correction is not changed.
        data: Decisions, and the worths of the draft's tokens.
        config: Weight decay, dropout, seed, and number of passes.

    Returns:
        The mean loss of the last pass, in nats.
    """
    features, delta = data
    order = torch.Generator().manual_seed(config.seed)
    weights = [w for name, w in policy.named_parameters() if not name.startswith("correction")]
    optimizer = torch.optim.AdamW(
        weights, lr=_LEARNING_RATE, weight_decay=config.optimizer.weight_decay
    )
    num_epochs = config.warmup.num_solution_epochs
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, num_epochs)
    loss = 0.0
    for _ in range(num_epochs):
        loss = 0.0
        for batch in torch.split(torch.randperm(len(delta), generator=order), _BATCH_SIZE):
            guess = policy(features[batch], order)
            found = label_loss(guess, delta[batch] > 0, delta[batch].abs())
            optimizer.zero_grad()
            found.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss += float(found.detach()) * len(batch) / len(delta)
        falling.step()
    return loss


def refit(
    policy: Policy, features: ScalarFeatures, known: KnownBranches, config: TrainConfig
) -> float:
    """Fit a linear policy to the branches of all rounds; return the mean loss in nats."""
    labels = METHODS[config.method].labels
    assert labels is not None
    return fit(policy, known.features, labels(known), penalties(features, config.ridge))


def update(
    policy: Policy,
    start: Policy,
    decisions: Decisions,
    known: KnownBranches,
    config: TrainConfig,
    seed: int,
) -> Json:
    """Update a policy on decisions and branches, for `num_epochs` steps.

    Args:
        policy: Policy that is updated.
        start: Policy that the divergence is measured from.
        decisions: Decisions of the round's rollouts. Entropy and divergence are measured on them,
            also for the supervised controls (gold, autojudge, r2r).
        known: Branches of all rounds.
        config: Objective and optimizer.
        seed: Seed of the dropout.

    Returns:
        Values of the last step: loss, entropy, kl (both in nats) and clip_fraction.
    """
    method, objective = METHODS[config.method], config.objective
    features, keep, advantage = decisions
    group_weight = objective.group_weight if method.group_weight is None else method.group_weight
    learns: Policy | Correction = policy
    seen, dropout = known.features, torch.Generator().manual_seed(seed)
    with torch.no_grad():
        old, reference = log_prob(policy(features), keep), start(features)
        if config.policy.correction:  # all else is frozen, and computed once
            learns = policy.correction
            features, seen = policy.corrigible(features), policy.corrigible(seen)
    labels = method.labels(known) if method.labels else None
    counts = known.weight * known.delta if labels is None else labels.weight
    has_credit = bool(counts.any() or (group_weight * advantage).any())
    rate, decay = config.optimizer.learning_rate, config.optimizer.weight_decay
    optimizer = torch.optim.AdamW(learns.parameters(), lr=rate, weight_decay=decay)
    for _ in range(config.optimizer.num_epochs):
        logits = learns(features, dropout)
        clipped_loss, clip_fraction = group_loss(logits, keep, old, advantage, objective.clip)
        divergence, doubt = kl_to(logits, reference).mean(), entropy(logits).mean()
        guess = learns(seen, dropout)
        if labels is None:
            loss = branch_loss(guess, known.delta, known.weight) + group_weight * clipped_loss
        else:
            loss = label_loss(guess, *labels)
        loss = loss + objective.kl_weight * divergence - objective.entropy_bonus * doubt
        if not has_credit:
            break  # Adam would follow the entropy bonus alone, in steps of full size
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(learns.parameters(), 1.0)
        optimizer.step()
    return {
        "loss": float(loss.detach()),
        "entropy": float(doubt.detach()),
        "kl": float(divergence.detach()),
        "clip_fraction": float(clip_fraction),
    }
