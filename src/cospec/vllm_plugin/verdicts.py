"""From an arbiter's rulings to an engine's accept test, and to the counts of a step.

Another engine keeps its own accept kernels; only their input is edited. Where a drafted token is
kept, the target's row becomes 0 at that token and -inf elsewhere, so that greedy and sampled
acceptance both take it. The target judged the later rows given the drafted tokens, so they are its
true verdict on the prefix that then stands.

Axes as in `bridge`. This file knows nothing of vLLM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from cospec.vllm_plugin.bridge import RowRulings, VerifiedRows


class Tally(NamedTuple):
    """The counts of a step, after the engine's kernels have run."""

    is_counted: Tensor
    """Drafted tokens that were verified, up to the first that was rejected, (T,) bool."""
    is_reached: Tensor
    """Mismatches among them, (T,) bool: tokens that stand by ruling, and those rejected."""
    num_overrides: Tensor
    """Overrides by request, (R,) int64."""
    num_mismatches: Tensor
    """Reached mismatches by request, (R,) int64."""
    is_ended: Tensor
    """True if the request has ended with a drafted token, by request, (R,) bool."""
    counts: Tensor
    """Strict accepts, overrides, reached mismatches, non-finite scores among them: (4,) int64."""


def ended_before(
    is_ended: Tensor, read_ids: Tensor, block_positions: Tensor, stop_ids: Tensor
) -> Tensor:
    """Return whether each row's request had ended before its block, (T,) bool.

    Args:
        is_ended: Whether an earlier block ended the request, (T,) bool.
        read_ids: Token that each row has read, (T,) int64; the first row of a block has read the
            last token of the text so far.
        block_positions: Place in the block, (T,) int64.
        stop_ids: Tokens that end the request, (T, S) int64.
    """
    first = torch.arange(len(read_ids), device=read_ids.device) - block_positions
    return is_ended | (read_ids[first, None] == stop_ids).any(dim=1)


def force(logits: Tensor, rows: VerifiedRows, rulings: RowRulings) -> Tensor:
    """Return the logits with all the probability on kept tokens.

    It is a copy, unless no token is kept and no request samples.

    Nothing is forced beyond the end of a text, since an engine counts the tokens it accepts there.

    Args:
        logits: The target's rows that the engine's accept test would use, (T, V).
        rows: The rows.
        rulings: Rulings on the rows.

    Returns:
        (T, V).
    """
    if rulings.keeps_none and rows.is_sampled is None:
        return logits
    keep_draft, draft_ids = rulings.keep_draft & rows.is_in_text, rows.draft_ids
    index = torch.where(keep_draft, draft_ids, 0)[:, None]
    own = torch.where(keep_draft[:, None], 0.0, logits.gather(1, index))
    return logits.masked_fill(keep_draft[:, None], float("-inf")).scatter_(1, index, own)


def count_step(rows: VerifiedRows, rulings: RowRulings, num_accepted: Tensor) -> Tally:
    """Count the outcomes of a step.

    A drafted token counts if it stands in the text. Where a request samples, overrides are kept
    tokens that are not the target's most probable one, and a token that the accept test let pass is
    no mismatch.

    Args:
        rows: The rows.
        rulings: Rulings on the rows.
        num_accepted: Drafted tokens that the engine accepted, by request, (R,).
    """
    accepted = num_accepted.long()[rows.requests]  # (T,)
    in_block = rows.is_in_text
    stands = in_block & (rows.block_positions < accepted)
    is_override = stands & rulings.keep_draft & rulings.is_mismatch
    is_end = rows.block_positions == accepted
    is_reached = is_override | (in_block & is_end)
    is_strict, is_non_finite = stands & ~is_override, is_reached & rulings.is_non_finite
    columns = [is_strict, is_override, is_reached, is_non_finite, stands & rows.is_stop]
    none = torch.zeros(len(columns), len(num_accepted), dtype=torch.int64, device=accepted.device)
    by_request = none.index_add(1, rows.requests, torch.stack(columns).long())  # (5, R)
    _, num_overrides, num_mismatches, _, num_ends = by_request
    return Tally(
        is_counted=stands | is_reached,
        is_reached=is_reached,
        num_overrides=num_overrides,
        num_mismatches=num_mismatches,
        is_ended=num_ends > 0,
        counts=by_request[:4].sum(dim=1),
    )
