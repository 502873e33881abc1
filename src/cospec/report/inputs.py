"""The shapes that the report shows, whatever file they come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from cospec.results import Json

KINDS = ("exact", "rule", "learned", "random", "ceiling", "reference")
"""Kinds of arms."""


@dataclass(frozen=True, slots=True)
class Cell:
    """Arms on one task with one setting: a tab of the report."""

    title: str
    about: str
    """Problems, block length, batch size, device."""
    arms: list[Json]
    """Entries of `cospec.evaluation.summary.summarize`, each with its ``kind``."""
    source: str
    notes: list[str] = field(default_factory=list)
    """Sentences on the cell that come from the file."""
    tuning: list[Json] = field(default_factory=list)
    """Settings that were tried for each arm on the tune split, and the choice."""


@dataclass(frozen=True, slots=True)
class Texts:
    """The answers of a file, as far as it has their texts."""

    source: str
    rows: dict[str, dict[str, Json]]
    """Answers by arm and problem, each with ``id``, ``text`` and ``correct``."""


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Share of blocks kept up to each position, by arm."""

    title: str
    rates: dict[str, list[float]]
    """Shares by arm; entry i is that of the blocks in which more than i drafted tokens stood."""
    setting: str = ""
    """Settings that runs of `cospec generate` must share to be shown together."""


@dataclass(frozen=True, slots=True)
class AuditResult:
    """The summary of an audit."""

    title: str
    summary: Json


@dataclass(frozen=True, slots=True)
class Mismatches:
    """Mismatches by two features, with the outcome or ruling of each."""

    title: str
    gap_p: NDArray[np.float64]
    """log p of the target's token minus log p of the draft's, (N,)."""
    q_draft: NDArray[np.float64]
    """The draft's probability of its own token, (N,)."""
    labels: list[str]
    """Label of each mismatch: the outcome of its branches, or the ruling."""


@dataclass(frozen=True, slots=True)
class Reliability:
    """Comparison of a trained arbiter's scores with outcomes."""

    title: str
    bins: list[Json]
    error: float | None
    """Expected calibration error."""


@dataclass(frozen=True, slots=True)
class Training:
    """The rounds of a training."""

    title: str
    rounds: list[Json]


@dataclass(frozen=True, slots=True)
class ResultSource:
    """A file that the report is made from."""

    name: str
    command: str
    argv: list[str]
    provenance: Json


@dataclass
class Inputs:
    """All results that were found."""

    cells: list[Cell] = field(default_factory=list)
    texts: list[Texts] = field(default_factory=list)
    acceptances: list[Acceptance] = field(default_factory=list)
    audits: list[AuditResult] = field(default_factory=list)
    mismatches: list[Mismatches] = field(default_factory=list)
    reliabilities: list[Reliability] = field(default_factory=list)
    trainings: list[Training] = field(default_factory=list)
    traces: list[Json] = field(default_factory=list)
    """Rows of `cospec.evaluation.trace.trace_problems`."""
    sources: list[ResultSource] = field(default_factory=list)
    passed_over: list[Path] = field(default_factory=list)
