"""Metrics of rounds and evaluations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from cospec.arbiters.guard import mismatch_rate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from cospec.arbiters.policy import Policy
    from cospec.results import Json
    from cospec.rl.types import Baseline, BranchData, Ending, Played
    from cospec.types import Completion

_WON = 0.95


def round_metrics(played: Sequence[Played], branches: BranchData, base: Sequence[Baseline]) -> Json:
    """Return accuracy, cost and overrides of rollouts, and the outcomes of their branches."""
    decisions = [m for one in played for m in one.decisions]
    stats = [one.rollout.completion.stats for one in played]
    num_accepted = sum(s.num_accepted_tokens for s in stats)
    return {
        "accuracy": sum(one.is_right for one in played) / len(played),
        "accuracy_target": sum(one.is_right for one in base) / len(base),
        "relative_cost": sum(one.cost for one in played) / len(played),
        "override_rate": sum(m.keep_draft for m in decisions) / max(len(decisions), 1),
        "mean_acceptance_length": 1 + num_accepted / max(sum(s.num_drafts for s in stats), 1),
        "num_decisions": len(decisions),
        "num_branches": len(branches),
        "branches_that_differ": _share(branches.delta_reward != 0),
        "branches_for_the_draft": _share(branches.delta_reward > 0),
    }


def branch_gain(policy: Policy, branches: BranchData) -> float:
    """Count right answers that a policy wins at threshold 0.5, on branches that are new to it."""
    with torch.no_grad():
        keep = policy(branches.features) > 0
    return float(branches.delta_reward[keep].sum())


def tune_metrics(base: Sequence[Baseline], done: Sequence[Ending], cost_weight: float) -> Json:
    """Return accuracy, cost relative to lossless decoding, and reward of an evaluation."""
    won, lost = _differences(base, done)
    accuracy = sum(score.correct for _, score in done) / len(done)
    num_forwards = sum(completion.stats.num_target_forwards for completion, _ in done)
    cost = num_forwards / sum(one.num_forwards for one in base)
    return {
        "tune_accuracy": accuracy,
        "tune_accuracy_target": sum(one.is_right for one in base) / len(base),
        "tune_wins": len(won),
        "tune_losses": len(lost),
        "tune_relative_cost": cost,
        "tune_reward": accuracy - cost_weight * cost,
    }


def guard(base: Sequence[Baseline], done: Sequence[Ending]) -> float | None:
    """Return the `max_mismatch_rate` under which an arbiter keeps nearly all of its wins.

    At most one win in twenty is given up, and none if there are fewer: a foreign text, where the
    draft disagrees all the time, can be right by chance. If no text is won by an override, as with
    an arbiter that only saves time, the rate follows from the overrides in the texts that were not
    lost. Without any, it follows from the mismatches of all texts; foreign texts have more.

    Args:
        base: Lossless decoding of the problems.
        done: Answers to the same problems under the policy.

    Returns:
        The rate; None if no text has a mismatch.
    """
    won, lost = _differences(base, done)
    is_lost = {id(completion) for completion in lost}
    texts = [completion for completion, _ in done]
    rates = (
        _highest_rates(won)
        or _highest_rates([one for one in texts if id(one) not in is_lost])
        or _highest_rates(texts, of_overrides=False)
    )
    # "higher": interpolation would always give up the win with the highest rate.
    return float(torch.stack(rates).quantile(_WON, interpolation="higher")) if rates else None


def _highest_rates(texts: Sequence[Completion], *, of_overrides: bool = True) -> list[Tensor]:
    """Return the highest rate at an override, or at any mismatch, of each text that has one."""
    rates = []
    for completion in texts:
        found = [
            (i, m.position)
            for i, m in enumerate(completion.reached)
            if m.keep_draft or not of_overrides
        ]
        if found:
            rates.append(mismatch_rate(*torch.tensor(found).T).max())
    return rates


def _differences(
    base: Sequence[Baseline], done: Sequence[Ending]
) -> tuple[list[Completion], list[Completion]]:
    """Return the texts that only the policy got right, and those that only the target did."""
    pairs = [(end, was.is_right) for was, end in zip(base, done, strict=True)]
    won = [end.completion for end, was_right in pairs if end.score.correct and not was_right]
    lost = [end.completion for end, was_right in pairs if was_right and not end.score.correct]
    return won, lost


def _share(flags: Tensor) -> float:
    """Return the share that is true; 0 if there are none."""
    return int(flags.sum()) / max(len(flags), 1)
