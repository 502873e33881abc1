"""Rollouts on their way between processes: all features in one tensor.

Each decision holds a small tensor. Pickled one by one they take most of the time and bytes of a
result; stacked they take 4 bytes a number.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from cospec.types import NO_FEATURES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from cospec.backends.base import Rollout
    from cospec.types import MismatchTrace


@dataclass(frozen=True, slots=True)
class Packed:
    """Rollouts without handles and features, and the features apart."""

    rollouts: list[Rollout]
    features: Tensor
    """Features of all mismatches that have some, in order, (N, F)."""
    has_features: list[bool]
    """Whether each mismatch has some."""


def pack(rollouts: Sequence[Rollout]) -> Packed:
    """Take the features out of rollouts, and their handles away."""
    found = [m.features for one in rollouts for m in _mismatches(one)]
    some = [features for features in found if len(features)]
    bare = [_with_features(one, [NO_FEATURES] * len(_mismatches(one))) for one in rollouts]
    stacked = torch.stack(some) if some else torch.empty(0, 0)
    return Packed(bare, stacked, [bool(len(features)) for features in found])


def unpack(packed: Packed) -> list[Rollout]:
    """Put the features of rollouts back."""
    rows = iter(packed.features)
    found = iter([next(rows) if has else NO_FEATURES for has in packed.has_features])
    return [_with_features(one, [next(found) for _ in _mismatches(one)]) for one in packed.rollouts]


def _mismatches(rollout: Rollout) -> list[MismatchTrace]:
    return [m for step in rollout.completion.trace for m in step.mismatches]


def _with_features(rollout: Rollout, features: Sequence[Tensor]) -> Rollout:
    """Return a rollout without handle and with other features."""
    given = iter(features)
    trace = [
        replace(step, mismatches=tuple(replace(m, features=next(given)) for m in step.mismatches))
        for step in rollout.completion.trace
    ]
    return replace(rollout, completion=replace(rollout.completion, trace=trace), handle=None)
