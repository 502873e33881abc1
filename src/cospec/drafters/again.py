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
from cospec.types import Proposal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
    k: int,
    fit: Callable[[Tensor], Tensor],
) -> Proposal:
    """Propose what the model chooses greedily, up to the end of the text.

    Args:
        model: The draft.
        rows: As before the block.
        num_read: Tokens at the beginning of each that the model has read.
        answers: Each row's text as the draft proposed it last; it may be empty.
        k: Most tokens of a block.
        fit: Gives logits (..., V) the width that proposals have.
    """
    writers = [Writer(*each, k) for each in zip(rows, num_read, answers, strict=True)]
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
        logits = fit(output.logits)  # (B, N, V)
        top, chosen = logits.max(dim=-1)  # the maximum is NaN if any entry is
        is_sound = top.isfinite()
        tokens, sound = (chosen * is_sound).tolist(), is_sound.tolist()
        for r, writer in enumerate(writers):
            for place in writer.accept(given[r], tokens[r]):
                hidden = None if output.hidden is None else output.hidden[r, place]
                writer.keep(sound[r][place], logits[r, place], hidden)
    return _proposal(writers, model.device)


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
        self.is_sound: list[bool] = []
        self.logits: list[Tensor] = []
        self.hidden: list[Tensor] = []

    @property
    def unread(self) -> list[int]:
        """The tokens from `start` on."""
        if self.drafted:
            return self.drafted[-1:]
        return self._row.last_tokens(self._length - self.start)

    def guess(self) -> list[int]:
        """Tokens that may follow: none where the last answer has nothing like the end of this."""
        most = min(_LONGEST_GUESS, self._k - len(self.drafted) - 1)
        text = self._row.generated + self.drafted
        if most < 1 or not self._answer or not text:
            return []
        return look_up(self._answer + text[-_LONGEST_MATCH:], most, _LONGEST_MATCH, 1)

    def accept(self, given: list[int], chosen: list[int]) -> range:
        """Take what the model chose after the tokens it was given; return the places of that.

        Args:
            given: What is unread, and the guess.
            chosen: The model's token after each, and padding.
        """
        if not given:
            return range(0)
        self.num_forwards += 1
        first = place = len(self.unread) - 1
        while True:
            token = chosen[place]
            self.drafted.append(token)
            place += 1
            self.is_open = token not in self._row.stop_ids and len(self.drafted) < self._k
            if not self.is_open or place == len(given) or given[place] != token:
                break
        self.start = self._length + len(self.drafted) - 1
        return range(first, place)

    def keep(self, is_sound: bool, logits: Tensor, hidden: Tensor | None) -> None:
        """Keep what a token was chosen from."""
        self.is_sound.append(is_sound)
        self.logits.append(logits)
        if hidden is not None:
            self.hidden.append(hidden)


def _proposal(writers: Sequence[Writer], device: torch.device) -> Proposal:
    """All rows' answers; what comes after the end of one repeats its last entry."""
    width = max(len(writer.drafted) for writer in writers)

    def table(rows: Sequence[Sequence[int]]) -> Tensor:  # (B, K)
        padded = [[*row, *[row[-1]] * (width - len(row))] for row in rows]
        return torch.tensor(padded, device=device)

    def steps(rows: Sequence[list[Tensor]]) -> list[Tensor]:  # K of (B, X)
        return [torch.stack([row[min(j, len(row) - 1)] for row in rows]) for j in range(width)]

    hidden = [writer.hidden for writer in writers]
    return Proposal(
        token_ids=table([writer.drafted for writer in writers]),
        lengths=torch.tensor([len(writer.drafted) for writer in writers], device=device),
        is_finite=table([writer.is_sound for writer in writers]).bool(),
        logits=steps([writer.logits for writer in writers]),
        hidden=steps(hidden) if all(hidden) else None,
        num_forwards=torch.tensor([writer.num_forwards for writer in writers], device=device),
    )
