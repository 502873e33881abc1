"""Credit of rollouts: rewards, advantages, and the decisions that share them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from cospec.rl.losses import baseline_advantages, group_advantages, has_spread
from cospec.rl.methods import METHODS
from cospec.rl.types import Decisions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cospec.results import Json
    from cospec.rl.config import TrainConfig
    from cospec.rl.types import Played


class Credit(NamedTuple):
    """Credit of a round's rollouts."""

    decisions: Decisions | None
    """None if the rollouts had no decision."""
    running_reward: float | None
    """Running mean of rewards, for methods that have one."""
    metrics: Json


def assign_credit(
    played: Sequence[Played], config: TrainConfig, running_reward: float | None
) -> Credit:
    """Give each decision the advantage of its rollout.

    The reward of a rollout is 1 if it is right (else the share that its score gives), minus the
    price of its cost.

    Args:
        played: Rollouts, group by group.
        config: Price of cost, size of groups, and method.
        running_reward: Running mean of rewards in earlier rounds, for methods that have one.
    """
    price = config.objective.cost_weight
    partial = config.objective.partial_reward
    rewards = [one.score.value(partial) - price * one.cost for one in played]
    metrics: Json = {"reward": sum(rewards) / len(rewards)}
    rewards_P_G = torch.tensor(rewards).view(-1, config.rollouts.group_size)
    if METHODS[config.method].has_running_baseline:
        advantages, running_reward = baseline_advantages(rewards_P_G, running_reward)
    else:
        advantages = group_advantages(rewards_P_G)
    rows = [
        (m.features, m.keep_draft, advantage)
        for one, advantage in zip(played, advantages.flatten().tolist(), strict=True)
        for m in one.decisions
    ]
    if not rows:
        return Credit(None, running_reward, metrics)
    features, keep, advantage = zip(*rows, strict=True)
    decisions = Decisions(torch.stack(features), torch.tensor(keep), torch.tensor(advantage))
    metrics["frac_reward_zero_std"] = 1 - float(has_spread(rewards_P_G).float().mean())
    return Credit(decisions, running_reward, metrics)
