"""The draft model speculates on itself: it reads guesses and keeps those it would have written.

A forward over four tokens takes about as long as one over a single token. So the draft reads, with
its last token, a guess of what it will write next, and keeps the guess as far as it would have
chosen or drawn the same. Its tokens are the same as with one forward each, up to rounding: a
sampled token is drawn with the random number of its place, whatever was guessed. This is the
vertical cascade of Cascade Speculative Drafting (2312.11462): at its end stands a table of n-grams.

Guesses come from three places. A row that writes its answer again, after a correction in blocks as
long as an answer, guesses from the last one. With `DecodeConfig.cascade` every row guesses from the
draft's earlier output (`Ngrams`), and from its own prompt and text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from cospec.drafters.ngram import look_up
from cospec.rulings import in_width, token_log_p
from cospec.sampling import draw
from cospec.types import Proposal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from cospec.models.cache import CachedModel, Output
    from cospec.sampling import Chance

_MOST_READ = 4
"""Most tokens that a row reads in one forward, including its guess."""
_MOST_ROWS = 24
"""Most tokens that a CPU reads in one forward: each further one takes extra time."""
_LONGEST_MATCH = 3
"""Most last tokens that are searched for."""
_MOST_TOKENS = 1 << 17
"""Tokens that are counted before `Ngrams` begins anew: about a hundred megabytes at most."""


def most_read(num_rows: int, device: torch.device) -> int:
    """Return how many tokens each row should read in a forward; 1 if guesses do not pay."""
    most = _MOST_ROWS // num_rows if device.type == "cpu" else _MOST_READ
    return max(1, min(_MOST_READ, most))


class Ngrams:
    """Counts of the tokens that followed one to three others in earlier drafts."""

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
        """Return up to `most` tokens that are likely next, each from the longest known end."""
        text = text[-_LONGEST_MATCH:]
        found: list[int] = []
        while len(found) < most:
            ends = (self._counts.get(tuple(text[start:])) for start in range(len(text)))
            counts = next(filter(None, ends), None)
            if counts is None:
                break
            found.append(max(counts, key=counts.__getitem__))
            text = [*text, found[-1]][-_LONGEST_MATCH:]
        return found


def draft_guessing(
    model: CachedModel,
    writers: Sequence[Writer],
    chance: Chance,
    vocab_size: int,
    *,
    keep_logits: bool = True,
) -> Proposal:
    """Propose the tokens that the model chooses or draws, until each writer's block ends.

    Args:
        model: The draft.
        writers: One per row, at least one of them open; nothing is read for closed ones.
        chance: Distributions and random numbers of the rows.
        vocab_size: Width of the proposal's logits.
        keep_logits: Whether the proposal has logits.
    """
    steps: dict[str, list[Tensor]] = {  # K of (B, ...) each
        name: [] for name in ("is_finite", "logits", "hidden", "probs")
    }
    confidences = [writer.min_confidence for writer in writers]
    least = torch.tensor(confidences, device=model.device)[:, None]  # (B, 1)
    behind = [w.unread[:-1] if w.is_open and len(w.unread) > _MOST_READ else [] for w in writers]
    if any(behind):  # searches drafted for long; no logits are wanted there
        _read(model, writers, behind, 1)
        for writer, ids in zip(writers, behind, strict=True):
            writer.skip(len(ids))
    while any(writer.is_open for writer in writers):
        given = [writer.unread + writer.guess() if writer.is_open else [] for writer in writers]
        width = max(map(len, given))
        output = _read(model, writers, given, width)
        logits = in_width(output.logits, vocab_size)  # (B, N, V)
        chosen, is_finite, probs = _choose(logits, writers, chance)
        is_unsure = torch.zeros_like(is_finite)
        if any(confidences):
            is_unsure = ~(token_log_p(logits, chosen).exp() >= least)  # NaN is unsure
        are_sound = [one[: len(ids)] for one, ids in zip(is_finite.tolist(), given, strict=True)]
        found = {"is_finite": is_finite, "hidden": output.hidden, "probs": probs}
        found["logits"] = logits if keep_logits else None
        tokens, ends = chosen.tolist(), is_unsure.tolist()
        for r, writer in enumerate(writers):
            if writer.has_guessed and not all(are_sound[r]):
                # A guess that gives NaN spoils the tokens that are read with it.
                model.clear(r, writer.start)
                writer.stop_guessing()
                continue
            for j, place in writer.accept(given[r], tokens[r], ends[r]):
                for name, each in found.items():
                    if each is not None:
                        _put(steps[name], j, r, each[r, place], len(writers))
    return Proposal(
        token_ids=_table([writer.drafted for writer in writers], model.device),
        lengths=torch.tensor([len(writer.drafted) for writer in writers], device=model.device),
        is_finite=torch.stack(steps["is_finite"], dim=1),
        logits=steps["logits"] or None,
        probs=torch.stack(steps["probs"], dim=1) if steps["probs"] else None,
        hidden=steps["hidden"] or None,
        num_forwards=torch.tensor([one.num_forwards for one in writers], device=model.device),
    )


def _choose(
    logits: Tensor, writers: Sequence[Writer], chance: Chance
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Choose or draw the next token after each one that was read.

    Returns:
        The tokens, (B, N); whether their logits are finite, (B, N); and the distributions that they
        were drawn from, (B, N, V), if they were.
    """
    top, chosen = logits.max(dim=-1)  # the maximum is NaN if any entry is
    is_finite = top.isfinite()
    if chance.warper is None:
        return chosen * is_finite, is_finite, None
    probs = chance.warper.probs(torch.where(is_finite[..., None], logits, 0.0))
    first = torch.tensor([writer.first_place for writer in writers], device=logits.device)
    places = first[:, None] + torch.arange(logits.shape[1], device=logits.device)
    numbers = chance.numbers.draft
    return draw(probs, numbers.gather(1, places.clamp(0, numbers.shape[1] - 1))), is_finite, probs


def _read(
    model: CachedModel, writers: Sequence[Writer], given: list[list[int]], num_logits: int
) -> Output:
    """Read tokens of each row from its writer's position; some rows may have none."""
    width = max(map(len, given))
    # A row's padding is a token that the model reads or has read.
    padded = [
        ids + [ids[-1] if ids else writer.last_read] * (width - len(ids))
        for ids, writer in zip(given, writers, strict=True)
    ]
    starts = [writer.start for writer in writers]
    model.reserve(len(writers), max(starts) + width)
    window = model.window(starts, width)
    lengths = torch.tensor([len(ids) for ids in given], device=model.device)
    window = window.only(torch.arange(width, device=model.device) < lengths[:, None])
    return model.read(torch.tensor(padded, device=model.device), window, num_logits)


def _put(steps: list[Tensor], j: int, row: int, value: Tensor, num_rows: int) -> None:
    """Store a row's value at place j; rows without a value there get 0, or True."""
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
        prompt_ids: The row's prompt.
        generated: Its text before the block.
        num_read: Number of its first tokens that the model has read.
        k: Most tokens of the block.
        stop_ids: Tokens that are the block's last.
        min_confidence: Probability below which a token is the block's last; 0 for none.
        answer: The row's text as the draft proposed it last; None if it has not.
        ngrams: Counts from earlier drafts; None to guess from the last answer alone.
        most_read: Most tokens to read in one forward, including the guess.

    Attributes:
        drafted: The block's tokens so far.
        start: Position of the first token that the model has not read.
        is_open: Whether the block goes on.
        num_forwards: Forwards so far.
        has_guessed: Whether the tokens read last include a guess.
        min_confidence: As given.
    """

    def __init__(
        self,
        prompt_ids: list[int],
        generated: list[int],
        num_read: int,
        k: int,
        *,
        stop_ids: frozenset[int],
        min_confidence: float,
        answer: list[int] | None,
        ngrams: Ngrams | None,
        most_read: int,
    ) -> None:
        self._text = prompt_ids + generated  # and then what is drafted
        self._num_prompt, self._length = len(prompt_ids), len(self._text)
        self._k, self._stop_ids = k, stop_ids
        self._answer, self._ngrams, self._most_read = answer, ngrams, most_read
        self.min_confidence = min_confidence
        self.start = min(num_read, self._length - 1)
        self.drafted: list[int] = []
        self.is_open, self.num_forwards, self.has_guessed = True, 0, False

    @property
    def unread(self) -> list[int]:
        """The tokens from `start` on."""
        return self._text[self.start :]

    @property
    def last_read(self) -> int:
        """The last token that the model has read; the first one if it has read none."""
        return self._text[max(0, self.start - 1)]

    @property
    def first_place(self) -> int:
        """Place in the block of the token after the first unread one: below 0 for old tokens."""
        return self.start + 1 - self._length

    def guess(self) -> list[int]:
        """Tokens that may follow; none if the end of the text is not known from before."""
        most = min(self._most_read - len(self.unread), self._k - len(self.drafted) - 1)
        text, found = self._text, list[int]()
        self.has_guessed = False
        if most < 1:
            return found
        own = text[max(self._num_prompt, len(text) - _LONGEST_MATCH) :]
        if self._answer and own:
            found = look_up(self._answer + own, most, _LONGEST_MATCH, 1)
        if not found and self._ngrams is not None:
            found = self._ngrams.guess(text, most) or look_up(text, most, _LONGEST_MATCH, 1)
        self.has_guessed = bool(found)
        return found

    def skip(self, num_tokens: int) -> None:
        """Note that the first unread tokens were read, in one forward if there are any."""
        self.start += num_tokens
        self.num_forwards += num_tokens > 0

    def stop_guessing(self) -> None:
        """Note that a forward was in vain, and read no more guesses."""
        self.num_forwards += 1
        self._most_read = 1

    def accept(
        self, given: list[int], chosen: list[int], is_last: list[bool]
    ) -> list[tuple[int, int]]:
        """Take the model's tokens as far as the guess was right.

        Args:
            given: Tokens that were read: the unread ones, and the guess. Empty if the row was not
                read.
            chosen: The model's token after each, and padding.
            is_last: Whether that token ends the block.

        Returns:
            Place in the block and index in `chosen` of each token that was taken.
        """
        if not given:
            return []
        self.num_forwards += 1
        place, taken = len(self.unread) - 1, []
        while self.is_open:
            token = chosen[place]
            taken.append((len(self.drafted), place))
            self.drafted.append(token)
            self._text.append(token)
            ends = is_last[place] or token in self._stop_ids
            self.is_open = not ends and len(self.drafted) < self._k
            place += 1
            if place == len(given) or given[place] != token:
                break
        self.start = self._length + len(self.drafted) - 1
        return taken
