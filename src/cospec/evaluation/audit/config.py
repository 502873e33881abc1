"""Settings of an audit, without torch: the command line reads its options off them."""

from __future__ import annotations

from dataclasses import dataclass

from cospec.config import DecodeConfig
from cospec.features import FeatureSpec  # noqa: TC001  # the command line resolves it


@dataclass(frozen=True)
class AuditConfig(DecodeConfig):
    """Settings of an audit: playing of paths and branches, and contents of their records."""

    arbiter: str = "lossless"
    """Arbiter that rules on the path and after the branches; lossless audits the target's path."""
    features: FeatureSpec = "scalar"
    """Features of each mismatch in the data set: scalar, or hidden (the models' states as well)."""
    branches_per_problem: int | None = None
    """Mismatches of a problem to play, drawn by seed; by default all."""
    oracle: bool = True
    """Search the oracle path as well, which costs about as much as all branches."""
    temperature: float = 0.0
    """Sampling temperature; 0 is greedy."""
    max_new_tokens: int | None = None
    """Most tokens of a solution; by default the task's."""
