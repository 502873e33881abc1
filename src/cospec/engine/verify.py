"""The accept test of a proposal, and the mismatches that follow: mathematics on tensors only.

Knows nothing of caches, rows or arbiters. The rules are those of Leviathan et al. (2211.17192):
greedy, a drafted token is accepted if it is the target's argmax; sampled, if u < p(x) / q(x).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from cospec.rulings import look_ahead, make_batch, rank_in_row, token_log_p, token_probs
from cospec.sampling import Chance, Warper, accepts, draw, residual
from cospec.types import MismatchBatch, Needs, Proposal

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from cospec.models.cache import Output
    from cospec.rulings import LookAhead


@dataclass(frozen=True, slots=True)
class Verification:
    """The target's view of a block.

    Attributes:
        target_ids: The token that stands at each place if the drafted one does not, and after the
            row's last place the bonus token, (B, K + 1).
        is_match: Whether the target accepts the drafted token, (B, K); like all that is there, of
            no meaning after a row's length.
        is_finite: Whether the logits of a place hold neither NaN nor +inf, (B, K + 1).
        logits: Raw, (B, K + 1, V).
        probs: Distributions sampled from, (B, K + 1, V); None if every row is greedy.
        hidden: Last hidden states, (B, K + 1, H), if asked for.
    """

    target_ids: Tensor
    is_match: Tensor
    is_finite: Tensor
    logits: Tensor
    probs: Tensor | None
    hidden: Tensor | None


def verify(output: Output, proposal: Proposal, chance: Chance) -> Verification:
    """Compare a proposal with the target.

    Args:
        output: The target's forward over the last token and the K drafted ones.
        proposal: What was drafted.
        chance: How the rows draw.
    """
    logits, drafted = output.logits, proposal.token_ids
    top, target_ids = logits.max(dim=-1)  # the maximum is NaN if any entry is
    is_finite = top.isfinite()
    if chance.warper is None:
        is_match = target_ids[:, :-1] == drafted
        return Verification(target_ids, is_match, is_finite, logits, None, output.hidden)
    assert proposal.probs is not None, "a drafter must say what sampled rows draw from"
    p, q, k = chance.warper.probs(logits), proposal.probs, drafted.shape[1]
    is_match = accepts(p[:, :-1], q, drafted, chance.numbers.accept[:, :k])
    # What stands in the place of a token is drawn for every place beforehand, from numbers of its
    # own: the residual where one was drafted, p where the block has ended (q is 0 there).
    instead = torch.cat([residual(p[:, :-1], q), p[:, -1:]], dim=1)  # (B, K + 1, V)
    target_ids = draw(instead, chance.numbers.target[:, : k + 1])
    return Verification(target_ids, is_match, is_finite, logits, p, output.hidden)


def is_cut(verified: Verification, batch: MismatchBatch, warper: Warper | None) -> Tensor | None:
    """Return whether truncation took the drafted token from p, (M,) bool; None if all is greedy."""
    if warper is None or verified.probs is None:
        return None
    p = verified.probs[batch.rows, batch.block_positions, batch.draft_ids]
    return (p == 0) & ~warper.is_greedy[batch.rows, 0, 0]


def collect_mismatches(
    verified: Verification,
    proposal: Proposal,
    rows: Tensor,
    places: Tensor,
    history: Tensor,
    needs: Needs,
    chance: Chance,
) -> MismatchBatch:
    """Return the mismatches of a block with all that an arbiter declared it needs.

    Args:
        verified: The target's view of the block.
        proposal: What was drafted.
        rows: Rows of the mismatches, (M,).
        places: Their places in the block, (M,).
        history: Tokens that each row had generated before the block, and how many of them were
            overrides and how many corrections, (B, 3).
        needs: What to supply.
        chance: How the rows draw.
    """
    supply: dict[Needs, Callable[[], tuple[Tensor, ...]]] = {
        Needs.TARGET_LOGITS: lambda: (verified.logits[rows, places],),
        Needs.DRAFT_LOGITS: lambda: (_at(proposal.logits, rows, places),),
        Needs.LOOKAHEAD: lambda: _look_ahead(verified, proposal, rows, places),
        Needs.TARGET_HIDDEN: lambda: _target_states(verified, rows, places),
        Needs.DRAFT_HIDDEN: lambda: (_at(proposal.hidden, rows, places),),
        Needs.UNIFORMS: lambda: (chance.numbers.arbiter[rows, places],),
        Needs.BLOCK_LOG_Q: lambda: (_block_log_q(proposal, rows),),
    }
    num_generated, num_overrides, num_corrections = history[rows].unbind(dim=1)
    return make_batch(
        needs,
        supply,
        rows=rows,
        block_positions=places,
        positions=num_generated + places,
        num_overrides=num_overrides,
        num_mismatches=num_overrides + num_corrections + rank_in_row(rows),
        block_lengths=proposal.lengths[rows],
        draft_ids=proposal.token_ids[rows, places],
        target_ids=verified.target_ids[rows, places],
    )


def _target_states(verified: Verification, rows: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Return the target's states before and after the drafted tokens, each (M, H).

    The target has read the drafted token at the next place: its state after that token is what it
    would go on from if the token is kept, and costs nothing.
    """
    assert verified.hidden is not None, "the target was not asked for hidden states"
    return verified.hidden[rows, places], verified.hidden[rows, places + 1]


def _at(steps: list[Tensor] | None, rows: Tensor, places: Tensor) -> Tensor:
    """Pick the mismatches' entries, (M, X), from K tensors of (B, X), copying only those rows."""
    assert steps is not None, "the engine refuses a drafter that lacks what is needed"
    used, inverse = torch.unique_consecutive(rows, return_inverse=True)
    return torch.stack([step[used] for step in steps], dim=1)[inverse, places]


def _block_log_q(proposal: Proposal, rows: Tensor) -> Tensor:
    """Return the draft's log-probability of each token of the mismatches' blocks, (M, K)."""
    assert proposal.logits is not None, "an arbiter that needs it declares DRAFT_LOGITS as well"
    used, inverse = torch.unique_consecutive(rows, return_inverse=True)  # R rows with a mismatch
    drafted = proposal.token_ids[used]  # (R, K)
    steps = [token_log_p(step[used], drafted[:, j]) for j, step in enumerate(proposal.logits)]
    is_drafted = torch.arange(len(steps), device=rows.device) < proposal.lengths[used, None]
    return torch.where(is_drafted, torch.stack(steps, dim=1), 0.0)[inverse]


def _look_ahead(
    verified: Verification, proposal: Proposal, rows: Tensor, places: Tensor
) -> LookAhead:
    """Look ahead from each mismatch, each (M, K - 1)."""
    used, inverse = torch.unique_consecutive(rows, return_inverse=True)  # R rows with a mismatch
    drafted = proposal.token_ids[used]  # (R, K)
    num_rows, k = drafted.shape
    place = torch.arange(k, device=drafted.device).expand(num_rows, k)
    return look_ahead(
        inverse * k + places,
        k - 1,
        blocks=torch.arange(num_rows, device=drafted.device).repeat_interleave(k),
        is_drafted=(place < proposal.lengths[used, None]).flatten(),
        is_match=verified.is_match[used].flatten(),
        log_p=token_log_p(verified.logits[used, :-1], drafted).flatten(),
    )


def trace_probs(verified: Verification, proposal: Proposal, batch: MismatchBatch) -> Tensor:
    """Return probabilities of both tokens under both models, before temperature and truncation.

    Args:
        verified: The target's view of the block.
        proposal: What was drafted.
        batch: Its mismatches.

    Returns:
        (4, M): p(draft's), p(target's), q(draft's), q(target's); q is NaN if there are no logits.
    """
    rows, places = batch.rows, batch.block_positions
    ids = torch.stack([batch.draft_ids, batch.target_ids], dim=1)  # (M, 2)
    p = token_probs(verified.logits[rows, places], ids).T
    if proposal.logits is None:
        return torch.cat([p, torch.full_like(p, torch.nan)])
    q = token_probs(_at(proposal.logits, rows, places), ids).T
    if proposal.num_forwards is not None:
        q = q.masked_fill(proposal.num_forwards[rows] == 0, torch.nan)
    return torch.cat([p, q])
