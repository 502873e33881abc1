"""From an engine's verified rows to an arbiter's rulings: mathematics on tensors only.

All rows are ruled on, and masks say which rulings count: every shape is known beforehand and
nothing waits for the device. On a CPU, where nothing has to be waited for, only the rows that can
be kept are ruled on. `cospec.rulings` defines what an arbiter sees and which of its rulings count,
as in our engine. `verdicts` leads back into the engine.

Axes: T rows of the step, those of a request adjacent and in order; R requests; V vocabulary.
This file knows nothing of vLLM.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch

from cospec.arbiters.learned import LearnedArbiter
from cospec.arbiters.rules import AlwaysTarget
from cospec.rulings import (
    COLUMNS,
    Veto,
    check_ruling,
    find_vetoes,
    look_ahead,
    make_batch,
    token_log_p,
    whole_block,
)
from cospec.types import MismatchBatch, Needs

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from cospec.types import Arbiter, Ruling

MAX_ELEMENTS = 2**26
"""Most logits (rows times vocabulary) that the arbiter sees in one call, to bound its memory."""

ROWS_AT_ONCE = 8
"""Rows of logits that a CPU works on at once: beyond some 30 MB each result would be memory that
the system hands out anew, page by page."""

_INPUTS = Needs.LOGITS | Needs.HIDDEN
"""Needs that the other engine meets with columns of `VerifiedRows`."""


@dataclass(frozen=True)
class VerifiedRows:
    """The target's rows of one step, with the state of their requests.

    Attributes:
        target_logits: The target's logits before temperature and truncation, (T, V).
        draft_ids: Drafted tokens, (T,) int64; anything where none was drafted.
        is_drafted: Whether a token was drafted there, (T,) bool. False for bonus rows, and for
            padding within a block.
        requests: Request of each row, 0 to R - 1, (T,) int64.
        block_positions: Place in the block, from 0 on, (T,) int64.
        positions: Index of the drafted token in the generated text, (T,) int64.
        num_overrides: Overrides of the request before this block, (T,) int64.
        num_mismatches: Mismatches of the request that were reached before this block, (T,) int64.
        is_open: Whether the request lets the arbiter rule, (T,) bool.
        stop_ids: Tokens that end the request, padded with -1, (T, S) int64.
        max_tokens: Most tokens that the request generates, (T,) int64.
        draft_logits: The draft's logits before temperature, (T, V); None if the engine has none.
        target_hidden: Hidden states that the target's output matrix was applied to, (T, H); None if
            the engine has none, or no arbiter asks.
        target_hidden_after: The same for the row that has read the drafted token, (T, H).
        draft_hidden: Hidden states that the draft's output matrix was applied to, (T, H'); None
            likewise.
        thresholds: Thresholds of the requests in place of the arbiter's own, NaN where a request
            has none, (T,) float; None if no request has one.
        is_sampled: Whether the request samples, (T,) bool; None if all are greedy.
        is_cut: Whether truncation, or a logits processor of the engine, removed the drafted token
            from the target's distribution, (T,) bool; None if there is neither.
        uniforms: The requests' own random numbers for rulings, in [0, 1), (T,) float64; None takes
            the arbiter's generator.
        is_ended: Whether the request had ended before this block, (T,) bool: with asynchronous
            scheduling a request runs for one more step. None if no request can have ended.
    """

    target_logits: Tensor
    draft_ids: Tensor
    is_drafted: Tensor
    requests: Tensor
    block_positions: Tensor
    positions: Tensor
    num_overrides: Tensor
    num_mismatches: Tensor
    is_open: Tensor
    stop_ids: Tensor
    max_tokens: Tensor
    draft_logits: Tensor | None = None
    target_hidden: Tensor | None = None
    target_hidden_after: Tensor | None = None
    draft_hidden: Tensor | None = None
    thresholds: Tensor | None = None
    is_sampled: Tensor | None = None
    is_cut: Tensor | None = None
    uniforms: Tensor | None = None
    is_ended: Tensor | None = None

    @cached_property
    def safe_ids(self) -> Tensor:
        """The drafted tokens, 0 where there is none, (T,) int64."""
        return torch.where(self.is_drafted, self.draft_ids, 0)

    @cached_property
    def is_before_end(self) -> Tensor:
        """Return whether a token was drafted there and none before it ends the text, (T,) bool."""
        return self.is_drafted & (_count_before(self.is_stop, self.block_positions) == 0)

    @cached_property
    def is_stop(self) -> Tensor:
        """Return whether a token was drafted there that ends the text, (T,) bool."""
        return self.is_drafted & (self.draft_ids[:, None] == self.stop_ids).any(dim=1)

    @cached_property
    def is_in_text(self) -> Tensor:
        """Return whether a drafted token is in the text if all before it stand, (T,) bool.

        Tokens after a stop token or beyond the request's last token are not.
        """
        is_in_text = self.is_before_end & (self.positions < self.max_tokens)
        return is_in_text if self.is_ended is None else is_in_text & ~self.is_ended


@dataclass(frozen=True, slots=True)
class RowRulings:
    """The rulings on the rows of a step.

    Attributes:
        keep_draft: Whether the drafted token stands against the target, vetoes applied, (T,) bool.
        is_mismatch: Whether it is not the target's most probable token, (T,) bool.
        target_ids: The token that it stands against: the target's most probable one, or if the
            request samples, the most probable other one, (T,) int64.
        is_non_finite: Whether the arbiter was asked and its score was not finite, (T,) bool.
        score: Score of the ruling, (T,) float, NaN where the arbiter was not asked; None if it
            gives none.
        features: Features that the arbiter saw, (T, F) float, likewise; None if not asked for.
        probability: Probability with which the drafted token was kept, (T,) float, if the arbiter
            rules by chance; else None.
        vetoes: The `Veto` that turned a ruling down, (T,) int64; None if no arbiter was asked.
        is_free: Whether a ruling for the draft would have counted, (T,) bool; None likewise.
        keeps_none: Whether it is known without waiting for the device that no token is kept.
    """

    keep_draft: Tensor
    is_mismatch: Tensor
    target_ids: Tensor
    is_non_finite: Tensor
    score: Tensor | None = None
    features: Tensor | None = None
    probability: Tensor | None = None
    vetoes: Tensor | None = None
    is_free: Tensor | None = None
    keeps_none: bool = False


@dataclass(frozen=True)
class RowArbiter:
    """Rules on verified rows.

    Attributes:
        arbiter: Arbiter that rules on the rows.
        k: Drafted tokens of a whole block.
        exact_prefix_tokens: Number of first tokens of a text that stay lossless.
        generator: Random generator, for an arbiter that rules by chance.
        keep_features: Whether to return the features that the arbiter saw.
        is_compact: Whether to rule only on the rows that can be kept, which waits for the device;
            None does so on a CPU.
        end_blocks_at_stop: As in `DecodeConfig`: the arbiter looks no further than a drafted token
            that would end the text. The engine may have drafted on.
        max_corrections: As in `DecodeConfig`: a request that has this many of the target's own
            tokens goes on losslessly.
    """

    arbiter: Arbiter
    k: int
    exact_prefix_tokens: int = 0
    generator: torch.Generator | None = None
    keep_features: bool = False
    is_compact: bool | None = None
    end_blocks_at_stop: bool = False
    max_corrections: int | None = None

    def __call__(self, rows: VerifiedRows) -> RowRulings:
        """Rule on the rows of a step.

        A drafted token is never kept in the exact prefix, after the last correction, or where
        either token would end the text. Nor is it kept where an input that the arbiter needs is
        missing, where the target's logits are not finite or give it probability 0, or where the
        arbiter's score is not finite.
        """
        top, argmax = rows.target_logits.max(dim=-1)  # the maximum is NaN if any entry is
        is_mismatch = rows.is_drafted & (argmax != rows.draft_ids)
        target_ids = argmax
        may_differ = is_mismatch
        if rows.is_sampled is not None:
            others = rows.target_logits.scatter(1, rows.safe_ids[:, None], float("-inf"))
            target_ids = torch.where(rows.is_sampled, others.argmax(dim=-1), argmax)
            may_differ = is_mismatch | (rows.is_sampled & rows.is_drafted)
        asked = may_differ & rows.is_open & top.isfinite()
        nothing = torch.zeros_like(is_mismatch)
        idle = RowRulings(nothing, is_mismatch, target_ids, nothing, keeps_none=True)
        if self._is_idle(rows, asked):
            return idle
        both = torch.stack([rows.safe_ids, target_ids], dim=1)  # (T, 2)
        find = partial(
            find_vetoes,
            draft_logit=rows.target_logits.gather(1, rows.safe_ids[:, None])[:, 0],
            is_cut=rows.is_cut,
            is_exact=self._is_exact(rows),
            is_stop=(both[:, :, None] == rows.stop_ids[:, None]).flatten(1).any(dim=1),
        )
        if self._waits(asked) and not self.keep_features:  # else a log shows these rulings too
            asked = asked & (find(None) == Veto.NONE)
            if not bool(asked.any()):
                return idle
        keep, score, features = self._ask(rows, asked, is_mismatch, target_ids)
        if rows.thresholds is not None and score is not None:
            # The guard of a trained arbiter is a score of 0, which no threshold lets pass.
            is_bold = (score > rows.thresholds) & (score > 0)
            keep = torch.where(rows.thresholds.isnan(), keep, is_bold)
        vetoes = find(score)
        is_free = asked & (vetoes == Veto.NONE)
        is_non_finite = asked & (vetoes == Veto.NON_FINITE)
        return RowRulings(
            keep & is_free,
            is_mismatch,
            target_ids,
            is_non_finite,
            score,
            features,
            self._probability(rows, score, is_free),
            torch.where((asked & keep) | is_non_finite, vetoes, int(Veto.NONE)),
            is_free,
        )

    def _is_idle(self, rows: VerifiedRows, asked: Tensor) -> bool:
        """Return whether there is nothing to ask, or nobody to see a ruling that keeps nothing."""
        if any(getattr(rows, name) is None for name in self._inputs):
            return True
        if type(self.arbiter) is AlwaysTarget and not self.keep_features:
            return True
        return self._waits(asked) and not bool(asked.any())

    def _waits(self, tensor: Tensor) -> bool:
        """Return whether to wait for a tensor's device, so as to ask about few rows or none."""
        return tensor.device.type == "cpu" if self.is_compact is None else self.is_compact

    def _is_exact(self, rows: VerifiedRows) -> Tensor:
        """Return where nothing is overridden, (T,) bool."""
        is_exact = rows.positions < self.exact_prefix_tokens
        if self.max_corrections is None:
            return is_exact
        return is_exact | (rows.num_mismatches - rows.num_overrides >= self.max_corrections)

    def _probability(
        self, rows: VerifiedRows, score: Tensor | None, is_free: Tensor
    ) -> Tensor | None:
        """Return the probability that each drafted token was kept with, if chance decided."""
        arbiter = self.arbiter
        if not isinstance(arbiter, LearnedArbiter) or not arbiter.explore or score is None:
            return None
        found = arbiter.keep_probability(score)
        if rows.thresholds is not None:  # a request's own threshold leaves nothing to chance
            fixed = ((score > rows.thresholds) & (score > 0)).to(found.dtype)
            found = torch.where(rows.thresholds.isnan(), found, fixed)
        return torch.where(is_free, found, 0.0)

    @cached_property
    def _inputs(self) -> list[str]:
        """Names of the columns that the arbiter needs."""
        return [name for need in self.arbiter.needs & _INPUTS for name in COLUMNS[need]]

    def _ask(
        self, rows: VerifiedRows, asked: Tensor, is_mismatch: Tensor, target_ids: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The arbiter's bare rulings, scores and features, (T,), (T,) and (T, F)."""
        num_rows, device = len(asked), asked.device
        index = torch.arange(num_rows, device=device)
        if self._waits(asked):
            index = index[asked]
        size = max(1, MAX_ELEMENTS // rows.target_logits.shape[1])
        whole = self._batch(rows, asked, is_mismatch, target_ids)
        parts = []
        for chunk in torch.split(index, size):
            batch = _select(whole, chunk)
            parts.append(self.arbiter.rule(batch))
            check_ruling(parts[-1], batch, self.arbiter.name)
        return _spread(parts, index, num_rows, self.keep_features)

    def _log_p(self, logits: Tensor, token_ids: Tensor, is_wanted: Tensor) -> Tensor:
        """Log-probabilities of tokens under logits (T, V), (T,); those not wanted may be 0."""
        if not self._waits(is_wanted):
            return token_log_p(logits, token_ids)
        found = torch.zeros(len(is_wanted), device=is_wanted.device)
        for part in torch.split(is_wanted.nonzero()[:, 0], ROWS_AT_ONCE):
            found[part] = token_log_p(logits[part], token_ids[part])
        return found

    def _block_log_q(
        self, rows: VerifiedRows, asked: Tensor, first: Tensor, is_drafted: Tensor
    ) -> Tensor:
        """The draft's log-probability of each token of every row's block, (T, K)."""
        assert rows.draft_logits is not None, "who needs it declares DRAFT_LOGITS as well"
        counts = torch.zeros_like(first).index_add(0, first, asked.long())
        log_q = self._log_p(rows.draft_logits, rows.safe_ids, counts[first] > 0)
        return whole_block(first, self.k, rows.requests, is_drafted, log_q)

    def _batch(
        self, rows: VerifiedRows, asked: Tensor, is_mismatch: Tensor, target_ids: Tensor
    ) -> MismatchBatch:
        """All rows, as an arbiter sees them."""
        num_rows, device = len(target_ids), target_ids.device
        is_drafted = rows.is_before_end if self.end_blocks_at_stop else rows.is_drafted
        first = torch.arange(num_rows, device=device) - rows.block_positions  # of each block
        # vLLM cuts blocks short where a step has no room for more tokens.
        counts = torch.zeros_like(target_ids).index_add(0, first, is_drafted.long())
        block_lengths = counts[first].clamp(min=1)  # 0 in rows without a draft
        # Which sampled tokens will be rejected is not known yet.
        is_met = is_mismatch if rows.is_sampled is None else is_mismatch & ~rows.is_sampled

        def given(need: Needs) -> Callable[[], tuple[Tensor, ...]]:
            return lambda: tuple(getattr(rows, name) for name in COLUMNS[need])

        return make_batch(
            self.arbiter.needs,
            {need: given(need) for need in _INPUTS}
            | {
                Needs.LOOKAHEAD: lambda: look_ahead(
                    torch.arange(num_rows, device=device),
                    self.k - 1,
                    blocks=rows.requests,
                    is_drafted=is_drafted,
                    is_match=~is_mismatch,
                    log_p=self._log_p(
                        rows.target_logits,
                        rows.safe_ids,
                        _count_before(asked, rows.block_positions) > 0,
                    ),
                ),
                Needs.BLOCK_LOG_Q: lambda: (self._block_log_q(rows, asked, first, is_drafted),),
                Needs.UNIFORMS: lambda: (
                    torch.rand(
                        num_rows, generator=self.generator, dtype=torch.float64, device=device
                    )
                    if rows.uniforms is None
                    else rows.uniforms,
                ),
            },
            rows=rows.requests,
            block_positions=rows.block_positions,
            positions=rows.positions,
            num_overrides=rows.num_overrides,
            num_mismatches=rows.num_mismatches + _count_before(is_met, rows.block_positions),
            block_lengths=block_lengths,
            draft_ids=rows.safe_ids,
            target_ids=target_ids,
        )


def _select(batch: MismatchBatch, index: Tensor) -> MismatchBatch:
    """Return some mismatches of a batch, copying only those."""
    columns = {field.name: getattr(batch, field.name) for field in fields(batch)}
    given = {name: column[index] for name, column in columns.items() if column is not None}
    return replace(batch, **given)


def _spread(
    parts: list[Ruling], index: Tensor, num_rows: int, keep_features: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Rulings on the rows of `index` as columns of all rows."""
    keep = torch.zeros(num_rows, dtype=torch.bool, device=index.device)
    keep = keep.index_put((index,), torch.cat([part.keep_draft for part in parts]))
    columns: list[Tensor | None] = []
    for name in ("score", "features"):
        given = [getattr(part, name) for part in parts]
        if given[0] is None or (name == "features" and not keep_features):
            columns.append(None)
            continue
        values = torch.cat(given)
        column = values.new_full((num_rows, *values.shape[1:]), float("nan"))
        columns.append(column.index_put((index,), values))
    return keep, columns[0], columns[1]


def _count_before(flags: Tensor, block_positions: Tensor) -> Tensor:
    """Count the flagged rows before each in its block, (T,), from flags (T,) bool."""
    before = flags.long().cumsum(dim=0) - flags.long()  # in the whole step
    first = torch.arange(len(flags), device=flags.device) - block_positions
    return before - before[first]
