"""Writing an answer again after a correction: what the last one had is read, not written.

Where blocks are as long as an answer, the target's first correction comes when the draft has
written its whole answer. What it writes next has much of that in it. So it guesses its next tokens
from its last answer, reads them in one forward, and keeps those that it would have written: the
draft speculates on itself, greedily. Its tokens are those of one forward each, up to rounding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from cospec.drafters.ngram import look_up
from cospec.rulings import in_width
from cospec.types import Proposal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from cospec.drafters.base import DraftRow
    from cospec.models.cache import CachedModel

_LONGEST_GUESS = 4
_LONGEST_MATCH = 3
"""Last tokens of the new answer that are searched for in the last one."""


def draft_again(
    model: CachedModel,
    rows: Sequence[DraftRow],
    num_read: Sequence[int],
    answers: Sequence[list[int]],
    limits: Sequence[int],
    vocab_size: int,
) -> Proposal:
    """Propose what the model chooses greedily, up to the end of the text.

    Args:
        model: The draft.
        rows: As before the block.
        num_read: Tokens at the beginning of each that the model has read.
        answers: Each row's text as the draft proposed it last; it may be empty.
        limits: Most tokens of each row's block.
        vocab_size: Width of the proposal's logits.
    """
    writers = [Writer(*each) for each in zip(rows, num_read, answers, limits, strict=True)]
    steps: dict[str, list[Tensor]] = {"is_finite": [], "logits": [], "hidden": []}  # K of (B, ...)
    while any(writer.is_open for writer in writers):
        given = [writer.unread + writer.guess() if writer.is_open else [] for writer in writers]
        width = max(map(len, given))
        ids = torch.tensor([one + [0] * (width - len(one)) for one in given], device=model.device)
        starts = [writer.start for writer in writers]
        model.reserve(len(rows), end := max(starts) + width)
        window = model.window(torch.tensor(starts, device=model.device), width, end)
        lengths = torch.tensor([len(one) for one in given], device=model.device)
        is_given = torch.arange(width, device=model.device) < lengths[:, None]
        output = model.read(ids, window.only(is_given), width)
        logits = in_width(output.logits, vocab_size)  # (B, N, V)
        top, chosen = logits.max(dim=-1)  # the maximum is NaN if any entry is
        is_finite = top.isfinite()
        found = {"is_finite": is_finite, "logits": logits, "hidden": output.hidden}
        tokens = (chosen * is_finite).tolist()
        for r, writer in enumerate(writers):
            for j, place in writer.accept(given[r], tokens[r]):
                for name, each in found.items():
                    if each is not None:
                        _put(steps[name], j, r, each[r, place], len(rows))
    return Proposal(
        token_ids=_table([writer.drafted for writer in writers], model.device),
        lengths=torch.tensor([len(writer.drafted) for writer in writers], device=model.device),
        is_finite=torch.stack(steps["is_finite"], dim=1),
        logits=steps["logits"],
        hidden=steps["hidden"] or None,
        num_forwards=torch.tensor([one.num_forwards for one in writers], device=model.device),
    )


def _put(steps: list[Tensor], j: int, row: int, value: Tensor, num_rows: int) -> None:
    """Store a row's value of place j; of rows that have none there it is 0, or True."""
    if j == len(steps):
        fill = value.dtype == torch.bool
        steps.append(torch.full_like(value, fill).expand(num_rows, *value.shape).clone())
    steps[j][row] = value


def _table(rows: Sequence[list[int]], device: torch.device) -> Tensor:
    """Lists of different length as (B, K) int64, padded with 0."""
    width = max(map(len, rows))
    return torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)


class Writer:
    """A row's new answer.

    Attributes:
        drafted: Its tokens.
        start: Position of the first token that the model has not read.
        is_open: Whether it goes on.
        num_forwards: Forwards so far.
    """

    def __init__(self, row: DraftRow, num_read: int, answer: list[int], k: int) -> None:
        self._row, self._answer, self._k = row, answer, k
        self._length = len(row)
        self.start = min(num_read, self._length - 1)
        self.drafted: list[int] = []
        self.is_open, self.num_forwards = True, 0

    @property
    def unread(self) -> list[int]:
        """The tokens from `start` on."""
        return self.drafted[-1:] or self._row.last_tokens(self._length - self.start)

    def guess(self) -> list[int]:
        """Tokens that may follow: none where the last answer has nothing like the end of this."""
        most = min(_LONGEST_GUESS, self._k - len(self.drafted) - 1)
        text = self._row.generated + self.drafted
        if most < 1 or not self._answer or not text:
            return []
        return look_up(self._answer + text[-_LONGEST_MATCH:], most, _LONGEST_MATCH, 1)

    def accept(self, given: list[int], chosen: list[int]) -> list[tuple[int, int]]:
        """Take the model's tokens as far as the guess was right.

        Args:
            given: What was read: the unread tokens, and the guess. Empty if the row was not read.
            chosen: The model's token after each, and padding.

        Returns:
            Of each token that was taken its place in the block, and where in `chosen` it is.
        """
        if not given:
            return []
        self.num_forwards += 1
        place, taken = len(self.unread) - 1, []
        while self.is_open:
            token = chosen[place]
            taken.append((len(self.drafted), place))
            self.drafted.append(token)
            self.is_open = token not in self._row.stop_ids and len(self.drafted) < self._k
            place += 1
            if place == len(given) or given[place] != token:
                break
        self.start = self._length + len(self.drafted) - 1
        return taken
