"""The end of a block by cost: one more token is drafted only while it is expected to pay.

In units of a target step over one token, one more drafted token costs m (its draft step, and what
it adds to the target's forward). It helps only if it and all before it stand. It pays if its
expected gain exceeds the tokens that decoding makes in the same time, that is while

    P(all drafted so far stand) * a > m * rate.

``a`` is the row's acceptance over its last tokens, with a weak prior so that a row that has stopped
drafting tries again. ``rate`` is the most tokens per target step that blocks of one length can give
at this acceptance, max over n of (1 + a + ... + a^n) / (1 + n m). In greedy decoding the
probability is the product of the draft's confidences. In sampling a confidence says little about
acceptance, so a power of ``a`` is used. If a <= m nothing is drafted, and the target decodes alone.

A row's decisions depend only on its own text and on m. They do not change which tokens are drafted,
only how many, so lossless decoding stays exact.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch

from cospec.types import Origin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from cospec.drafters.base import DraftRow
    from cospec.sampling import Warper

_NUM_LAST = 128
"""Number of last tokens of a row that count."""
_PRIOR = 4, 1
"""Accepted and rejected tokens that are assumed before the row's first."""


class Pace:
    """Ends the blocks of some rows by the cost and the gain of one more token.

    Args:
        rows: Rows as they were before the block.
        token_cost: m, in target steps.
        k: Most tokens of a block.
        device: Device of the models.
    """

    def __init__(
        self, rows: Sequence[DraftRow], token_cost: float, k: int, device: torch.device
    ) -> None:
        self._shares = [acceptance(row.origins) for row in rows]
        self._least = [least_reach(share, token_cost, k) for share in self._shares]
        self._device = device
        self._reach: Tensor | float = 1.0

    @property
    def pays(self) -> list[bool]:
        """True for each row for which a first token pays."""
        return [least < 1 for least in self._least]

    def goes_on(self, confidence: Tensor, warper: Warper | None) -> Tensor:
        """Return whether one more token pays after one of this probability, (B,) bool.

        Args:
            confidence: Probability that the draft gives to its last token, (B,).
            warper: Sampling settings of the rows; None if all are greedy.
        """
        shares, least = self._bounds
        stands = confidence
        if warper is not None:
            stands = torch.where(warper.is_greedy[:, 0, 0], confidence, shares)
        self._reach = self._reach * stands
        is_open: Tensor = self._reach > least
        return is_open

    @cached_property
    def _bounds(self) -> Tensor:
        """Acceptance and least reach of the rows, (2, B); not made where nothing is drafted."""
        return torch.tensor([self._shares, self._least], device=self._device)


def acceptance(origins: Sequence[Origin]) -> float:
    """Return the share of drafted tokens that stood among those that were decided, in (0, 1).

    Args:
        origins: Origins of a row's tokens so far.
    """
    last = origins[-_NUM_LAST:]
    accepted = last.count(Origin.MATCH) + last.count(Origin.OVERRIDE) + _PRIOR[0]
    return accepted / (accepted + last.count(Origin.CORRECTION) + _PRIOR[1])


def least_reach(share: float, token_cost: float, k: int) -> float:
    """Return the bound on P(all drafted so far stand) above which one more token pays.

    Args:
        share: Acceptance, a.
        token_cost: m.
        k: Most tokens of a block.
    """
    rate = tokens = power = 1.0
    for n in range(1, k + 1):
        power *= share
        tokens += power
        rate = max(rate, tokens / (1 + n * token_cost))
    return rate * token_cost / share
