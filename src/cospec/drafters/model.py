"""The draft model as a drafter: one forward a token, through a ragged cache of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from cospec.drafters.base import Drafter
from cospec.models.cache import CachedModel
from cospec.sampling import draw
from cospec.types import Needs, Origin, Proposal

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import ClassVar

    from torch import Tensor

    from cospec.config import DecodeConfig
    from cospec.drafters.base import DraftRow
    from cospec.models.pair import ModelPair
    from cospec.sampling import Chance


class ModelDrafter(CachedModel, Drafter):
    """Proposes what the draft of a pair chooses.

    It ends a row's block after a token of less than `DecodeConfig.draft_confidence_threshold`. Rows
    end each for itself, and the model runs until the last one has. Where a block ends has no part
    in what its tokens are, so that lossless decoding stays exact.
    """

    provides: ClassVar[Needs] = Needs.DRAFT
    has_model: ClassVar[bool] = True

    def __init__(self, pair: ModelPair, config: DecodeConfig, needs: Needs) -> None:
        """See `Drafter`.

        Raises:
            PairError: The pair has no draft.
        """
        super().__init__(pair.draft_model, Needs.DRAFT_HIDDEN in needs)
        self._k, self._min_confidence = config.k, config.draft_confidence_threshold
        self._target_vocab_size: int = pair.target.config.get_text_config().vocab_size

    def propose(self, rows: Sequence[DraftRow], chance: Chance) -> Proposal:
        """Choose k tokens for each row, or fewer where the model grows unsure."""
        end = max(map(len, rows)) + self._k
        self.reserve(len(rows), end)
        lengths = torch.zeros(len(rows), dtype=torch.int64, device=self.device)
        num_unread = max(map(_num_unread, rows))
        starts = torch.tensor([len(row) - num_unread for row in rows], device=self.device)
        window = self.window(starts, num_unread + self._k - 1, end)
        ids = torch.tensor([row.last_tokens(num_unread) for row in rows], device=self.device)
        is_open = torch.ones_like(lengths, dtype=torch.bool)
        drafted, logits, are_sound, probs, hidden = [], [], [], [], []
        column = 0
        for j in range(self._k):
            output = self.read(ids, window.columns(column, column + ids.shape[1]))
            column += ids.shape[1]
            step_logits = self._fit(output.logits[:, -1])  # (B, V)
            top, ids = step_logits.max(dim=-1, keepdim=True)  # NaN if any entry is
            is_sound = top.isfinite()
            if chance.warper is None:
                ids = ids * is_sound
            else:
                q = chance.warper.probs(torch.where(is_sound, step_logits, 0.0)[:, None])
                ids = draw(q, chance.numbers.draft[:, j : j + 1])
                # 0 after the end of a row's block: there the residual is p itself.
                probs.append(q * is_open[:, None, None] if self._min_confidence else q)
            drafted.append(ids)
            logits.append(step_logits)
            are_sound.append(is_sound)
            if output.hidden is not None:
                hidden.append(output.hidden[:, -1])
            lengths = lengths + is_open
            if self._min_confidence:
                is_open = is_open & (_confidence(step_logits, ids) >= self._min_confidence)
                if not is_open.any():
                    break
        return Proposal(
            token_ids=torch.cat(drafted, dim=1),
            lengths=lengths,
            is_finite=torch.cat(are_sound, dim=1),
            logits=logits,
            probs=torch.cat(probs, dim=1) if probs else None,
            hidden=hidden or None,
        )

    def _fit(self, logits: Tensor) -> Tensor:
        """The draft's logits in the target's width: what only one of them has is padding."""
        missing = self._target_vocab_size - logits.shape[-1]
        if missing == 0:
            return logits
        return torch.nn.functional.pad(logits, (0, missing), value=float("-inf"))


def _num_unread(row: DraftRow) -> int:
    """Tokens at the end of a row that the draft has yet to read: one, or after a bonus token two.

    The last token of a block is never read while it is drafted. If all of them stand, the bonus
    token comes after it and both are unread. Whether the rollout that a branch has just left ended
    so there is not recorded: reading a token twice does no harm.
    """
    is_new_branch = bool(row.generated) and not row.stats.num_drafts
    return 2 if is_new_branch or row.origins[-1:] == [Origin.BONUS] else 1


def _confidence(logits: Tensor, ids: Tensor) -> Tensor:
    """Probability of tokens (B, 1) by raw logits (B, V), (B,)."""
    logits = logits.float()
    return (logits.gather(1, ids)[:, 0] - logits.logsumexp(dim=1)).exp()
