"""What the target says of a proposal, and the mismatches that follow: mathematics on tensors only.

Knows nothing of caches, rows or arbiters. The rules are those of Leviathan et al. (2211.17192):
greedy, a drafted token is accepted if it is the target's argmax; sampled, if u < p(x) / q(x).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from cospec.sampling import Warper, accepts, draw, residual
from cospec.types import MismatchBatch, Needs, Proposal

if TYPE_CHECKING:
    from torch import Tensor

    from cospec.models.cache import Output


@dataclass(frozen=True, slots=True)
class Verdict:
    """The target's view of a block.

    Attributes:
        target_ids: The token that stands at each place if the drafted one does not, and after the
            row's last place the bonus token, (B, K + 1).
        is_match: Whether the target accepts the drafted token, (B, K); of no meaning behind a row's
            length, as all that is there.
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


@dataclass(frozen=True, slots=True)
class Uniforms:
    """The uniform numbers of a block, each row's from its own generator, float64 in [0, 1).

    The layout is fixed, so that what a row draws does not depend on what happened to it.
    """

    draft: Tensor
    """(B, K)"""
    accept: Tensor
    """(B, K)"""
    target: Tensor
    """(B, K + 1)"""
    arbiter: Tensor
    """(B, K)"""

    @classmethod
    def draw(
        cls, generators: list[torch.Generator], num_drafted: int, device: torch.device
    ) -> Uniforms:
        """Draw a block's numbers for each row."""
        k = num_drafted
        numbers = torch.stack(
            [torch.rand(4 * k + 1, generator=g, dtype=torch.float64) for g in generators]
        ).to(device)  # (B, 4K + 1)
        return cls(*torch.split(numbers, [k, k, k + 1, k], dim=1))


def judge(
    output: Output, proposal: Proposal, warper: Warper | None, uniforms: Uniforms | None
) -> Verdict:
    """The target's verdict on a proposal.

    Args:
        output: The target's forward over the last token and the K drafted ones.
        proposal: What was drafted.
        warper: How rows sample; None if every row is greedy.
        uniforms: Random numbers, with a warper.
    """
    logits, drafted = output.logits, proposal.token_ids
    top, target_ids = logits.max(dim=-1)  # the maximum is NaN if any entry is
    is_finite = top.isfinite()
    if warper is None:
        is_match = target_ids[:, :-1] == drafted
        return Verdict(target_ids, is_match, is_finite, logits, None, output.hidden)
    assert uniforms is not None, "sampling needs uniforms"
    p = warper.probs(logits)  # (B, K + 1, V)
    choice_probs = p
    is_match = torch.ones_like(drafted, dtype=torch.bool)
    k = drafted.shape[1]
    if proposal.probs is not None:
        choice_probs = torch.cat([residual(p[:, :-1], proposal.probs), p[:, -1:]], dim=1)
        is_match = accepts(p[:, :-1], proposal.probs, drafted, uniforms.accept[:, :k])
    target_ids = draw(choice_probs, uniforms.target[:, : k + 1])
    return Verdict(target_ids, is_match, is_finite, logits, p, output.hidden)


def is_forbidden(
    verdict: Verdict, proposal: Proposal, warper: Warper | None, rows: Tensor, places: Tensor
) -> Tensor:
    """Whether the target gives the drafted token probability 0, (M,) bool.

    Args:
        verdict: The target's view of the block.
        proposal: What was drafted.
        warper: How rows sample; None if every row is greedy.
        rows: Rows of the mismatches, (M,).
        places: Their places in the block, (M,).
    """
    drafted = proposal.token_ids[rows, places]
    is_impossible = verdict.logits[rows, places, drafted] == float("-inf")
    if warper is None or verdict.probs is None:
        return is_impossible
    is_cut = verdict.probs[rows, places, drafted] == 0
    return is_impossible | (is_cut & ~warper.is_greedy[rows, 0, 0])


def collect_mismatches(
    verdict: Verdict,
    proposal: Proposal,
    rows: Tensor,
    places: Tensor,
    history: Tensor,
    needs: Needs,
    uniforms: Uniforms | None,
) -> MismatchBatch:
    """The mismatches of a block with all that an arbiter declared it needs.

    Args:
        verdict: The target's view of the block.
        proposal: What was drafted.
        rows: Rows of the mismatches, (M,).
        places: Their places in the block, (M,).
        history: Tokens that each row had generated before the block, and how many of them were
            overrides and how many corrections, (B, 3).
        needs: What to supply.
        uniforms: Random numbers, if `needs` has them.
    """
    optional: dict[str, Tensor] = {}
    if Needs.TARGET_LOGITS in needs:
        optional["target_logits"] = verdict.logits[rows, places]
    if Needs.DRAFT_LOGITS in needs:
        optional["draft_logits"] = _at(proposal.logits, rows, places)
    if Needs.LOOKAHEAD in needs:
        matches, log_p = _lookahead(verdict, proposal, rows, places)
        optional |= {"lookahead_matches": matches, "lookahead_log_p": log_p}
    if Needs.TARGET_HIDDEN in needs:
        assert verdict.hidden is not None, "the target was not asked for hidden states"
        optional["target_hidden"] = verdict.hidden[rows, places]
        optional["target_hidden_after"] = verdict.hidden[rows, places + 1]
    if Needs.DRAFT_HIDDEN in needs:
        assert proposal.hidden is not None, "the draft was not asked for hidden states"
        optional["draft_hidden"] = _at(proposal.hidden, rows, places)
    if Needs.UNIFORMS in needs:
        assert uniforms is not None, "uniforms were not drawn"
        optional["uniforms"] = uniforms.arbiter[rows, places]
    num_generated, num_overrides, num_corrections = history[rows].unbind(dim=1)
    return MismatchBatch(
        rows=rows,
        block_positions=places,
        positions=num_generated + places,
        num_overrides=num_overrides,
        num_mismatches=num_overrides + num_corrections + _num_earlier(rows),
        block_lengths=proposal.lengths[rows],
        draft_ids=proposal.token_ids[rows, places],
        target_ids=verdict.target_ids[rows, places],
        **optional,
    )


def _num_earlier(rows: Tensor) -> Tensor:
    """How many mismatches of its row precede each in the block, (M,), from their rows in order."""
    rows = rows.contiguous()
    return torch.arange(len(rows), device=rows.device) - torch.searchsorted(rows, rows)


def _at(steps: list[Tensor], rows: Tensor, places: Tensor) -> Tensor:
    """What K tensors of (B, X) hold at the mismatches, (M, X), without a copy of them all."""
    used, inverse = _distinct(rows)
    return torch.stack([step[used] for step in steps], dim=1)[inverse, places]


def _distinct(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The rows with a mismatch, (R,), and which of them each mismatch is in, (M,)."""
    used, inverse = torch.unique_consecutive(rows, return_inverse=True)
    return used, inverse


def _lookahead(
    verdict: Verdict, proposal: Proposal, rows: Tensor, places: Tensor
) -> tuple[Tensor, Tensor]:
    """What the target thinks of the drafted tokens behind each mismatch, each (M, K - 1)."""
    drafted = proposal.token_ids
    num_drafted = drafted.shape[1]
    used, inverse = _distinct(rows)  # R rows with a mismatch
    logits = verdict.logits[used, :-1].float()
    log_p = logits.gather(-1, drafted[used, :, None])[..., 0] - logits.logsumexp(dim=-1)  # (R, K)
    ahead = places[:, None] + torch.arange(1, num_drafted, device=places.device)  # (M, K - 1)
    is_inside = ahead < proposal.lengths[rows, None]
    ahead = ahead.clamp(max=num_drafted - 1)
    matches = verdict.is_match[rows[:, None], ahead] & is_inside
    return matches, torch.where(is_inside, log_p[inverse[:, None], ahead], 0.0)


def trace_probs(verdict: Verdict, proposal: Proposal, batch: MismatchBatch) -> Tensor:
    """Probabilities of both tokens under both models, before temperature and truncation.

    Args:
        verdict: The target's view of the block.
        proposal: What was drafted.
        batch: Its mismatches.

    Returns:
        (4, M): p(draft's), p(target's), q(draft's), q(target's).
    """
    rows, places = batch.rows, batch.block_positions
    ids = torch.stack([batch.draft_ids, batch.target_ids], dim=1)  # (M, 2)
    both = []
    for raw in (verdict.logits[rows, places], _at(proposal.logits, rows, places)):
        logits = raw.float()
        both.append(logits.gather(1, ids) - logits.logsumexp(dim=1, keepdim=True))
    return torch.cat(both, dim=1).exp().T
