"""Plain decoding with one model: one forward per token, nothing drafted, nothing ruled on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from cospec.engine.batch import Batch
from cospec.engine.walk import non_finite_error
from cospec.models.cache import CachedModel
from cospec.rulings import in_width
from cospec.sampling import Chance, draw
from cospec.types import Origin

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PlainBatch(Batch):
    """Rows decoded by one model alone.

    Args:
        model: The model.
        vocab_size: The target's number of tokens; a wider draft chooses among these alone.
        is_target: Whether it is the target, whose forwards are counted separately from the draft's.
    """

    def __init__(self, model: PreTrainedModel, vocab_size: int, *, is_target: bool) -> None:
        self._model, self._vocab_size = CachedModel(model), vocab_size
        super().__init__([self._model], num_ahead=1)
        self._is_target = is_target

    @torch.inference_mode()
    def step(self) -> None:
        """Decode one token of every row."""
        model = self._model
        model.reserve(len(self.rows), max(map(len, self.rows)))
        configs = [row.config for row in self.rows]
        chance = Chance.draw(configs, [row.generator for row in self.rows], 0, model.device)
        ids, starts = self._last_tokens(model.device)
        logits = model.read(ids, model.window(starts, 1)).logits
        logits = in_width(logits, self._vocab_size)  # (B, 1, V)
        top, chosen = logits.max(dim=-1)  # the maximum is NaN if any entry is
        if chance.warper is not None:
            chosen = draw(chance.warper.probs(logits), chance.numbers.target)
        packed = torch.cat([chosen, top.isfinite().long()], dim=1).tolist()
        error = None
        for row, (token, is_finite) in zip(self.rows, packed, strict=True):
            if not is_finite:  # the other rows go on with their token
                who = "target" if self._is_target else "draft"
                error = error or non_finite_error(row.index, len(row.generated), who)
                continue
            row.emit(token, Origin.BONUS)
            row.stats.num_drafts += self._is_target
            row.stats.num_draft_forwards += not self._is_target
        if error is not None:
            raise error
        self._save_finished()
