"""The rows that are decoded together, and one step of them: propose, verify, arbitrate, walk.

The host is synchronised twice a block, after the forwards and after the arbiter (where it shows
what it saw to the trace, that is copied there as well); never inside, but after each drafted token
where the draft may stop early.
Rolling back costs nothing: the cache (see `cospec.models.cache`) is read from where a row stands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from cospec.engine.verify import (
    Uniforms,
    Verdict,
    collect_mismatches,
    is_forbidden,
    judge,
    trace_probs,
)
from cospec.engine.walk import Block, Ruled, walk
from cospec.errors import ArbiterError, NonFiniteError
from cospec.models.cache import CachedModel, Output
from cospec.sampling import Warper, draw
from cospec.types import NO_FEATURES, Arbiter, MismatchBatch, Needs, Origin, Proposal, Ruling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

    from cospec.engine.rows import Row


class Batch:
    """Rows 0, 1, ... of the caches, decoded in step.

    Args:
        target: The target model.
        draft: The draft model; None for plain decoding of the target.
        arbiter: Who rules at mismatches.
        num_drafted: K; 0 for plain decoding.
        min_confidence: Behind a token of a lower probability the draft proposes no other.
        keep_trace: Whether rows record their mismatches.
    """

    def __init__(
        self,
        target: PreTrainedModel,
        draft: PreTrainedModel | None,
        arbiter: Arbiter,
        num_drafted: int,
        keep_trace: bool,
        min_confidence: float = 0.0,
    ) -> None:
        self.rows: list[Row] = []
        self._arbiter = arbiter
        self._num_drafted = num_drafted
        self._min_confidence = min_confidence
        self._keep_trace = keep_trace
        self._needs = arbiter.needs
        self._target = CachedModel(target, Needs.TARGET_HIDDEN in self._needs)
        self._draft = None
        if draft is not None and num_drafted:
            self._draft = CachedModel(draft, Needs.DRAFT_HIDDEN in self._needs)
        self._device = self._target.device

    @property
    def _models(self) -> list[CachedModel]:
        return [self._target] if self._draft is None else [self._target, self._draft]

    @torch.inference_mode()
    def admit(self, rows: list[Row]) -> None:
        """Add rows, which are all prompts or all branches.

        Of prompts all but the last token is read, of branches it is loaded.
        """
        first = len(self.rows)
        held = [row.prompt_ids[:-1] for row in self.rows]
        prompts = [row.prompt_ids[:-1] for row in rows if row.caches is None]
        assert len(prompts) in (0, len(rows)), "prompts and branches are not admitted together"
        for m, model in enumerate(self._models):
            model.reserve(first + len(rows), max(map(len, rows)) + self._num_drafted + 1)
            if any(prompts):
                model.prefill(prompts, first, held)
            for r, row in enumerate(rows, first):
                if row.caches is not None:
                    model.load_row(r, row.caches[m], len(row) - 1)
        for row in rows:
            row.caches = None
        self.rows += rows

    @torch.inference_mode()
    def drop_finished(self) -> None:
        """Free the cache rows of finished prompts; the last rows move into the gaps."""
        for i in reversed(range(len(self.rows))):
            if self.rows[i].finish_reason is None:
                continue
            last = self.rows.pop()
            if i < len(self.rows):
                self.rows[i] = last
                for model in self._models:
                    model.copy_row(len(self.rows), i)

    @torch.inference_mode()
    def step(self) -> None:
        """Decode one block of every row."""
        needs_chance = Needs.UNIFORMS in self._needs
        is_greedy = all(row.config.is_greedy for row in self.rows)
        warper = uniforms = None
        if not is_greedy:
            warper = Warper([row.config for row in self.rows], self._device)
        if needs_chance or not is_greedy:
            generators = [row.generator for row in self.rows]
            uniforms = Uniforms.draw(generators, self._num_drafted, self._device)
        end = max(map(len, self.rows)) + self._num_drafted
        for model in self._models:
            model.reserve(len(self.rows), end)
        proposal = self._propose(end, warper, uniforms)
        verdict = self._verify(proposal, end, warper, uniforms)
        blocks = self._to_host(proposal, verdict)
        if any(0 in block.is_finite for block in blocks):
            # A drafted token that the target cannot read spoils the places before it as well, for
            # the mask gives it a weight of 0, and 0 times NaN is NaN. Token by token it cannot.
            self._clear_ahead([self._target])
            verdict = self._verify(proposal, end, warper, uniforms, one_by_one=True)
            blocks = self._to_host(proposal, verdict)
        rulings = self._arbitrate(proposal, verdict, warper, uniforms, blocks)
        error = None
        for row, block, ruled in zip(self.rows, blocks, rulings, strict=True):
            try:
                walk(row, block, ruled, self._keep_trace)
            except NonFiniteError as caught:  # the other rows finish their block
                error = error or caught
        if error is not None:
            raise error
        if any(0 in block.is_finite or 0 in block.is_draft_finite for block in blocks):
            self._clear_ahead(self._models)
        for r, row in enumerate(self.rows):
            if row.finish_reason and row.keep_caches:
                row.caches = [model.save_row(r, len(row) - 1) for model in self._models]

    def _propose(self, end: int, warper: Warper | None, uniforms: Uniforms | None) -> Proposal:
        """Let the draft choose K tokens for each row, or fewer where it grows unsure."""
        lengths = torch.zeros(len(self.rows), dtype=torch.int64, device=self._device)
        if self._draft is None:
            none = lengths.new_empty(len(self.rows), 0)
            return Proposal(none, lengths, [], none.bool())
        num_unread = 2 if any(row.draft_lags for row in self.rows) else 1
        starts = torch.tensor([len(row) - num_unread for row in self.rows], device=self._device)
        window = self._draft.window(starts, num_unread + self._num_drafted - 1, end)
        ids = torch.tensor([r.last_tokens(num_unread) for r in self.rows], device=self._device)
        is_open = torch.ones_like(lengths, dtype=torch.bool)
        drafted, logits, are_sound, probs, hidden = [], [], [], [], []
        column = 0
        for j in range(self._num_drafted):
            output = self._draft.read(ids, window.columns(column, column + ids.shape[1]))
            column += ids.shape[1]
            step_logits = self._fit(output.logits[:, -1])  # (B, V)
            top, ids = step_logits.max(dim=-1, keepdim=True)  # NaN if any entry is
            is_sound = top.isfinite()
            if warper is None:
                ids = ids * is_sound
            else:
                assert uniforms is not None, "sampling needs uniforms"
                q = warper.probs(torch.where(is_sound, step_logits, 0.0)[:, None])  # (B, 1, V)
                ids = draw(q, uniforms.draft[:, j : j + 1])
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
            logits=logits,
            is_finite=torch.cat(are_sound, dim=1),
            probs=torch.cat(probs, dim=1) if probs else None,
            hidden=hidden or None,
        )

    def _fit(self, logits: Tensor) -> Tensor:
        """The draft's logits in the target's width: what only one of them has is padding."""
        missing = self._target.vocab_size - logits.shape[-1]
        if missing == 0:
            return logits
        return torch.nn.functional.pad(logits, (0, missing), value=float("-inf"))

    def _verify(
        self,
        proposal: Proposal,
        end: int,
        warper: Warper | None,
        uniforms: Uniforms | None,
        *,
        one_by_one: bool = False,
    ) -> Verdict:
        """One target forward over the last token and the drafted ones, or one for each of them."""
        starts = torch.tensor([len(row) - 1 for row in self.rows], device=self._device)
        last = torch.tensor([row.last_tokens(1) for row in self.rows], device=self._device)
        ids = torch.cat([last, proposal.token_ids], dim=1)  # (B, K + 1)
        width = ids.shape[1]
        window = self._target.window(starts, width, end)
        if not one_by_one:
            return judge(self._target.read(ids, window, width), proposal, warper, uniforms)
        steps = [
            self._target.read(ids[:, j : j + 1], window.columns(j, j + 1)) for j in range(width)
        ]
        logits = torch.cat([step.logits for step in steps], dim=1)
        hidden = [step.hidden for step in steps if step.hidden is not None]
        output = Output(logits, torch.cat(hidden, dim=1) if hidden else None)
        return judge(output, proposal, warper, uniforms)

    def _clear_ahead(self, models: list[CachedModel]) -> None:
        """Forget what lies ahead of each row: it may hold NaN."""
        for model in models:
            for r, row in enumerate(self.rows):
                model.clear(r, len(row) - 1)

    def _to_host(self, proposal: Proposal, verdict: Verdict) -> list[Block]:
        """Bring what the walk needs to the host in one go."""
        flags = (verdict.is_match, verdict.is_finite, proposal.is_finite)
        parts = [proposal.token_ids, verdict.target_ids, *(flag.long() for flag in flags)]
        packed = torch.cat([*parts, proposal.lengths[:, None]], dim=1).cpu()
        *fields, lengths = torch.split(packed, [*(p.shape[1] for p in parts), 1], dim=1)
        lists = lengths[:, 0].tolist(), *(field.tolist() for field in fields)
        return [Block(*row) for row in zip(*lists, strict=True)]

    def _arbitrate(
        self,
        proposal: Proposal,
        verdict: Verdict,
        warper: Warper | None,
        uniforms: Uniforms | None,
        blocks: list[Block],
    ) -> list[dict[int, Ruled]]:
        """Ask the arbiter once about all mismatches; its answers by row and place."""
        rulings: list[dict[int, Ruled]] = [{} for _ in blocks]
        where = [(r, j) for r, block in enumerate(blocks) for j in block.mismatches()]
        if not where:
            return rulings
        rows, places = torch.tensor(where, device=self._device).unbind(dim=1)
        ruled = Origin.OVERRIDE, Origin.CORRECTION
        counts = [[len(r.generated), *map(r.origins.count, ruled)] for r in self.rows]
        history = torch.tensor(counts, device=self._device)
        batch = collect_mismatches(verdict, proposal, rows, places, history, self._needs, uniforms)
        ruling = self._arbiter.rule(batch)
        _check(ruling, batch, self._arbiter.name)
        forbidden = is_forbidden(verdict, proposal, warper, rows, places)
        score = forbidden if ruling.score is None else ruling.score
        parts = [ruling.keep_draft, forbidden, score]
        if self._keep_trace:
            parts += trace_probs(verdict, proposal, batch).unbind()
        table = torch.stack([part.double() for part in parts], dim=1)  # (M, 3 or 7)
        shown: Sequence[Tensor] = [NO_FEATURES] * len(where)
        if self._keep_trace and ruling.features is not None:
            shown = ruling.features.float().cpu().unbind()  # M of (F,)
        for (r, j), features, numbers in zip(where, shown, table.tolist(), strict=True):
            keep, is_impossible, value, *probs = numbers
            known_score = None if ruling.score is None else value
            known = bool(keep), bool(is_impossible), known_score, tuple(probs)
            rulings[r][j] = Ruled(*known, features)
        return rulings


def _confidence(logits: Tensor, ids: Tensor) -> Tensor:
    """Probability of tokens (B, 1) by raw logits (B, V), (B,)."""
    logits = logits.float()
    return (logits.gather(1, ids)[:, 0] - logits.logsumexp(dim=1)).exp()


def _check(ruling: Ruling, batch: MismatchBatch, name: str) -> None:
    """Raise ArbiterError unless the answer is a ruling on each mismatch."""
    if not isinstance(ruling, Ruling):
        raise ArbiterError(f"arbiter {name} answered {ruling!r}; it must return a Ruling.")
    keep, score, size = ruling.keep_draft, ruling.score, (len(batch),)
    if not isinstance(keep, torch.Tensor) or keep.shape != size or keep.dtype != torch.bool:
        raise ArbiterError(
            f"arbiter {name} ruled with keep_draft {_described(keep)}; it must be a tensor of "
            f"torch.bool of shape {size}, one ruling a mismatch."
        )
    if score is not None and (not isinstance(score, torch.Tensor) or score.shape != size):
        raise ArbiterError(
            f"arbiter {name} ruled with score {_described(score)}; it must be None or a tensor of "
            f"shape {size}, one score a mismatch."
        )


def _described(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"of shape {tuple(value.shape)} and {value.dtype}"
    return repr(value)
