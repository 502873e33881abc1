"""A search before the draft model, which runs only where nothing was found.

The choice between the two depends only on the text before a row's block, never on the block's
random numbers, so sampled lossless decoding stays exact. Looked-up tokens have no draft
distribution (`Proposal.num_forwards` is 0): an arbiter that needs one is not asked about them. The
model reads them when it next drafts for the row.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch.nn.functional import pad

from cospec.drafters.model import ModelDrafter
from cospec.drafters.ngram import NgramDrafter
from cospec.drafters.suffix import SuffixDrafter
from cospec.types import Proposal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from cospec.config import DecodeConfig
    from cospec.drafters.base import DraftRow
    from cospec.drafters.lookup import LookupDrafter
    from cospec.models.pair import ModelPair
    from cospec.sampling import Chance
    from cospec.types import Needs

_MOST_UNREAD = 32
"""Most unread tokens that a row reads with its block; more are read beforehand in a separate
forward."""


class ChainedDrafter(ModelDrafter):
    """Looks up the end of each row, and runs the draft model for rows where it is new."""

    first: ClassVar[type[LookupDrafter]]
    """Drafter that searches before the model runs."""

    def __init__(self, pair: ModelPair, config: DecodeConfig, needs: Needs) -> None:
        """See `Drafter`."""
        super().__init__(pair, config, needs)
        self.ends_early = True
        self._waits = False  # a row whose search fails catches up before its cost is asked
        # The threshold applies to the model's confidence, which a search does not have.
        self._first = self.first(pair, config.with_options(draft_confidence_threshold=0.0), needs)

    def propose(self, rows: Sequence[DraftRow], chance: Chance) -> Proposal:
        """Propose the tokens that were found for a row, or else the model's."""
        for r, row in enumerate(rows):  # the model may not run before the row grows
            self.forget_drafted(r, len(row.drafted) - 1)
        found = self._first.propose(rows, chance)
        by_model = found.lengths == 0
        is_new = by_model.tolist()
        if not any(is_new):
            return replace(found, num_forwards=torch.zeros_like(found.lengths))
        num_before = torch.tensor(self._catch_up(rows, is_new), device=self.device)
        chosen = self._draft(rows, chance, is_new)
        self._clear_unsound(chosen.is_finite, is_new)
        return _merged(chosen, found, by_model, num_before)

    def _catch_up(self, rows: Sequence[DraftRow], is_wanted: Sequence[bool]) -> list[int]:
        """Read the tokens that the model missed while searches drafted, all but each row's last.

        Read together with the few tokens of other rows, they would be mostly padding.

        Returns:
            Number of forwards for each row.
        """
        rows = [row.drafted for row in rows]
        missed = [
            (r, self._num_read[r], len(row) - 1)
            for r, row in enumerate(rows)
            if is_wanted[r] and len(row) - self._num_read[r] > _MOST_UNREAD
        ]
        if missed:
            self.reserve(len(rows), max(map(len, rows)) + self._k)
            texts = [row.prompt_ids + row.generated for row in rows]
            self._read_spans(texts, 0, missed)
        num_forwards = [0] * len(rows)
        for r, _, end in missed:
            self._num_read[r], num_forwards[r] = end, 1
        return num_forwards


class NgramFirst(ChainedDrafter):
    """Prompt lookup before the draft model."""

    first = NgramDrafter


class SuffixFirst(ChainedDrafter):
    """The longest suffix before the draft model."""

    first = SuffixDrafter


def _merged(chosen: Proposal, found: Proposal, by_model: Tensor, num_before: Tensor) -> Proposal:
    """Merge the model's proposal for some rows with the search's for the others.

    Args:
        chosen: Proposal of the model.
        found: Proposal of the search.
        by_model: Mask of the rows that the model drafts, (B,) bool.
        num_before: Forwards of each row before its block, (B,) int64.
    """
    k = max(chosen.token_ids.shape[1], found.token_ids.shape[1])

    def merged(ours: Tensor, theirs: Tensor) -> Tensor:  # (B, K) or (B, K, V) each
        value = int(ours.dtype == torch.bool)  # missing tokens count as finite
        a, b = (
            pad(each, (0, 0) * (each.ndim - 2) + (0, k - each.shape[1]), value=value)
            for each in (ours, theirs)
        )
        return torch.where(by_model.view(-1, *[1] * (ours.ndim - 1)), a, b)

    def steps(given: list[Tensor] | None) -> list[Tensor] | None:
        """One entry per place; those of rows that were found are never used."""
        return given and given + given[-1:] * (k - len(given))

    forwards = chosen.lengths if chosen.num_forwards is None else chosen.num_forwards
    probs = None
    if chosen.probs is not None and found.probs is not None:
        probs = merged(chosen.probs, found.probs)
    return Proposal(
        token_ids=merged(chosen.token_ids, found.token_ids),
        lengths=torch.where(by_model, chosen.lengths, found.lengths),
        is_finite=merged(chosen.is_finite, found.is_finite),
        logits=steps(chosen.logits),
        probs=probs,
        hidden=steps(chosen.hidden),
        num_forwards=torch.where(by_model, forwards + num_before, 0),
    )
