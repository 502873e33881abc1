"""Rollouts on their way between processes: traces as tuples, and all features in one tensor.

A text has a hundred blocks and decisions, each with a small tensor. Pickled one by one they take
most of the time and bytes of a result.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch

from cospec.types import NO_FEATURES, MismatchTrace, StepTrace

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from cospec.backends.base import Rollout

_STEP = [f.name for f in fields(StepTrace)]
_PLACE = _STEP.index("mismatches")
_step_values = attrgetter(*_STEP)
_mismatch_values = attrgetter(*(f.name for f in fields(MismatchTrace) if f.name != "features"))

_Values = list[Any]
"""Fields of a `StepTrace` in order, with each mismatch as a tuple of its fields."""


@dataclass(frozen=True, slots=True)
class Packed:
    """Rollouts without handles; their traces as tuples, and all features in one tensor."""

    rollouts: list[Rollout]
    traces: list[list[_Values]]
    features: Tensor
    """Features of all mismatches that have some, in order, (N, F)."""
    has_features: list[bool]
    """True for each mismatch that has some."""


def pack(rollouts: Sequence[Rollout]) -> Packed:
    """Take traces and features out of rollouts, and drop their handles."""
    steps = [step for one in rollouts for step in one.completion.trace]
    found = [m.features for step in steps for m in step.mismatches]
    some = [features for features in found if len(features)]
    stacked = torch.stack(some) if some else torch.empty(0, 0)
    bare = [replace(o, completion=replace(o.completion, trace=[]), handle=None) for o in rollouts]
    traces = [[_values(step) for step in one.completion.trace] for one in rollouts]
    return Packed(bare, traces, stacked, [bool(len(features)) for features in found])


def unpack(packed: Packed) -> list[Rollout]:
    """Put the traces and features of rollouts back."""
    rows = iter(packed.features)
    found = iter([next(rows) if has else NO_FEATURES for has in packed.has_features])
    traces = [[_step(values, found) for values in trace] for trace in packed.traces]
    return [
        replace(one, completion=replace(one.completion, trace=trace))
        for one, trace in zip(packed.rollouts, traces, strict=True)
    ]


def _values(step: StepTrace) -> _Values:
    """Return a block as plain values, without features."""
    values = list(_step_values(step))
    values[_PLACE] = list(map(_mismatch_values, step.mismatches))
    return values


def _step(values: _Values, features: Iterator[Tensor]) -> StepTrace:
    """Make a block from plain values, with the next features."""
    whole = values.copy()
    whole[_PLACE] = tuple(MismatchTrace(*(*m, next(features))) for m in values[_PLACE])
    return StepTrace(*whole)
