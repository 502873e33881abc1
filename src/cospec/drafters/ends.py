"""The conditions that end drafted blocks, row by row, while a draft model runs."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from cospec.rulings import token_log_p

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from cospec.drafters.adaptive import Pace
    from cospec.sampling import Warper


class Ends:
    """The rows of a batch that draft on, and the conditions that end their blocks.

    Args:
        is_open: Rows that begin a block, (B,) bool.
        stops: Tokens that end each row's text, (B, S) padded by -1; None if they end no block.
        pace: Rule that ends blocks by cost; None for no such rule.
        bounds: By row, most tokens of its block, and the probability below which a token is its
            last; 0 for none.
        k: Most tokens of any block.
    """

    def __init__(
        self,
        is_open: Tensor,
        stops: Tensor | None,
        pace: Pace | None,
        bounds: Sequence[tuple[int, float]],
        k: int,
    ) -> None:
        self.is_open, self._stops, self._pace = is_open, stops, pace
        limits, confidences = zip(*bounds, strict=True)
        of = partial(torch.tensor, device=is_open.device)
        self._limits = of(limits) if min(limits) < k else None
        self._min_confidence = of(confidences) if any(confidences) else 0.0
        self._by_confidence = any(confidences) or pace is not None

    def after(self, place: int, ids: Tensor, logits: Tensor, warper: Warper | None) -> None:
        """Close rows that end with the tokens (B, 1) drawn from logits (B, V) at a place."""
        if self._limits is not None:
            self.is_open = self.is_open & (place + 1 < self._limits)
        if self._stops is not None:
            self.is_open = self.is_open & (ids != self._stops).all(dim=1)
        if not self._by_confidence:
            return
        confidence = token_log_p(logits, ids[:, 0]).exp()
        self.is_open = self.is_open & (confidence >= self._min_confidence)
        if self._pace is not None:
            self.is_open = self.is_open & self._pace.goes_on(confidence, warper)
