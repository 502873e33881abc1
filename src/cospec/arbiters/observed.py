"""Wrapper of an arbiter that records features of every mismatch in the trace."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cospec.arbiters.guard import SelectiveArbiter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cospec.features import ScalarFeatures
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

    def is_foreign(self, prompt_ids: Sequence[int]) -> bool:
        """Return whether the arbiter that rules stands back from a prompt."""
        return isinstance(self.arbiter, SelectiveArbiter) and self.arbiter.is_foreign(prompt_ids)

    def rule(self, batch: MismatchBatch) -> Ruling:
        """Rule, and attach the features."""
        return replace(self.arbiter.rule(batch), features=self.features(batch))
