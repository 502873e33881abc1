"""Rollouts in vLLM's second model runner: their random numbers, and the steps that they keep."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from cospec.types import Needs

if TYPE_CHECKING:
    from torch import Tensor

    from cospec.vllm_plugin.adapter import Adapter
    from cospec.vllm_plugin.bridge import RowRulings, VerifiedRows


def with_uniforms(
    adapter: Adapter, rows: VerifiedRows, slots: list[int], cu_num_logits: Tensor
) -> VerifiedRows:
    """Give rows random numbers for their rulings, if the arbiter rules by chance.

    A rollout draws its own, as in our engine.

    Args:
        adapter: The arbiter.
        rows: Rows of the step, bonus rows among them.
        slots: Slot of each request, R of them.
        cu_num_logits: Number of rows before each request, then of all rows, (R + 1,).
    """
    if Needs.UNIFORMS not in adapter.row_arbiter.arbiter.needs:
        return rows
    device, num_rows = cu_num_logits.device, cu_num_logits.diff().tolist()
    is_drafted = rows.is_drafted[cu_num_logits[:-1].long()].tolist()
    k, shared = adapter.row_arbiter.k, adapter.row_arbiter.generator
    parts = []
    for slot, n, has_drafts in zip(slots, num_rows, is_drafted, strict=True):
        own = adapter.table.generators.get(slot) if has_drafts else None
        if own is None:
            draw = torch.rand(n, generator=shared, dtype=torch.float64, device=device)
        else:  # The last k of a block's numbers: see `cospec.sampling.Uniforms`.
            drawn = torch.rand(4 * k + 1, generator=own, dtype=torch.float64)[3 * k + 1 :]
            draw = torch.nn.functional.pad(drawn[: n - 1], (0, 1)).to(device)
        parts.append(draw)
    return replace(rows, uniforms=torch.cat(parts))


def record(
    adapter: Adapter,
    rows: VerifiedRows,
    rulings: RowRulings,
    sampled: Tensor,
    num_sampled: Tensor,
    slots: list[int],
    cu_num_logits: Tensor,
) -> None:
    """Keep a step for the rollouts among its requests.

    Args:
        adapter: The arbiter, with a recorder.
        rows: Rows that were ruled on, bonus rows among them.
        rulings: Rulings on the rows.
        sampled: Tokens of each request, (R, K + 1).
        num_sampled: Number of those that count, (R,).
        slots: Slot of each request, R of them.
        cu_num_logits: As above.
    """
    recorder, rollouts = adapter.recorder, adapter.table.rollouts
    if recorder is None or not adapter.is_reporting:
        return
    keys = [rollouts[slot].key if slot in rollouts else "" for slot in slots]
    places = torch.arange(sampled.shape[1], device=sampled.device)
    emitted = torch.where(places < num_sampled[:, None], sampled, -1)
    is_last = rows.requests.diff(append=rows.requests.new_full((1,), -1)) != 0  # bonus rows
    num_rows = (cu_num_logits.diff() - 1).tolist()
    recorder.add(keys, num_rows, rows, rulings, emitted, is_kept=~is_last)
