"""The accept test of a proposal, and the mismatches that follow: mathematics on tensors only.

Knows nothing of caches, rows or arbiters. The rules are those of Leviathan et al. (2211.17192): a
drafted token is accepted if it is the target's argmax (greedy), or if u < p(x) / q(x) (sampled).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

import torch

from cospec.rulings import look_ahead, make_batch, rank_in_row, token_log_p, token_probs
from cospec.sampling import Chance, Warper, accepts, draw, residual
from cospec.types import MismatchBatch, Needs, Proposal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from cospec.models.cache import Output
    from cospec.rulings import LookAhead


_MOST_LOGITS = 1 << 26
"""Most logits to copy to float32 at once: a whole block may have a hundred million."""


@dataclass(frozen=True, slots=True)
class Verification:
    """The target's view of a block.

    Attributes:
        target_ids: The token that stands at each place if the drafted one does not, and after the
            row's last place the bonus token, (B, K + 1).
        is_match: Whether the target accepts the drafted token, (B, K); meaningless after a row's
            length, like all values there.
        is_finite: Whether the logits of a place hold neither NaN nor +inf, (B, K + 1).
        logits: Raw logits, (B, K + 1, V).
        draft_probs: The target's probabilities of the drafted tokens after temperature and
            truncation, (B, K); None if every row is greedy.
        hidden: Last hidden states, (B, K + 1, H), if asked for.
    """

    target_ids: Tensor
    is_match: Tensor
    is_finite: Tensor
    logits: Tensor
    draft_probs: Tensor | None
    hidden: Tensor | None


def verify(output: Output, proposal: Proposal, chance: Chance) -> Verification:
    """Compare a proposal with the target.

    Args:
        output: The target's forward over the last token and the K drafted ones.
        proposal: The drafted tokens.
        chance: Distributions and random numbers of the rows.
    """
    logits, drafted = output.logits, proposal.token_ids
    top, target_ids = logits.max(dim=-1)  # the maximum is NaN if any entry is
    is_finite = top.isfinite()
    if chance.warper is None:
        is_match = target_ids[:, :-1] == drafted
        return Verification(target_ids, is_match, is_finite, logits, None, output.hidden)
    assert proposal.probs is not None, "a drafter must say what sampled rows draw from"
    k, numbers = drafted.shape[1], chance.numbers
    found = []
    for part in _parts(k + 1, logits[:, 0].numel()):
        p, q, ids = chance.warper.probs(logits[:, part]), proposal.probs[:, part], drafted[:, part]
        p_drafted = p[:, : ids.shape[1]]  # the bonus token's place has none
        # A replacement is drawn for every place beforehand, with its own random numbers: from the
        # residual where a token was drafted, from p where the block has ended (q is 0 there).
        instead = torch.cat([residual(p_drafted, q), p[:, ids.shape[1] :]], dim=1)
        found.append(
            (
                draw(instead, numbers.target[:, part]),
                accepts(p_drafted, q, ids, numbers.accept[:, :k][:, part]),
                p_drafted.gather(-1, ids[..., None])[..., 0],
            )
        )
    target_ids, is_match, draft_probs = (
        torch.cat(each, dim=1) for each in zip(*found, strict=True)
    )
    return Verification(target_ids, is_match, is_finite, logits, draft_probs, output.hidden)


def _parts(number: int, num_logits: int) -> list[slice]:
    """Split places or mismatches, with `num_logits` logits each, into parts that fit in memory."""
    size = max(1, _MOST_LOGITS // num_logits)
    return [slice(start, min(start + size, number)) for start in range(0, number, size)]


def parts_of_rows(
    where: Sequence[tuple[int, ...]], num_logits: int
) -> Iterator[list[tuple[int, ...]]]:
    """Split mismatches into parts that an arbiter can rule on without running out of memory.

    A row is never split, since what an arbiter sees of a mismatch depends on others of its row.

    Args:
        where: A tuple for each mismatch, its row first, in row order.
        num_logits: Logits of each mismatch, V.
    """
    most, part = max(1, _MOST_LOGITS // num_logits), list[tuple[int, ...]]()
    for _, group in groupby(where, itemgetter(0)):
        row = list(group)
        if part and len(part) + len(row) > most:
            yield part
            part = []
        part += row
    if part:
        yield part


def is_cut(verified: Verification, batch: MismatchBatch, warper: Warper | None) -> Tensor | None:
    """Return which drafted tokens truncation removed from p, (M,) bool; None if all is greedy."""
    if warper is None or verified.draft_probs is None:
        return None
    p = verified.draft_probs[batch.rows, batch.block_positions]
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
    """Return the mismatches of a block with the inputs that an arbiter needs.

    Args:
        verified: The target's view of the block.
        proposal: The drafted tokens.
        rows: Rows of the mismatches, (M,).
        places: Their places in the block, (M,).
        history: Generated tokens, overrides and corrections of each row before the block, (B, 3).
        needs: Inputs to supply.
        chance: Distributions and random numbers of the rows.
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

    The target has already read the drafted token at the next place. Its state after that token,
    from which it would go on if the token is kept, thus costs nothing.
    """
    assert verified.hidden is not None, "the target was not asked for hidden states"
    return verified.hidden[rows, places], verified.hidden[rows, places + 1]


def _at(steps: list[Tensor] | None, rows: Tensor, places: Tensor) -> Tensor:
    """Pick the mismatches' entries, (M, X), from K tensors of (B, X), copying nothing else."""
    assert steps is not None, "the engine refuses a drafter that lacks what is needed"
    where = torch.stack([places, rows], dim=1).tolist()
    return torch.stack([steps[place][row] for place, row in where])


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
    """Return the look-ahead from each mismatch, two tensors of (M, K - 1)."""
    used, inverse = torch.unique_consecutive(rows, return_inverse=True)  # R rows with a mismatch
    drafted = proposal.token_ids[used]  # (R, K)
    num_rows, k = drafted.shape
    place = torch.arange(k, device=drafted.device).expand(num_rows, k)
    log_p = [
        token_log_p(verified.logits[used, part], drafted[:, part])
        for part in _parts(k, num_rows * verified.logits.shape[-1])
    ]
    return look_ahead(
        inverse * k + places,
        k - 1,
        blocks=torch.arange(num_rows, device=drafted.device).repeat_interleave(k),
        is_drafted=(place < proposal.lengths[used, None]).flatten(),
        is_match=verified.is_match[used].flatten(),
        log_p=torch.cat(log_p, dim=1).flatten(),
    )


def standing_probs(verified: Verification, proposal: Proposal) -> Tensor:
    """Return probabilities of the tokens that stand unless a ruling says otherwise.

    These are the drafted tokens that the target accepts, and the target's own elsewhere.

    Args:
        verified: The target's view of the block.
        proposal: The drafted tokens.

    Returns:
        (B, K + 1, 2): p and q before temperature and truncation; q is NaN where no model drafted.
    """
    drafted = proposal.token_ids
    k = drafted.shape[1]
    is_drafted = torch.arange(k, device=drafted.device) < proposal.lengths[:, None]  # (B, K)
    ids = verified.target_ids.clone()
    ids[:, :k] = torch.where(is_drafted & verified.is_match, drafted, ids[:, :k])
    parts = _parts(k + 1, verified.logits[:, 0].numel())
    p = torch.cat([token_log_p(verified.logits[:, i], ids[:, i]) for i in parts], dim=1).exp()
    q = torch.full_like(p, torch.nan)
    if proposal.logits is not None:
        for place, step in enumerate(proposal.logits):
            q[:, place] = token_log_p(step, ids[:, place]).exp()
        q[:, :k].masked_fill_(~is_drafted, torch.nan)
        if proposal.num_forwards is not None:
            q.masked_fill_(proposal.num_forwards[:, None] == 0, torch.nan)
    return torch.stack([p, q], dim=-1)


def trace_probs(verified: Verification, proposal: Proposal, batch: MismatchBatch) -> Tensor:
    """Return probabilities of both tokens under both models, before temperature and truncation.

    Args:
        verified: The target's view of the block.
        proposal: The drafted tokens.
        batch: Mismatches of the block.

    Returns:
        (4, M): p(draft's), p(target's), q(draft's), q(target's); q is NaN if there are no logits.
    """
    rows, places = batch.rows, batch.block_positions
    ids = torch.stack([batch.draft_ids, batch.target_ids], dim=1)  # (M, 2)
    parts = _parts(len(batch), verified.logits.shape[-1])
    p = torch.cat([token_probs(verified.logits[rows[i], places[i]], ids[i]) for i in parts]).T
    if proposal.logits is None:
        return torch.cat([p, torch.full_like(p, torch.nan)])
    steps = proposal.logits
    q = torch.cat([token_probs(_at(steps, rows[i], places[i]), ids[i]) for i in parts]).T
    if proposal.num_forwards is not None:
        q = q.masked_fill(proposal.num_forwards[rows] == 0, torch.nan)
    return torch.cat([p, q])
