"""The guard of a trained arbiter: it stands back from texts unlike those of its training.

Where the draft disagrees with the target much more often than in training, a policy may be sure of
what it knows nothing of, and none of its features would show it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from cospec.types import MismatchBatch

_HEAD_START = 5.0  # tokens, so that a mismatch at the start of a text is nothing unusual


def mismatch_rate(num_mismatches: Tensor, positions: Tensor) -> Tensor:
    """Return mismatches a token in a text up to each of its mismatches, (M,) float32.

    Args:
        num_mismatches: Before each, (M,).
        positions: Index of each in the text, (M,).
    """
    return (num_mismatches + 1) / (positions + _HEAD_START)


def guarded(probability: Tensor, batch: MismatchBatch, max_mismatch_rate: float) -> Tensor:
    """Return probabilities, (M,), with 0 where a text has more mismatches than the rate allows."""
    rate = mismatch_rate(batch.num_mismatches, batch.positions)
    return probability.masked_fill(rate > max_mismatch_rate, 0.0)
