"""Types of training data: collected data, and data that a policy is updated on.

Axes in shapes: N decisions or branches, F features, P problems, G rollouts of a problem.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Self

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from cospec.backends.base import Rollout
    from cospec.tasks.base import Score
    from cospec.types import Completion, MismatchTrace


class Ending(NamedTuple):
    """A finished text and its score."""

    completion: Completion
    score: Score


class Baseline(NamedTuple):
    """Lossless decoding of one problem."""

    is_right: bool
    """True if the target alone is right."""
    num_forwards: int
    """Target forwards of lossless decoding."""

    @classmethod
    def of(cls, ending: Ending) -> Self:
        """Return the baseline of a lossless text.

        An answer of one token takes no forward beyond the prompt's in vLLM; it counts as one.
        """
        return cls(ending.score.correct, max(1, ending.completion.stats.num_target_forwards))


@dataclass(frozen=True, slots=True)
class Played:
    """One rollout of one problem, with its score and cost."""

    place: int
    """Index of the problem in the round."""
    rollout: Rollout
    score: Score
    cost: float
    """Target forwards over those of the lossless rollout."""
    decisions: list[MismatchTrace]
    """Mismatches that the policy decided: reached, and not settled by a safety rule."""

    @property
    def is_right(self) -> bool:
        """True if its answer is right."""
        return self.score.correct


@dataclass(frozen=True, slots=True)
class BranchData:
    """Decisions with the outcomes of both rulings: branches of a round, or replayed ones."""

    features: Tensor
    """(N, F)"""
    delta_reward: Tensor
    """Reward with the draft's token minus that with the target's: -1, 0 or 1, or a value between
    where answers that are not right get partial reward, (N,)."""
    delta_cost: Tensor
    """Cost with the draft's token minus that with the target's, (N,)."""
    is_harmless: Tensor
    """True where both branches have the same outcome by the method's own measure, (N,) bool."""

    def __len__(self) -> int:
        return self.features.shape[0]

    @property
    def columns(self) -> tuple[Tensor, ...]:
        """The tensors, in the order of the fields."""
        return self.features, self.delta_reward, self.delta_cost, self.is_harmless

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Concatenate parts, in order."""
        return cls(*map(torch.cat, zip(*(part.columns for part in parts), strict=True)))


class Decisions(NamedTuple):
    """Decisions of rollouts, with the credit that group advantages give them."""

    features: Tensor
    """(N, F)"""
    keep: Tensor
    """Rulings for the draft, (N,) bool."""
    advantage: Tensor
    """Advantage of each decision's rollout, (N,)."""


class KnownBranches(NamedTuple):
    """Branches of all rounds, priced and weighted by age."""

    features: Tensor
    """(N, F)"""
    delta: Tensor
    """Reward for the draft's token minus that for the target's, less the price of time, (N,)."""
    delta_reward: Tensor
    """The same without the price, (N,)."""
    is_harmless: Tensor
    """True where both branches have the same outcome, (N,) bool."""
    weight: Tensor
    """Weight of each decision in the loss, (N,)."""


class SolutionData(NamedTuple):
    """Decisions for which a text of known worth tells the right token."""

    features: Tensor
    """(N, F) float32"""
    delta: Tensor
    """Worth of the draft's token, (N,): the worth of the text (1 for a worked solution) where the
    draft's token is the text's, and minus that worth where the target's token is."""

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return the decisions of all parts, in order."""
        return cls(*map(torch.cat, zip(*parts, strict=True)))
