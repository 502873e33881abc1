"""The engine with transformers' logits processors and stopping criteria in it.

Processors see the prefix of each place, as in `generate`, and change the target's logits before
they are compared with the draft: what they forbid is never kept, whoever rules. Criteria are asked
after each token that stands; the first that says so ends its row there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    ForcedEOSTokenLogitsProcessor,
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from cospec.engine import Engine
from cospec.engine.speculative import SpeculativeBatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from transformers import StoppingCriteriaList

    from cospec.engine.rows import Row
    from cospec.models.cache import Output
    from cospec.types import Proposal

_OF_ROWS = (
    ForcedEOSTokenLogitsProcessor,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)
"""Processors that change each row by its own tokens and scores, one by one, and hold nothing of any
row: alone it comes out as in a batch. A subclass may do otherwise."""


class TransformersEngine(Engine):
    """An engine that obeys processors and criteria.

    Attributes:
        input_ids: What `generate` was given, padded, (B, L).
        processors: Applied to the target's logits; none if empty.
        criteria: Asked after each token; none if empty.
    """

    input_ids: Tensor
    processors: LogitsProcessorList
    criteria: StoppingCriteriaList

    def _new_batch(self) -> SpeculativeBatch:
        drafter = self._drafter(self.pair, self.config, self.arbiter.needs)
        batch = _Batch(self.pair, self.arbiter, drafter, self.config)
        batch.engine = self
        return batch

    def ask(self, row: Row, new_ids: list[int], what: Callable[..., Any], *scores: Any) -> Any:
        """Call a processor or a criterion on a row that `new_ids` follow.

        Some of them hold something for each row of the batch that `generate` was given: they get
        the one row in all places, and what they say of its own place counts. Where none does, they
        get it once. All is on the device of the prompt, as in `generate`; the model may be on
        another.
        """
        prompt = self.input_ids[row.index]
        ids = torch.cat([prompt, torch.tensor(new_ids, dtype=prompt.dtype, device=prompt.device)])
        num_rows = 1 if _is_of_rows(what) else len(self.input_ids)
        wide = [s if s is None else s.to(ids.device).expand(num_rows, -1).clone() for s in scores]
        found = what(ids.expand(num_rows, -1), *wide)
        place = row.index if num_rows > 1 else 0
        return found[place] if torch.is_tensor(found) else found

    def is_stopped(self, row: Row) -> bool:
        """Return whether a criterion ends the row after its last token."""
        return bool(self.ask(row, row.generated, self.criteria, None))


class _Batch(SpeculativeBatch):
    engine: TransformersEngine

    def admit(self, rows: list[Row]) -> None:
        if self.engine.criteria:
            for row in rows:
                row.is_stopped = self.engine.is_stopped
        super().admit(rows)

    def _read(self, proposal: Proposal) -> Output:
        return self._processed(super()._read(proposal), proposal)

    def _read_one_by_one(self, proposal: Proposal) -> Output:
        return self._processed(super()._read_one_by_one(proposal), proposal)

    def _processed(self, output: Output, proposal: Proposal) -> Output:
        if not self.engine.processors:
            return output
        logits = output.logits.float().clone()  # (B, K + 1, V)
        lengths = proposal.lengths.tolist()
        for r, row in enumerate(self.rows):
            processors = LogitsProcessorList(_alone(p, row.index) for p in self.engine.processors)
            drafted = proposal.token_ids[r].tolist()
            for j in range(lengths[r] + 1):
                ids = row.generated + drafted[:j]
                logits[r, j] = self.engine.ask(row, ids, processors, logits[r, j])
        return output._replace(logits=logits)


def _is_of_rows(what: Callable[..., Any]) -> bool:
    """Return whether these are processors that hold nothing of any row."""
    return isinstance(what, LogitsProcessorList) and all(
        type(p) in _OF_ROWS and not torch.is_tensor(getattr(p, "prompt_ignore_length", None))
        for p in what
    )


def _alone(processor: Any, index: int) -> Any:  # Any: a processor of whatever type
    """Return a processor whose function of the user, if it has one, is asked about one row alone.

    Args:
        processor: Of the whole batch.
        index: The row.
    """
    if type(processor) is not PrefixConstrainedLogitsProcessor:
        return processor
    allowed, beams = processor._prefix_allowed_tokens_fn, processor._num_beams
    return PrefixConstrainedLogitsProcessor(
        lambda i, ids: allowed(i, ids) if i == index // beams else [0], beams
    )
