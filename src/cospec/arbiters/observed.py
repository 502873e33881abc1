"""Wrapper of an arbiter that records features of every mismatch in the trace."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cospec.arbiters.guard import SelectiveArbiter
from cospec.arbiters.learned import LearnedArbiter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cospec.features import ScalarFeatures
    from cospec.models import ModelPair
    from cospec.types import Arbiter, MismatchBatch, Needs, Ruling


@dataclass(frozen=True)
class Observed:
    """Rules as ``arbiter`` and records ``features`` of every mismatch in `MismatchTrace`."""

    arbiter: Arbiter
    features: ScalarFeatures

    @property
    def name(self) -> str:
        """Name of the arbiter that rules."""
        return self.arbiter.name

    @property
    def needs(self) -> Needs:
        """Union of the needs of both."""
        return self.arbiter.needs | self.features.needs

    def on(self, pair: ModelPair) -> Arbiter:
        """Return the same with the lookup tables of both on the device of a pair."""
        return Observed(placed(self.arbiter, pair), self.features.on(pair))

    def is_foreign(self, prompt_ids: Sequence[int]) -> bool:
        """Return whether the arbiter that rules stands back from a prompt."""
        return isinstance(self.arbiter, SelectiveArbiter) and self.arbiter.is_foreign(prompt_ids)

    def rule(self, batch: MismatchBatch) -> Ruling:
        """Rule, and attach the features."""
        return replace(self.arbiter.rule(batch), features=self.features(batch))


def placed(arbiter: Arbiter, pair: ModelPair) -> Arbiter:
    """Return an arbiter with its lookup tables on the device of a pair, if they are elsewhere.

    An arbiter from another process has them on the device that the pair had there.
    """
    if not isinstance(arbiter, LearnedArbiter | Observed):
        return arbiter
    if arbiter.features.kinds.device == pair.target.device:
        return arbiter
    return arbiter.on(pair)
