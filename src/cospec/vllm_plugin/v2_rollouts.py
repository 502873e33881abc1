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

    Args:
        adapter: The arbiter.
        rows: Rows of the step, bonus rows among them.
        slots: Slot of each request, R of them.
        cu_num_logits: Number of rows before each request, then of all rows, (R + 1,).
    """
    if Needs.UNIFORMS not in adapter.row_arbiter.arbiter.needs:
        return rows
    has_drafts = rows.is_drafted[cu_num_logits[:-1].long()].tolist()
    num_rows, device = cu_num_logits.diff().tolist(), cu_num_logits.device
    return replace(rows, uniforms=adapter.uniforms(slots, num_rows, has_drafts, device))


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
        adapter: The arbiter.
        rows: Rows that were ruled on, bonus rows among them.
        rulings: Rulings on the rows.
        sampled: Tokens of each request, (R, K + 1).
        num_sampled: Number of those that count, (R,).
        slots: Slot of each request, R of them.
        cu_num_logits: As above.
    """
    if adapter.recorder is None:
        return  # before anything waits for the device
    places = torch.arange(sampled.shape[1], device=sampled.device)
    emitted = torch.where(places < num_sampled[:, None], sampled, -1)
    is_last = rows.requests.diff(append=rows.requests.new_full((1,), -1)) != 0  # bonus rows
    num_rows = (cu_num_logits.diff() - 1).tolist()
    adapter.record(slots, num_rows, rows, rulings, emitted, is_kept=~is_last)
