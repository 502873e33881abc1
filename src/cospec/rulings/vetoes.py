"""The safety rules: rulings for the draft that do not count, whatever the arbiter says.

A score that is not finite rules for the target. A token to which the target gives probability 0 is
never kept, nor is any in the exact prefix, nor by default one that would end the text or keep it
from ending.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


class Veto(enum.IntEnum):
    """Reason why a ruling for the draft does not count; the first, if there are several."""

    NONE = 0
    FORBIDDEN = 1
    """The target gives the drafted token probability 0; a sound score may be infinite there."""
    EXACT_PREFIX = 2
    """No override is allowed there: in the first ``exact_prefix_tokens``, after
    ``max_corrections``, or for a prompt that the arbiter stands back from."""
    STOP_TOKEN = 3
    """One of the two tokens is a stop token."""
    NON_FINITE = 4
    """The arbiter's score is NaN or infinite."""
    NO_DRAFT = 5
    """The arbiter needs the draft's output, and no model drafted the token: it was not asked."""


def find_vetoes(
    score: Tensor | None,
    *,
    draft_logit: Tensor,
    is_cut: Tensor | None,
    is_exact: Tensor,
    is_stop: Tensor,
) -> Tensor:
    """Return the veto that a ruling for the draft meets at each mismatch, (M,) int64.

    Args:
        score: Number that the arbiter's ruling is based on, (M,) float, if it gives one.
        draft_logit: The target's raw logit of the draft's token, (M,).
        is_cut: Whether truncation removes it from the target's distribution, (M,) bool.
        is_exact: Whether its place in the text is to stay lossless, (M,) bool.
        is_stop: Whether one of the two tokens ends the text and may not be overridden, (M,) bool.
    """
    is_impossible = draft_logit == float("-inf")
    if is_cut is not None:
        is_impossible = is_impossible | is_cut
    veto = torch.zeros_like(is_stop, dtype=torch.int64)
    if score is not None:
        veto = veto.masked_fill(~score.isfinite(), Veto.NON_FINITE)
    veto = veto.masked_fill(is_stop, Veto.STOP_TOKEN).masked_fill(is_exact, Veto.EXACT_PREFIX)
    return veto.masked_fill(is_impossible, Veto.FORBIDDEN)
