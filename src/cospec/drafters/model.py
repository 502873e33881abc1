"""The draft model as a drafter: one forward per token, with its own ragged cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from cospec.drafters.adaptive import Pace
from cospec.drafters.base import Drafter, found_proposal
from cospec.drafters.cascade import Ngrams, Writer, draft_guessing, most_read
from cospec.drafters.ends import Ends
from cospec.models.cache import CachedModel
from cospec.models.costs import token_cost
from cospec.models.shortlist import shortlist_of, using
from cospec.rulings import in_width
from cospec.sampling import draw
from cospec.types import Needs, Proposal

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import ClassVar

    from torch import Tensor

    from cospec.config import DecodeConfig
    from cospec.drafters.base import DraftRow
    from cospec.models.cache import Output, Window
    from cospec.models.pair import ModelPair
    from cospec.sampling import Chance


class ModelDrafter(CachedModel, Drafter):
    """Proposes the tokens that the draft of a pair chooses.

    It ends a row's block after a token less probable than
    `DecodeConfig.draft_confidence_threshold`, and after the last of `max_corrections` after one
    less probable than 0.8. With `DecodeConfig.adaptive` it ends a block before a token that is not
    expected to pay (`adaptive`), and with `DecodeConfig.end_blocks_at_stop` after one that would
    end the text. Each row ends on its own, and the model runs until the last one has
    ended. The tokens do not depend on where a block ends, so lossless decoding stays exact.
    """

    provides: ClassVar[Needs] = Needs.DRAFT
    has_model: ClassVar[bool] = True

    def __init__(self, pair: ModelPair, config: DecodeConfig, needs: Needs) -> None:
        """See `Drafter`.

        Raises:
            PairError: The pair has no draft.
        """
        super().__init__(pair.draft_model, Needs.DRAFT_HIDDEN in needs)
        self._pair, self._config, self._k = pair, config, config.k
        self.ends_early = config.ends_blocks_early
        # In a long block, logits take as much memory as the target's: kept only if they are used.
        wants = needs & (Needs.DRAFT_LOGITS | Needs.BLOCK_LOG_Q)
        self._keep_logits = config.keep_trace or bool(wants)
        self._target_vocab_size: int = pair.target.config.get_text_config().vocab_size
        self._num_read: dict[int, int] = {}
        """By row, the number of its first tokens in the cache, provided that all of these stand."""
        self._answers: dict[int, list[int]] = {}
        """By row, its text as it was proposed last, if blocks are as long as an answer."""
        self._ngrams = Ngrams() if config.cascade else None
        self._shortlist = shortlist_of(pair.draft_model)
        self._has_unlisted = False
        self._waits = config.adaptive
        """True if prompts are read when a row first drafts: perhaps no draft ever pays."""
        self._held: dict[int, list[int]] = {}
        """By row, the first tokens in its cache, if prompts wait. The batch's own list has a new
        prompt as soon as it waits, and forgets the older one that the row still holds."""

    def read(self, token_ids: Tensor, window: Window, num_logits: int = 1) -> Output:
        """Read tokens into the cache, as `CachedModel.read`; with a shortlist they are listed."""
        if self._shortlist is not None:
            self._shortlist.add(token_ids.clamp(max=self.vocab_size - 1))
        with using(self._shortlist):
            return super().read(token_ids, window, num_logits)

    def propose(self, rows: Sequence[DraftRow], chance: Chance) -> Proposal:
        """Choose k tokens for each row, or fewer where the model grows unsure."""
        # If a whole block stood, neither its last token nor the bonus token was read.
        for r, row in enumerate(rows):
            self.forget_drafted(r, len(row.drafted) - 1)
        return self._draft(rows, chance, [True] * len(rows))

    def _draft(
        self, rows: Sequence[DraftRow], chance: Chance, is_wanted: Sequence[bool]
    ) -> Proposal:
        """Choose tokens for the wanted rows; the others are neither read nor drafted."""
        rows = self._as_drafted(rows)
        if (most := self._most_read(rows, chance)) > 1:
            self.reserve(len(rows), max(map(len, rows)) + self._k)
            return self._guessing(rows, chance, is_wanted, most)
        if (pace := self._pace(rows)) is not None:
            is_wanted = [one and pays for one, pays in zip(is_wanted, pace.pays, strict=True)]
        if not any(is_wanted):
            return found_proposal([[] for _ in rows], self._target_vocab_size, chance, self.device)
        may_end = self._config.ends_blocks_early or not all(is_wanted)  # the others draft nothing
        ends = self._ends(rows, is_wanted, pace)
        window, ids, is_unread = self._begin(rows, is_wanted)
        drafted, logits, are_sound, probs, hidden = [], [], [], [], []
        lengths = torch.zeros(len(rows), dtype=torch.int64, device=self.device)
        column = 0
        for j in range(self._k):
            step = window.columns(column, column + ids.shape[1])
            column += ids.shape[1]
            if j and may_end:  # blocks that have ended are not read on
                step = step.only(ends.is_open[:, None])
            elif is_unread is not None:
                step = step.only(is_unread)
            output = self.read(ids, step)
            step_logits = in_width(output.logits[:, -1], self._target_vocab_size)  # (B, V)
            top, ids = step_logits.max(dim=-1, keepdim=True)  # NaN if any entry is
            is_sound = top.isfinite()
            if chance.warper is None:
                ids = ids * is_sound
            else:
                q = chance.warper.probs(torch.where(is_sound, step_logits, 0.0)[:, None])
                ids = draw(q, chance.numbers.draft[:, j : j + 1])
                # 0 after the end of a row's block: there the residual is p itself.
                probs.append(q * ends.is_open[:, None, None] if may_end else q)
            drafted.append(ids)
            logits += [step_logits] * self._keep_logits
            are_sound.append(is_sound)
            if output.hidden is not None:
                hidden.append(output.hidden[:, -1])
            lengths = lengths + ends.is_open
            if may_end and j + 1 < self._k:
                ends.after(j, ids, step_logits, chance.warper)
                if not ends.is_open.any():
                    break
        known = lengths.tolist() if may_end else [len(drafted)] * len(rows)
        self._note_read(rows, known, is_wanted)
        token_ids, is_finite = torch.cat(drafted, dim=1), torch.cat(are_sound, dim=1)
        self._clear_unsound(is_finite, is_wanted)
        if chance.warper is None:
            self._remember(rows, token_ids, known)
        return Proposal(
            token_ids=token_ids,
            lengths=lengths,
            is_finite=is_finite,
            logits=logits or None,
            probs=torch.cat(probs, dim=1) if probs else None,
            hidden=hidden or None,
        )

    def _as_drafted(self, rows: Sequence[DraftRow]) -> list[DraftRow]:
        """Return rows as the model sees them; tokens of loaded ones, unread here, are listed."""
        views: list[DraftRow] = [row.drafted for row in rows]
        if self._shortlist is not None and self._has_unlisted:
            for row in views:
                ids = torch.tensor(row.prompt_ids + row.generated, device=self.device)
                self._shortlist.add(ids.clamp(max=self.vocab_size - 1))
        self._has_unlisted = False
        return views

    def _begin(
        self, rows: Sequence[DraftRow], is_wanted: Sequence[bool]
    ) -> tuple[Window, Tensor, Tensor | None]:
        """Make room for a block; return its window, and the tokens that are read first.

        Args:
            rows: Rows as they were before the block.
            is_wanted: Whether the model drafts for each of them; true for at least one.

        Returns:
            The window; the last N tokens of each row, (B, N); and which of these the wanted rows
            have not read, (B, N) bool. The latter is None if all rows are wanted; then some rows
            read tokens again.
        """
        self.reserve(len(rows), max(map(len, rows)) + self._k)
        self._read_waiting(rows, is_wanted)
        unread = [(len(row) - self._num_read[r]) * is_wanted[r] for r, row in enumerate(rows)]
        width = max(unread)
        window = self.window([len(row) - width for row in rows], width + self._k - 1)
        ids = torch.tensor([row.last_tokens(width) for row in rows], device=self.device)
        if all(is_wanted):
            return window, ids, None
        number = torch.tensor(unread, device=self.device)[:, None]
        return window, ids, torch.arange(width, device=self.device) >= width - number

    def _read_waiting(self, rows: Sequence[DraftRow], is_wanted: Sequence[bool]) -> None:
        """Read wanted rows of which nothing was read, but their last token, if prompts wait."""
        waits = [self._waits and one for one in is_wanted]
        waiting = [r for r, one in enumerate(waits) if one and not self._num_read[r]]
        if not waiting:
            return
        texts: list[list[int]] = [[] for _ in rows]  # an empty one leaves its row as it is
        for r in waiting:
            texts[r] = (rows[r].prompt_ids + rows[r].generated)[:-1]
        held = [self._held.get(r, []) for r in range(1 + max(self._held, default=-1))]
        super().prefill(texts, 0, held)
        for r in waiting:
            self._held[r], self._num_read[r] = texts[r], len(texts[r])

    def _note_read(
        self, rows: Sequence[DraftRow], lengths: list[int], is_wanted: Sequence[bool]
    ) -> None:
        """Note the tokens read after a block: all but its last token and those after its end."""
        for r, row in enumerate(rows):
            if is_wanted[r]:
                self._num_read[r] = len(row) + max(lengths[r], 1) - 1

    def _clear_unsound(self, is_finite: Tensor, is_wanted: Sequence[bool]) -> None:
        """Clear rows that were only padding, for a model that needs it, and gave NaN."""
        if all(is_wanted):
            return
        for r, is_sound in enumerate(is_finite.all(dim=1).tolist()):
            if not is_wanted[r] and not is_sound:
                self.clear(r, self._num_read[r])

    def _most_read(self, rows: Sequence[DraftRow], chance: Chance) -> int:
        """Return how many tokens of a row to read in a forward; 1 where nothing is guessed."""
        writes_again = chance.warper is None and any(r in self._answers for r in range(len(rows)))
        is_guessing = writes_again or self._ngrams is not None
        return most_read(len(rows), self.device) if is_guessing else 1

    def _guessing(
        self, rows: Sequence[DraftRow], chance: Chance, is_wanted: Sequence[bool], most: int
    ) -> Proposal:
        """Propose the model's choices; rows guess from their last answers or earlier drafts."""
        writers = [
            Writer(
                row.prompt_ids,
                row.generated,
                self._num_read.get(r, 0),
                limit,
                stop_ids=row.stop_ids if self._config.end_blocks_at_stop else frozenset(),
                min_confidence=confidence,
                answer=self._answers.get(r),
                ngrams=self._ngrams,
                most_read=most,
            )
            for r, (row, (limit, confidence)) in enumerate(
                zip(rows, self._bounds(rows), strict=True)
            )
        ]
        for writer, is_open in zip(writers, is_wanted, strict=True):
            writer.is_open = is_open
        found = draft_guessing(
            self,
            writers,
            chance,
            self._target_vocab_size,
            keep_logits=self._keep_logits,
        )
        for r, (row, writer) in enumerate(zip(rows, writers, strict=True)):
            self._num_read[r] = writer.start
            if self._ngrams is not None:
                self._ngrams.add(row.prompt_ids + row.generated, writer.drafted)
        if chance.warper is None:
            self._remember(rows, found.token_ids, found.lengths.tolist())
        return found

    def _remember(self, rows: Sequence[DraftRow], token_ids: Tensor, lengths: list[int]) -> None:
        """Keep each row's text as it was proposed, if that is a whole answer."""
        if not self._config.drafts_answers:
            return
        for r, (row, ids) in enumerate(zip(rows, token_ids.tolist(), strict=True)):
            is_whole = self._config.max_corrections is None or not row.is_lossless
            if is_whole and lengths[r]:
                self._answers[r] = row.generated + ids[: lengths[r]]

    def _bounds(self, rows: Sequence[DraftRow]) -> list[tuple[int, float]]:
        """Return most tokens of each row's block, and the probability below which one ends it."""
        return [self._config.block_bounds(is_lossless=row.is_lossless) for row in rows]

    def _pace(self, rows: Sequence[DraftRow]) -> Pace | None:
        """Return the rule that ends the blocks of some rows by cost, if there is one."""
        config = self._config
        if not config.adaptive:
            return None
        cost = config.adaptive_cost
        if cost is None:  # measured once a process
            cost = token_cost(self._pair, config.k, config.batch_size)
        return Pace(rows, cost, self._k, self.device)

    def _ends(self, rows: Sequence[DraftRow], is_open: Sequence[bool], pace: Pace | None) -> Ends:
        """Return the conditions that end the blocks of some rows, of which some may be open."""
        stops = None
        if self._config.end_blocks_at_stop:
            width = max(1, *(len(row.stop_ids) for row in rows))
            padded = [[*row.stop_ids, *[-1] * (width - len(row.stop_ids))] for row in rows]
            stops = torch.tensor(padded, device=self.device)
        opened = torch.tensor(is_open, device=self.device)
        return Ends(opened, stops, pace, self._bounds(rows), self._k)

    def forget_drafted(self, row: int, length: int) -> None:
        """Mark the tokens after the first `length` ones of a row as unread: others stand there now.

        Needed before the row grows further, even if the model does not run.
        """
        self._num_read[row] = min(self._num_read.get(row, 0), length)

    def prefill(
        self, prompts: list[list[int]], first_row: int, held: list[list[int]] | None = None
    ) -> None:
        """Read the prompts of new rows, or let them wait; see `Drafter`."""
        new = range(first_row, first_row + len(prompts))
        if self._waits:
            self._num_read |= dict.fromkeys(new, 0)
        else:
            super().prefill(prompts, first_row, held)
            self._num_read |= dict(zip(new, map(len, prompts), strict=True))
        self._answers = {r: one for r, one in self._answers.items() if r not in new}

    def save_row(self, row: int, num_tokens: int) -> Any:  # Any: as in `Drafter`
        """Return how many of a row's first tokens were read, and their cache."""
        num_read = min(self._num_read.get(row, 0), num_tokens)
        return num_read, super().save_row(row, num_read)

    def load_row(self, row: int, saved: Any, num_tokens: int) -> None:  # Any: from `save_row`
        """Store the cache of a saved row's first tokens in a row."""
        num_read, stored = saved
        # A row that only searches drafted for may be longer than its saved cache.
        self._num_read[row] = min(num_read, num_tokens)
        super().load_row(row, stored, self._num_read[row])
        self._held.pop(row, None)
        self._has_unlisted = True
        self._answers.pop(row, None)

    def copy_row(self, source: int, destination: int) -> None:
        """Store row `source` in place of row `destination`."""
        super().copy_row(source, destination)
        self._num_read[destination] = self._num_read.get(source, 0)
        self._held[destination] = self._held.get(source, [])
        self._answers.pop(destination, None)
        if source in self._answers:
            self._answers[destination] = self._answers.pop(source)

    def clear(self, row: int, start: int) -> None:
        """Forget a row's stored state from a position on."""
        super().clear(row, start)
        self.forget_drafted(row, start)
        self._held[row] = self._held.get(row, [])[:start]
