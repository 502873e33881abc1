"""What a round of rollouts says of the policy that played it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from cospec.arbiters.learned import mismatch_rate
from cospec.bench.audit import reached

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from cospec.arbiters.policy import Policy
    from cospec.results import Json
    from cospec.rl.rollouts import BranchData, Played
    from cospec.types import Completion


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


def best_guard(done: Sequence[Completion], gains: Sequence[float]) -> float | None:
    """The `LearnedArbiter.max_mismatch_rate` that would have had most of what an arbiter won.

    A text with an override at a higher rate counts as lossless decoding of it, which is about what
    the guard would make of it. Of equals the lowest rate is taken.

    Args:
        done: Texts that it decoded without a guard.
        gains: Their rewards minus those of lossless decoding.

    Returns:
        The rate; None if nothing is won at any.
    """
    texts = []
    for completion, gain in zip(done, gains, strict=True):
        kept = [(i, m.position) for i, m in enumerate(reached(completion)) if m.keep_draft]
        if kept:
            texts.append((float(mismatch_rate(*torch.tensor(kept).T).max()), gain))
    best, guard, total = 0.0, None, 0.0
    for rate, gain in sorted(texts):  # of one rate the losses first, so that no win counts alone
        total += gain
        if total > best:
            best, guard = total, rate
    return guard


def _share(flags: Tensor) -> float:
    """How many are true, of all; 0 if there are none."""
    return int(flags.sum()) / max(len(flags), 1)
