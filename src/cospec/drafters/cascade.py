"""The draft model speculates on itself: it reads guesses, and keeps what it would have written.

A forward over four tokens takes about as long as one over a single token. So the draft reads, with
its last token, a guess of what it will write next, and keeps the guess as far as it would have
chosen the same (greedily). Its tokens are those of one forward each, up to rounding. This is the
vertical cascade of Cascade Speculative Drafting (2312.11462): at its end stands a table of n-grams.

Guesses come from three places. A row that writes its answer again, after a correction in blocks as
long as an answer, guesses from the last one. With `DecodeConfig.cascade` every row guesses from
what the draft has written before (`Ngrams`), and from its own prompt and text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from cospec.drafters.ngram import look_up
from cospec.rulings import in_width, token_log_p
from cospec.types import Proposal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from cospec.drafters.base import DraftRow
    from cospec.models.cache import CachedModel

_MOST_READ = 4
"""Tokens that a row reads in one forward, its guess among them: 8-bit products of more rows take
longer."""
_LONGEST_MATCH = 3
"""Last tokens that are searched for."""
_MOST_TOKENS = 1 << 17
"""Tokens that are counted before `Ngrams` begins anew: some hundred megabytes at most."""


class Ngrams:
    """What followed the last one to three tokens in earlier drafts, counted."""

    def __init__(self) -> None:
        self._counts: dict[tuple[int, ...], dict[int, int]] = {}
        self._num_tokens = 0

    def add(self, before: list[int], tokens: list[int]) -> None:
        """Count drafted tokens, the first of which followed the end of `before`."""
        self._num_tokens += len(tokens)
        if self._num_tokens > _MOST_TOKENS:
            self._counts.clear()
            self._num_tokens = len(tokens)
        text = before[-_LONGEST_MATCH:]
        for token in tokens:
            for start in range(len(text)):
                counts = self._counts.setdefault(tuple(text[start:]), {})
                counts[token] = counts.get(token, 0) + 1
            text = [*text, token][-_LONGEST_MATCH:]

    def guess(self, text: list[int], most: int) -> list[int]:
        """Return up to `most` tokens that are likely next, each by the longest known end."""
        text, found = text[-_LONGEST_MATCH:], []
        while len(found) < most:
            ends = (self._counts.get(tuple(text[start:])) for start in range(len(text)))
            counts = next(filter(None, ends), None)
            if counts is None:
                break
            found.append(max(counts, key=counts.__getitem__))
            text = [*text, found[-1]][-_LONGEST_MATCH:]
        return found


def draft_guessing(
    model: CachedModel, writers: Sequence[Writer], vocab_size: int, min_confidence: float
) -> Proposal:
    """Propose what the model chooses greedily, until each writer's block ends.

    Args:
        model: The draft.
        writers: One a row.
        vocab_size: Width of the proposal's logits.
        min_confidence: Probability below which a token is a block's last; 0 for none.
    """
    steps: dict[str, list[Tensor]] = {"is_finite": [], "logits": [], "hidden": []}  # K of (B, ...)
    while any(writer.is_open for writer in writers):
        given = [writer.unread + writer.guess() if writer.is_open else [] for writer in writers]
        width = max(map(len, given))
        ids = torch.tensor([one + [0] * (width - len(one)) for one in given], device=model.device)
        starts = [writer.start for writer in writers]
        model.reserve(len(writers), end := max(starts) + width)
        window = model.window(torch.tensor(starts, device=model.device), width, end)
        lengths = torch.tensor([len(one) for one in given], device=model.device)
        is_given = torch.arange(width, device=model.device) < lengths[:, None]
        output = model.read(ids, window.only(is_given), width)
        logits = in_width(output.logits, vocab_size)  # (B, N, V)
        top, chosen = logits.max(dim=-1)  # the maximum is NaN if any entry is
        is_finite = top.isfinite()
        is_unsure = torch.zeros_like(is_finite)
        if min_confidence:
            is_unsure = ~(token_log_p(logits, chosen).exp() >= min_confidence)  # NaN is unsure
        found = {"is_finite": is_finite, "logits": logits, "hidden": output.hidden}
        tokens, ends = (chosen * is_finite).tolist(), is_unsure.tolist()
        for r, writer in enumerate(writers):
            for j, place in writer.accept(given[r], tokens[r], ends[r]):
                for name, each in found.items():
                    if each is not None:
                        _put(steps[name], j, r, each[r, place], len(writers))
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
    """A row's block while the draft writes it.

    Args:
        row: As before the block.
        num_read: Tokens at its beginning that the model has read.
        k: Most tokens of the block.
        ends_at_stop: Whether a token that ends the text is the block's last.
        answer: The row's text as the draft proposed it last; None if it has not.
        ngrams: Of earlier drafts; None to guess from the last answer alone.

    Attributes:
        drafted: The block's tokens so far.
        start: Position of the first token that the model has not read.
        is_open: Whether the block goes on.
        num_forwards: Forwards so far.
    """

    def __init__(
        self,
        row: DraftRow,
        num_read: int,
        k: int,
        *,
        ends_at_stop: bool,
        answer: list[int] | None,
        ngrams: Ngrams | None,
    ) -> None:
        self._text = row.prompt_ids + row.generated
        self._num_generated, self._length = len(row.generated), len(row)
        self._k, self._stop_ids = k, row.stop_ids if ends_at_stop else ()
        self._answer, self._ngrams = answer, ngrams
        self.start = min(num_read, self._length - 1)
        self.drafted: list[int] = []
        self.is_open, self.num_forwards = True, 0

    @property
    def unread(self) -> list[int]:
        """The tokens from `start` on."""
        return (self._text + self.drafted)[self.start :]

    def guess(self) -> list[int]:
        """Tokens that may follow; none where nothing like the end of the text is known."""
        most = min(_MOST_READ - len(self.unread), self._k - len(self.drafted) - 1)
        if most < 1:
            return []
        text, found = self._text + self.drafted, []
        if self._answer and (own := text[self._length - self._num_generated :]):
            found = look_up(self._answer + own[-_LONGEST_MATCH:], most, _LONGEST_MATCH, 1)
        if not found and self._ngrams is not None:
            found = self._ngrams.guess(text, most) or look_up(text, most, _LONGEST_MATCH, 1)
        return found

    def accept(
        self, given: list[int], chosen: list[int], is_last: list[bool]
    ) -> list[tuple[int, int]]:
        """Take the model's tokens as far as the guess was right.

        Args:
            given: What was read: the unread tokens, and the guess. Empty if the row was not read.
            chosen: The model's token after each, and padding.
            is_last: Whether that token ends the block.

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
            ends = is_last[place] or token in self._stop_ids
            self.is_open = not ends and len(self.drafted) < self._k
            place += 1
            if place == len(given) or given[place] != token:
                break
        self.start = self._length + len(self.drafted) - 1
        return taken
