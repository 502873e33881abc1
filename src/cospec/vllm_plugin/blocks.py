"""Blocks that end by themselves in vLLM: what both model runners have in common.

The scheduler has to wait for the drafts of a step: with async scheduling it expects whole blocks.
This file knows vLLM's names and loads without vLLM.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from cospec.config import DecodeConfig
from cospec.drafters.ends import Ends
from cospec.errors import ConfigError
from cospec.vllm_plugin.verdicts import ended_before

if TYPE_CHECKING:
    from torch import Tensor

    from cospec.vllm_plugin.requests import RequestColumns
    from cospec.vllm_plugin.settings import Settings

logger = logging.getLogger("vllm.cospec")  # vLLM shows the warnings of its own loggers alone


def ending(settings: Settings, vllm_config: Any) -> DecodeConfig | None:  # Any: vLLM's VllmConfig
    """Return the options that end blocks in an engine; None if it drafts whole ones.

    Raises:
        ConfigError: The engine cannot end its blocks, and a confidence threshold is set or it
            records rollouts.
    """
    config = DecodeConfig(
        num_speculative_tokens=vllm_config.speculative_config.num_speculative_tokens,
        draft_confidence_threshold=settings.draft_confidence_threshold,
        end_blocks_at_stop=settings.end_blocks_at_stop,
        max_corrections=settings.max_corrections,
        cascade=settings.cascade,
    )
    if not config.needs_each_draft:
        return None
    is_async = vllm_config.scheduler_config.async_scheduling
    if not is_async and vllm_config.parallel_config.data_parallel_size == 1:
        return config
    why = "async scheduling" if is_async else "data parallelism"
    if settings.draft_confidence_threshold or settings.cascade or settings.records is not None:
        raise ConfigError(
            f"with {why} vLLM drafts whole blocks, a token a forward; draft_confidence_threshold "
            f"{config.draft_confidence_threshold}, end_blocks_at_stop {config.end_blocks_at_stop}, "
            f"max_corrections {config.max_corrections} and cascade {config.cascade} change that; "
            "pass --no-async-scheduling and use one data-parallel rank, or leave these out."
        )
    logger.warning(
        "CoSpec: with %s vLLM drafts whole blocks; --no-async-scheduling lets them end early", why
    )
    return None


class AllEndedError(Exception):
    """Every block of a drafting step has ended."""


def open_blocks(
    config: DecodeConfig, columns: RequestColumns, next_ids: Tensor, is_discarded: Tensor
) -> Ends:
    """Open the blocks of a step's requests.

    vLLM drafts for texts that have just ended as well, since its scheduler learns of the end only
    after the step. Their drafts are nobody's.

    Args:
        config: Options that end blocks.
        columns: Columns of the R requests.
        next_ids: The last token of each text, which the draft reads first, (R,).
        is_discarded: Requests whose prompts are not read yet, (R,) bool; vLLM throws their drafts
            away.
    """
    stops = columns.stop_ids if config.end_blocks_at_stop else None
    is_open = goes_on(columns, next_ids, is_discarded)
    return Ends(is_open, stops, None, block_bounds(config, columns), config.k)


def goes_on(columns: RequestColumns, next_ids: Tensor, is_discarded: Tensor) -> Tensor:
    """Return which requests want drafts, (R,) bool; see `open_blocks`."""
    each = torch.zeros_like(next_ids, dtype=torch.int64)  # one row a request
    is_ended = ended_before(columns.is_ended, next_ids, each, columns.stop_ids)
    return ~(is_ended | is_discarded)


def block_bounds(config: DecodeConfig, columns: RequestColumns) -> list[tuple[int, float]]:
    """Return, by request, the block's most tokens and the probability below which one is last."""
    is_lossless = ~columns.is_open
    if config.max_corrections is not None:
        num_corrections = columns.num_mismatches - columns.num_overrides
        is_lossless = is_lossless | (num_corrections >= config.max_corrections)
    return [config.block_bounds(is_lossless=flag) for flag in is_lossless.tolist()]
