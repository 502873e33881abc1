"""The arbiter's call for all mismatches of a block, and which of its rulings count."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from cospec.engine.verify import collect_mismatches, is_cut, parts_of_rows, trace_probs
from cospec.rulings import Veto, check_ruling, find_vetoes
from cospec.types import NO_FEATURES, Arbiter, Needs, Origin, Ruling

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from cospec.engine.rows import Row
    from cospec.engine.verify import Verification
    from cospec.engine.walk import Block
    from cospec.sampling import Chance
    from cospec.types import Proposal


class Decision(NamedTuple):
    """The ruling that counts at one mismatch, after the vetoes."""

    keep_draft: bool
    is_open: bool = True
    """True if a ruling for the draft would have counted."""
    veto: Veto = Veto.NONE
    """Reason why the ruling did not count, if it did not."""
    score: float | None = None
    probs: tuple[float, ...] = (math.nan,) * 4
    """p(draft's), p(target's), q(draft's), q(target's); NaN without a trace or a q."""
    features: Tensor = NO_FEATURES
    """Features that the arbiter saw, (F,); empty if it reports none, or no trace is kept."""


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
    """Ask the arbiter about all mismatches of a block: at once, or in parts if memory is short.

    Args:
        arbiter: Arbiter that rules on them.
        rows: The rows as they were before the block.
        blocks: Verified block of each row, on the host.
        proposal: The drafted tokens.
        verified: The target's view of the block.
        chance: Distributions and random numbers of the rows.
        keep_trace: Whether to bring probabilities and features to the host, vetoed rulings' too.

    Returns:
        By row, the decision at the place of each mismatch. An arbiter that needs the draft's logits
        or states is not asked about tokens that no model drafted; there the target's token stands.

    Raises:
        ArbiterError: The answer is not a ruling on each mismatch.
    """
    decisions = _unasked(arbiter, rows, blocks, proposal, keep_trace)
    where = [  # without a trace those that meet one of the two vetoes are not asked
        (r, j, keep_trace and _is_stop(row, block, j), keep_trace and _is_exact(row, j))
        for r, (row, block) in enumerate(zip(rows, blocks, strict=True))
        for j in block.mismatches()
        if j not in decisions[r]
    ]
    if not where:
        return decisions
    ruled = Origin.OVERRIDE, Origin.CORRECTION
    counts = [[len(row.generated), *map(row.count, ruled)] for row in rows]
    history = torch.tensor(counts, device=proposal.token_ids.device)  # (B, 3)

    def decide(part: Sequence[tuple[int, ...]]) -> list[Decision]:
        r, places, is_stop, is_exact = torch.tensor(part, device=history.device).unbind(dim=1)
        batch = collect_mismatches(verified, proposal, r, places, history, arbiter.needs, chance)
        ruling = arbiter.rule(batch)
        check_ruling(ruling, batch, arbiter.name)
        vetoes = find_vetoes(
            ruling.score,
            draft_logit=verified.logits[r, places, batch.draft_ids],
            is_cut=is_cut(verified, batch, chance.warper),
            is_exact=is_exact.bool(),
            is_stop=is_stop.bool(),
        )
        probs = trace_probs(verified, proposal, batch) if keep_trace else None
        return list(_to_host(ruling, vetoes, probs))

    for part in parts_of_rows(where, verified.logits.shape[-1]):
        for (row, place, *_), decision in zip(part, decide(part), strict=True):
            decisions[row][place] = decision
    return decisions


def _unasked(
    arbiter: Arbiter,
    rows: Sequence[Row],
    blocks: Sequence[Block],
    proposal: Proposal,
    keep_trace: bool,
) -> list[dict[int, Decision]]:
    """Rule for the target where no model drafted and the arbiter needs the draft's output.

    Likewise where no ruling could count, unless a trace shows it.
    """
    needs_draft = proposal.num_forwards is not None and bool(arbiter.needs & Needs.DRAFT)
    no_draft = Decision(keep_draft=False, is_open=False, veto=Veto.NO_DRAFT)
    closed = no_draft._replace(veto=Veto.NONE)
    found: list[dict[int, Decision]] = []
    for row, block in zip(rows, blocks, strict=True):
        if needs_draft and not block.num_forwards:
            found.append(dict.fromkeys(block.mismatches(), no_draft))
        elif keep_trace:
            found.append({})
        else:
            vetoed = (j for j in block.mismatches() if _is_exact(row, j) or _is_stop(row, block, j))
            found.append(dict.fromkeys(vetoed, closed))
    return found


def _to_host(ruling: Ruling, vetoes: Tensor, probs: Tensor | None) -> Iterator[Decision]:
    """Bring M rulings to the host as decisions; with probabilities (4, M), features too."""
    keep, has_score = ruling.keep_draft, ruling.score is not None
    parts = [keep, vetoes, keep if ruling.score is None else ruling.score]
    parts += [] if probs is None else probs.unbind()
    table = torch.stack([part.double() for part in parts], dim=1).tolist()  # (M, 3 or 7)
    shown: Sequence[Tensor] = [NO_FEATURES] * len(table)
    if probs is not None and ruling.features is not None:
        shown = ruling.features.float().cpu().unbind()  # M of (F,)
    for features, (kept, number, score, *four) in zip(shown, table, strict=True):
        veto = Veto(int(number))
        is_open = veto is Veto.NONE
        yield Decision(
            keep_draft=bool(kept) and is_open,
            is_open=is_open,
            veto=veto if kept or veto is Veto.NON_FINITE else Veto.NONE,
            score=score if has_score else None,
            probs=tuple(four) or (math.nan,) * 4,
            features=features,
        )


def _is_stop(row: Row, block: Block, place: int) -> bool:
    """Return whether either token at a mismatch ends the text and may not be overridden."""
    ids = {block.drafted[place], block.target_ids[place]}
    return not row.config.override_stop_tokens and not ids.isdisjoint(row.stop_ids)


def _is_exact(row: Row, place: int) -> bool:
    """Return whether no override is allowed at a place of the row's block."""
    return row.is_lossless or len(row.generated) + place < row.config.exact_prefix_tokens
