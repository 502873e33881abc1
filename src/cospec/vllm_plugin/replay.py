"""Completions rebuilt from vLLM's tokens and from the rulings in its steps.

vLLM returns tokens; our workers return each block and the ruling at each of its mismatches. The
walk of our own engine (`cospec.engine.walk`) then goes over the same blocks, so that counts,
origins, trace and the end of a text mean the same in both engines.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from cospec.engine.arbitrate import Decision
from cospec.engine.walk import Block, walk
from cospec.rulings import Veto
from cospec.types import NO_FEATURES, FinishReason, Origin

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from cospec.engine.rows import Row
    from cospec.vllm_plugin.rollouts import RecordedStep


class RuledBlock(NamedTuple):
    """One request in one verify step."""

    start: int
    """Index of its first token in the generated text."""
    block: Block
    decisions: dict[int, Decision]


def by_request(steps: Iterable[RecordedStep]) -> dict[str, list[RuledBlock]]:
    """Return the blocks of each request, in order, by its key."""
    found: dict[str, list[RuledBlock]] = {}
    for step in steps:
        emitted, first = step.sampled.tolist(), 0
        rows, reals, features = step.integers.tolist(), step.reals.tolist(), _by_row(step)
        for r, (key, n) in enumerate(zip(step.keys, step.num_rows, strict=True)):
            here = range(first, first + n)
            first += n
            if key and n:
                mine = [rows[i] for i in here], reals[here.start : here.stop]
                ruled = _block(*mine, features[here.start : here.stop], emitted[r])
                found.setdefault(key, []).append(ruled)
    return found


def _by_row(step: RecordedStep) -> list[Tensor]:
    """Return the features of each row, T tensors of (F,), empty where there is no mismatch."""
    is_mismatch = step.integers[:, 4].tolist()
    if step.features is None:
        return [NO_FEATURES] * len(is_mismatch)
    known = iter(step.features)
    return [next(known) if flag else NO_FEATURES for flag in is_mismatch]


def _block(
    rows: list[list[int]],
    reals: list[list[float]],
    features: list[Tensor],
    emitted: list[int],
) -> RuledBlock:
    columns = [list(column) for column in zip(*rows, strict=True)]
    positions, drafted, target_ids, vetoes, is_mismatch, is_finite, keep, is_open = columns
    num_accepted = sum(token >= 0 for token in emitted) - 1
    # Now and then vLLM verifies placeholders (-1) in place of drafts: no token was drafted there.
    length = next((j for j, token in enumerate(drafted) if token < 0), len(drafted))
    is_match = [1 - one for one in is_mismatch]
    target_ids = [*target_ids[:length], emitted[min(num_accepted, length)]]
    block = Block(
        length,
        drafted[:length],
        target_ids,
        is_match,
        [*is_finite[:length], 1],
        [1] * length,
        num_forwards=length,
    )
    decisions = {}
    for j in block.mismatches():
        score, *probs = reals[j]
        veto = Veto(vetoes[j])
        known = None if math.isnan(score) and veto is not Veto.NON_FINITE else score
        decisions[j] = Decision(
            bool(keep[j]), bool(is_open[j]), veto, known, tuple(probs), features[j]
        )
    return RuledBlock(positions[0], block, decisions)


def replay(
    row: Row,
    blocks: Sequence[RuledBlock],
    token_ids: Sequence[int],
) -> None:
    """Complete a row as vLLM did.

    Tokens outside of blocks are the target's own: the first one, which vLLM takes from the forward
    of the prompt, and the one after a preemption.

    Args:
        row: Row as it was sent to vLLM.
        blocks: Blocks of the row, in order; those after its end are skipped.
        token_ids: All tokens that vLLM emitted; they may go on after a stop string.
    """
    begin = len(row.generated)

    def own_tokens_up_to(end: int) -> None:
        while len(row.generated) < end and not row.finish_reason:
            row.emit(token_ids[len(row.generated) - begin], Origin.BONUS)

    for start, block, decisions in blocks:
        own_tokens_up_to(start)
        if row.finish_reason:
            break
        walk(row, block, decisions, keep_trace=True)
    own_tokens_up_to(begin + len(token_ids))
    found = row.generated[begin:]
    assert found == list(token_ids[: len(found)]), (
        f"vLLM emitted {token_ids} for {row.prompt_ids} and its blocks say {found}"
    )
    if row.finish_reason is None:  # vLLM's detokenizer saw a stop string that ours does not see
        row.finish_reason = FinishReason.STOP
