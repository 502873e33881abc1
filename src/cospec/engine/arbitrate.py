"""The arbiter's call: all mismatches of a block at once, and what counts of its rulings."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from cospec.engine.verify import collect_mismatches, is_cut, trace_probs
from cospec.errors import ArbiterError
from cospec.rulings import Veto, find_vetoes
from cospec.types import NO_FEATURES, Arbiter, MismatchBatch, Origin, Ruling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from cospec.engine.rows import Row
    from cospec.engine.verify import Verification
    from cospec.engine.walk import Block
    from cospec.sampling import Chance
    from cospec.types import Proposal


class Decision(NamedTuple):
    """The ruling that counts at one mismatch, after the vetoes."""

    keep_draft: bool
    veto: Veto = Veto.NONE
    score: float | None = None
    probs: tuple[float, ...] = (math.nan,) * 4
    """p(draft's), p(target's), q(draft's), q(target's); NaN without a trace, or without a q."""
    features: Tensor = NO_FEATURES
    """What the arbiter saw, (F,); empty if it does not tell, or no trace is kept."""


def arbitrate(
    arbiter: Arbiter,
    rows: Sequence[Row],
    blocks: Sequence[Block],
    proposal: Proposal,
    verified: Verification,
    chance: Chance,
    *,
    keep_trace: bool,
) -> list[dict[int, Decision]]:
    """Ask the arbiter once about all mismatches of a block.

    Args:
        arbiter: Who rules.
        rows: The rows, as before the block.
        blocks: What the models said of each, on the host.
        proposal: What was drafted.
        verified: What the target says of it.
        chance: How the rows draw.
        keep_trace: Whether to bring probabilities and features to the host as well.

    Returns:
        By row, the decision at the place of each mismatch.

    Raises:
        ArbiterError: The answer is not a ruling on each mismatch.
    """
    decisions: list[dict[int, Decision]] = [{} for _ in blocks]
    where = [(r, j) for r, block in enumerate(blocks) for j in block.mismatches()]
    if not where:
        return decisions
    device = proposal.token_ids.device
    r, places = torch.tensor(where, device=device).unbind(dim=1)
    history, num_exact, stop_ids = _state_of(rows, device)
    batch = collect_mismatches(
        verified, proposal, r, places, history, arbiter.needs, chance.uniforms
    )
    ruling = arbiter.rule(batch)
    _check(ruling, batch, arbiter.name)
    vetoes = find_vetoes(
        ruling.keep_draft,
        ruling.score,
        draft_ids=batch.draft_ids,
        target_ids=batch.target_ids,
        draft_logit=verified.logits[r, places, batch.draft_ids],
        is_cut=is_cut(verified, batch, chance.warper),
        positions=batch.positions,
        num_exact=num_exact[r],
        stop_ids=stop_ids[r],
    )
    keep = ruling.keep_draft & (vetoes == Veto.NONE)
    parts = [keep, vetoes, keep if ruling.score is None else ruling.score]
    if keep_trace:
        parts += trace_probs(verified, proposal, batch).unbind()
    table = torch.stack([part.double() for part in parts], dim=1).tolist()  # (M, 3 or 7)
    shown: Sequence[Tensor] = [NO_FEATURES] * len(where)
    if keep_trace and ruling.features is not None:
        shown = ruling.features.float().cpu().unbind()  # M of (F,)
    for (row, place), features, (kept, veto, value, *probs) in zip(
        where, shown, table, strict=True
    ):
        decisions[row][place] = Decision(
            bool(kept),
            Veto(int(veto)),
            None if ruling.score is None else value,
            tuple(probs) or (math.nan,) * 4,
            features,
        )
    return decisions


def _state_of(rows: Sequence[Row], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Collect the state of each row that vetoes and arbiters use, in one transfer.

    Returns:
        Tokens generated, overrides and corrections among them, (B, 3); tokens that stay lossless,
        (B,); tokens that end the text and are never overridden, padded with -1, (B, S).
    """
    stops = [() if r.config.override_stop_tokens else tuple(r.stop_ids) for r in rows]
    width = max(map(len, stops))
    ruled = Origin.OVERRIDE, Origin.CORRECTION
    state = [
        [
            len(row.generated),
            *map(row.origins.count, ruled),
            row.config.exact_prefix_tokens,
            *ids,
            *[-1] * (width - len(ids)),
        ]
        for row, ids in zip(rows, stops, strict=True)
    ]
    table = torch.tensor(state, device=device)
    return table[:, :3], table[:, 3], table[:, 4:]


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
