"""Wrapper of an arbiter that records features of every mismatch in the trace."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

    def rule(self, batch: MismatchBatch) -> Ruling:
        """Rule, and attach the features."""
        return replace(self.arbiter.rule(batch), features=self.features(batch))
