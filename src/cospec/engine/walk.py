"""The walk over a verified block: plain Python on the host.

Left to right, a match stands. A mismatch ruled for the draft stands too (an override), and the walk
goes on, since the target has already judged what follows *given* the drafted token. A mismatch
ruled for the target emits the target's token and ends the block. A block kept whole earns one bonus
token.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from cospec.errors import NonFiniteError
from cospec.rulings import Veto
from cospec.types import MismatchTrace, Origin, StepTrace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cospec.engine.arbitrate import Decision
    from cospec.engine.rows import Row
    from cospec.types import Stats


class Block(NamedTuple):
    """One row of a verified block, on the host; flags are 0 or 1."""

    length: int
    """Number of tokens drafted for the row; later entries of the lists are padding."""
    drafted: list[int]
    """K drafted tokens."""
    target_ids: list[int]
    """Token that stands at each place if the drafted one does not, then the bonus token: K + 1."""
    is_match: list[int]
    """One flag per drafted token, true if the target accepts it: K."""
    is_finite: list[int]
    """One flag per place, true if the target's logits are finite there: K + 1."""
    is_draft_finite: list[int]
    """One flag per place, true if the draft's logits are finite there: K."""
    num_forwards: int
    """Draft forwards that it took; 0 if no model drafted the tokens."""
    probs: Sequence[Sequence[float]] = ()
    """p and q at each place, of the drafted token if the target accepts it, else of the target's
    own: K + 1 pairs, q NaN where no model drafted; empty if not wanted."""

    def mismatches(self) -> list[int]:
        """Places that the target does not accept."""
        return [j for j in range(self.length) if not self.is_match[j]]


def walk(
    row: Row,
    block: Block,
    decisions: dict[int, Decision],
    *,
    keep_trace: bool,
) -> None:
    """Append the tokens of a block that stand to `row`, and count them.

    Args:
        row: The row as it was before the block.
        block: The verified block of the row.
        decisions: The decision that counts at each mismatch, by place.
        keep_trace: Whether to record the block in the row's trace.

    Raises:
        NonFiniteError: The target's logits are NaN or infinite at a place that was reached.
    """
    start = len(row.generated)
    num_mismatches = 0
    for j in range(block.length + 1):
        if not block.is_finite[j]:
            raise non_finite_error(row.index, start + j)
        if j == block.length:
            token, origin = block.target_ids[j], Origin.BONUS
        elif block.is_match[j]:
            token, origin = block.drafted[j], Origin.MATCH
        else:
            num_mismatches += 1
            row.stats.num_open_mismatches += decisions[j].is_open
            row.stats.num_non_finite_scores += decisions[j].veto is Veto.NON_FINITE
            if decisions[j].keep_draft:
                token, origin = block.drafted[j], Origin.OVERRIDE
            else:
                token, origin = block.target_ids[j], Origin.CORRECTION
        row.emit(token, origin)
        if row.finish_reason or origin in (Origin.CORRECTION, Origin.BONUS):
            break
    kept = row.origins[start:]
    _count(row.stats, block, kept, num_mismatches)
    if keep_trace:
        mismatches = tuple(
            _trace(block, place, decision, start, is_reached=place < len(kept))
            for place, decision in decisions.items()
        )
        strict, overrides = kept.count(Origin.MATCH), kept.count(Origin.OVERRIDE)
        told = kept if block.probs else []
        probs = tuple(_probs(block, decisions, place, origin) for place, origin in enumerate(told))
        row.trace.append(
            StepTrace(
                position=start,
                num_draft_tokens=block.length,
                num_strict_accepts=strict,
                num_overrides=overrides,
                mismatches=mismatches,
                probs=probs,
            )
        )


def non_finite_error(index: int, position: int, who: str = "target") -> NonFiniteError:
    """Return the error for a prompt whose next logits are not finite."""
    return NonFiniteError(
        f"the {who}'s logits hold NaN or infinity for prompt {index} at generated token "
        f"{position}; check the weights, or load the pair in another dtype (float16 overflows "
        "where bfloat16 does not)."
    )


def _probs(
    block: Block, decisions: dict[int, Decision], place: int, origin: Origin
) -> tuple[float, float | None]:
    """Return the probabilities of the token that stands at a place; None for a missing q."""
    if origin is Origin.OVERRIDE:
        p, _, q, _ = decisions[place].probs
    else:
        p, q = block.probs[place]
    return p, None if math.isnan(q) else q


def _trace(
    block: Block, place: int, decision: Decision, start: int, *, is_reached: bool
) -> MismatchTrace:
    """The record of one mismatch."""
    p_draft_id, p_target_id, q_draft_id, q_target_id = decision.probs
    return MismatchTrace(
        position=start + place,
        block_position=place,
        draft_id=block.drafted[place],
        target_id=block.target_ids[place],
        p_draft_id=p_draft_id,
        p_target_id=p_target_id,
        q_draft_id=q_draft_id,
        q_target_id=q_target_id,
        score=decision.score,
        keep_draft=decision.keep_draft,
        is_reached=is_reached,
        is_open=decision.is_open,
        veto=None if decision.veto is Veto.NONE else decision.veto.name.lower(),
        features=decision.features,
    )


def _count(stats: Stats, block: Block, kept: list[Origin], num_mismatches: int) -> None:
    """Add a block to a row's statistics."""
    num_matches, num_overrides = kept.count(Origin.MATCH), kept.count(Origin.OVERRIDE)
    num_accepted = num_matches + num_overrides
    stats.num_strict_accepts += num_matches
    stats.num_overrides += num_overrides
    stats.num_drafts += 1
    stats.num_draft_tokens += block.length
    stats.num_draft_forwards += block.num_forwards
    stats.num_mismatches += num_mismatches
    stats.num_non_finite_drafts += block.is_draft_finite[: block.length].count(0)
    per_pos = stats.num_accepted_tokens_per_pos
    per_pos += [0] * (block.length - len(per_pos))
    for i in range(num_accepted):
        per_pos[i] += 1
