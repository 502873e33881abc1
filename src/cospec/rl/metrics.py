"""What a round of rollouts says of the policy that played it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from cospec.results import Json
    from cospec.rl.rollouts import BranchData, Played


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


def _share(flags: Tensor) -> float:
    """How many are true, of all; 0 if there are none."""
    return int(flags.sum()) / max(len(flags), 1)
