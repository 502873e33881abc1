"""The walk over a verified block, and the safety rules: plain Python on the host.

Left to right: a match stands; a mismatch ruled for the draft stands (an override) and the walk
goes on, since the target has already judged what follows *given* the drafted token; a mismatch
ruled for the target emits the target's token and ends the block; a block kept whole earns one
bonus token.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from cospec.errors import NonFiniteError
from cospec.types import NO_FEATURES, MismatchTrace, Origin, StepTrace

if TYPE_CHECKING:
    from torch import Tensor

    from cospec.engine.rows import Row

_UNKNOWN = (math.nan,) * 4


class Block(NamedTuple):
    """What the models said of one row in one block; flags are 0 or 1."""

    length: int
    """How many tokens were drafted for the row; what the lists hold behind them is padding."""
    drafted: list[int]
    """K drafted tokens."""
    target_ids: list[int]
    """What stands at each place if the drafted token does not, then the bonus token: K + 1."""
    is_match: list[int]
    """Whether the target accepts each drafted token: K."""
    is_finite: list[int]
    """Whether the target's logits are finite at each place: K + 1."""
    is_draft_finite: list[int]
    """Whether the draft's logits are finite at each place: K."""

    def mismatches(self) -> list[int]:
        """Places that the target does not accept."""
        return [j for j in range(self.length) if not self.is_match[j]]


class Ruled(NamedTuple):
    """What the arbiter said of one mismatch."""

    keep_draft: bool
    is_forbidden: bool
    """Whether the target gives the drafted token probability 0."""
    score: float | None
    probs: tuple[float, ...]
    """p(draft's), p(target's), q(draft's), q(target's); empty if no trace is kept."""
    features: Tensor = NO_FEATURES
    """What the arbiter saw, (F,); empty if it does not tell, or no trace is kept."""


def walk(row: Row, block: Block, rulings: dict[int, Ruled], keep_trace: bool) -> None:
    """Append to `row` what stands of a block, and count it.

    Args:
        row: The row, as before the block.
        block: What the models said.
        rulings: The arbiter's answer at each mismatch, by place.
        keep_trace: Whether to record the block in the row's trace.

    Raises:
        NonFiniteError: The target's logits are NaN or infinite at a place that was reached.
    """
    k, start = block.length, len(row.generated)
    mismatches = []
    origin = Origin.MATCH
    for j in range(k + 1):
        if not block.is_finite[j]:
            raise NonFiniteError(
                f"the target's logits hold NaN or infinity for prompt {row.index} at generated "
                f"token {start + j}; check the weights, or load the pair in another dtype "
                "(float16 overflows where bfloat16 does not)."
            )
        if j == k:
            token, origin = block.target_ids[j], Origin.BONUS
        elif block.is_match[j]:
            token, origin = block.drafted[j], Origin.MATCH
        else:
            mismatches.append(_settle(row, block, j, rulings[j], start + j, is_reached=True))
            row.stats.num_non_finite_scores += mismatches[-1].veto == "non_finite"
            if mismatches[-1].keep_draft:
                token, origin = block.drafted[j], Origin.OVERRIDE
            else:
                token, origin = block.target_ids[j], Origin.CORRECTION
        row.emit(token, origin)
        if row.finish_reason or origin in (Origin.CORRECTION, Origin.BONUS):
            break
    row.draft_lags = origin is Origin.BONUS
    kept = row.origins[start:]
    _count(row, block, kept, len(mismatches))
    if keep_trace:
        for place, ruled in rulings.items():
            if place >= len(kept):
                mismatches.append(
                    _settle(row, block, place, ruled, start + place, is_reached=False)
                )
        strict, overrides = kept.count(Origin.MATCH), kept.count(Origin.OVERRIDE)
        row.trace.append(StepTrace(start, k, strict, overrides, tuple(mismatches)))


def _settle(
    row: Row, block: Block, place: int, ruled: Ruled, position: int, *, is_reached: bool
) -> MismatchTrace:
    """Apply the safety rules to one ruling.

    A score that is not finite rules for the target. A token to which the target gives probability
    0 is never kept, nor is any in the exact prefix, nor by default one that would end the text or
    keep it from ending.
    """
    draft_id, target_id = block.drafted[place], block.target_ids[place]
    veto = None
    if ruled.score is not None and not math.isfinite(ruled.score):
        veto = "non_finite"
    elif ruled.keep_draft:
        if ruled.is_forbidden:
            veto = "forbidden"
        elif position < row.config.exact_prefix_tokens:
            veto = "exact_prefix"
        elif {draft_id, target_id} & row.stop_ids and not row.config.override_stop_tokens:
            veto = "stop_token"
    p_draft_id, p_target_id, q_draft_id, q_target_id = ruled.probs or _UNKNOWN
    return MismatchTrace(
        position=position,
        block_position=place,
        draft_id=draft_id,
        target_id=target_id,
        p_draft_id=p_draft_id,
        p_target_id=p_target_id,
        q_draft_id=q_draft_id,
        q_target_id=q_target_id,
        score=ruled.score,
        keep_draft=ruled.keep_draft and veto is None,
        is_reached=is_reached,
        veto=veto,
        features=ruled.features,
    )


def _count(row: Row, block: Block, kept: list[Origin], num_mismatches: int) -> None:
    """Add a block to the row's statistics."""
    stats, k = row.stats, block.length
    num_accepted = 0
    for origin in kept:
        stats.num_strict_accepts += origin is Origin.MATCH
        stats.num_overrides += origin is Origin.OVERRIDE
        num_accepted += origin in (Origin.MATCH, Origin.OVERRIDE)
    stats.num_tokens += len(kept)
    stats.num_drafts += 1
    stats.num_draft_tokens += k
    stats.num_draft_forwards += k
    stats.num_mismatches += num_mismatches
    stats.num_non_finite_drafts += block.is_draft_finite[:k].count(0)
    per_pos = stats.num_accepted_tokens_per_pos
    per_pos += [0] * (k - len(per_pos))
    for i in range(num_accepted):
        per_pos[i] += 1
