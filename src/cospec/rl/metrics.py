"""What a round of rollouts says of the policy that played it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from cospec.arbiters.learned import mismatch_rate
from cospec.evaluation.audit.auditor import reached

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from cospec.arbiters.policy import Policy
    from cospec.results import Json
    from cospec.rl.rollouts import BranchData, Played
    from cospec.types import Completion

_WON = 0.95


def round_metrics(played: Sequence[Played], branches: BranchData) -> Json:
    """Accuracy, cost and overrides of the rollouts, and what the branches found.

    Args:
        played: All rollouts of a round.
        branches: The decisions of it that were played both ways.
    """
    decisions = [m for one in played for m in one.decisions]
    stats = [one.rollout.completion.stats for one in played]
    num_accepted = sum(s.num_accepted_tokens for s in stats)
    return {
        "accuracy": sum(one.is_right for one in played) / len(played),
        "relative_cost": sum(one.cost for one in played) / len(played),
        "override_rate": sum(m.keep_draft for m in decisions) / max(len(decisions), 1),
        "mean_acceptance_length": 1 + num_accepted / max(sum(s.num_drafts for s in stats), 1),
        "num_decisions": len(decisions),
        "num_branches": len(branches),
        "branches_that_differ": _share(branches.delta_right != 0),
        "branches_for_the_draft": _share(branches.delta_right > 0),
    }


def branch_gain(policy: Policy, branches: BranchData) -> float:
    """Right answers won by a policy at threshold 0.5, on branches that are new to it."""
    with torch.no_grad():
        keep = policy(branches.features) > 0
    return float(branches.delta_right[keep].sum())


def guard(won: Iterable[Completion]) -> float | None:
    """The `LearnedArbiter.max_mismatch_rate` under which an arbiter wins nearly all that it wins.

    One in twenty is given up: among foreign texts, where the draft disagrees all the time, one can
    come out right by chance.

    Args:
        won: Texts that it got right and the target does not.

    Returns:
        The rate; None if there is no such text with an override.
    """
    rates = []
    for completion in won:
        kept = [(i, m.position) for i, m in enumerate(reached(completion)) if m.keep_draft]
        if kept:
            rates.append(mismatch_rate(*torch.tensor(kept).T).max())
    return float(torch.stack(rates).quantile(_WON)) if rates else None


def _share(flags: Tensor) -> float:
    """How many are true, of all; 0 if there are none."""
    return int(flags.sum()) / max(len(flags), 1)
