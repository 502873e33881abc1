"""Blocks that end by themselves in vLLM's first model runner, which drafts whole ones.

vLLM's loop over the tokens of a block cannot be told to stop. So the drafter's sampling function
raises once every block has ended, `EndingBlocks.propose` catches that, and the list of drafts that
goes to the scheduler is cut row by row. The scheduler has to wait for that list: with async
scheduling it expects whole blocks.
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
    )
    if not config.ends_blocks_early:
        return None
    is_async = vllm_config.scheduler_config.async_scheduling
    if not is_async and vllm_config.parallel_config.data_parallel_size == 1:
        return config
    why = "async scheduling" if is_async else "data parallelism"
    if settings.draft_confidence_threshold or settings.records is not None:
        raise ConfigError(
            f"with {why} vLLM drafts whole blocks, and draft_confidence_threshold "
            f"{config.draft_confidence_threshold}, end_blocks_at_stop {config.end_blocks_at_stop} "
            f"and max_corrections {config.max_corrections} end them early; pass "
            "--no-async-scheduling and use one data-parallel rank, or leave these out."
        )
    logger.warning(
        "CoSpec: with %s vLLM drafts whole blocks; --no-async-scheduling lets them end early", why
    )
    return None


class _AllEndedError(Exception):
    """Every block of a drafting step has ended."""


class EndingBlocks:
    """Ends the blocks of a runner's drafter; each row's block ends on its own.

    Args:
        runner: The runner, whose drafter hands out its logits if blocks end by confidence.
        sampler: Its sampler, with the table of the running requests.
        config: Options that end blocks.
    """

    def __init__(
        self,
        runner: Any,  # Any: vLLM's GPUModelRunner
        sampler: Any,  # Any: cospec.vllm_plugin.v1.ArbiterSampler, which imports vLLM
        config: DecodeConfig,
    ) -> None:
        self._runner, self._sampler, self._config = runner, sampler, config
        drafter, self._vocab_size = runner.drafter, runner.model_config.get_vocab_size()
        self._propose, self._sample = drafter.propose, drafter._sample_draft_tokens
        self._take = runner.take_draft_token_ids
        drafter.propose, drafter._sample_draft_tokens = self.propose, self.sample
        runner.take_draft_token_ids = self.take
        self._ends: Ends | None = None
        self._lengths: Tensor | None = None
        self._drafted: list[tuple[Tensor, Tensor | None]] = []

    def propose(self, **given: Any) -> Tensor:  # Any: whatever the runner passes
        """Draft up to K tokens for R rows, (R, J): J is the length of the longest block."""
        self._begin(given["next_token_ids"])
        try:
            found: Tensor = self._propose(**given)
        except _AllEndedError:
            token_ids, shown = zip(*self._drafted, strict=True)
            if shown[0] is not None:
                self._runner.drafter._last_draft_probs = torch.stack(shown, dim=1)
            found = torch.stack(token_ids, dim=1)
        self._ends, self._drafted = None, []
        return found

    def sample(
        self,
        hidden_states: Tensor,
        sampling_metadata: Any,  # Any: vLLM's SamplingMetadata
    ) -> tuple[Tensor, Tensor | None]:
        """Choose the next token of each row, and stop the drafting after the last block's end."""
        token_ids, shown = self._sample(hidden_states, sampling_metadata)
        ends = self._ends
        if ends is None or self._lengths is None:
            return token_ids, shown
        self._lengths += ends.is_open
        self._drafted.append((token_ids, shown))
        logits = torch.empty(0) if shown is None else shown[:, : self._vocab_size]
        ends.after(len(self._drafted) - 1, token_ids[:, None], logits, None)
        if len(self._drafted) < self._config.k and not ends.is_open.any():
            raise _AllEndedError
        return token_ids, shown

    def take(self) -> Any:  # Any: vLLM's DraftTokenIds
        """Return the drafted tokens of each row up to the end of its block."""
        found, lengths = self._take(), self._lengths
        self._lengths = None
        if found is None or lengths is None:
            return found
        pairs = zip(found.draft_token_ids, lengths.clamp(min=1).tolist(), strict=True)
        return type(found)(found.req_ids, [ids[:length] for ids, length in pairs])

    def _begin(self, next_ids: Tensor) -> None:
        """Open the blocks of the batch's rows, given the last tokens of their texts, (R,).

        vLLM drafts for texts that have just ended as well, since its scheduler learns of the end
        only after the step. Their drafts are nobody's, and so are those of a row whose prompt is
        not read yet, which the runner discards.
        """
        self._ends, self._lengths, self._drafted = None, None, []
        runner, sampler = self._runner, self._sampler
        if any(one not in runner.requests for one in runner.input_batch.req_ids):
            return  # as in a warm-up
        slots = torch.tensor(sampler.find_slots(), device=runner.device)
        columns = sampler.adapter.table.columns(slots)
        is_discarded = torch.from_numpy(runner.discard_request_mask.np[: len(slots)].copy())
        each = torch.zeros_like(slots)  # one row a request
        is_ended = ended_before(columns.is_ended, next_ids, each, columns.stop_ids)
        is_open = ~(is_ended | is_discarded.to(runner.device))
        stops = columns.stop_ids if self._config.end_blocks_at_stop else None
        self._ends = Ends(is_open, stops, None, self._bounds(columns), self._config.k)
        self._lengths = torch.zeros(len(slots), dtype=torch.int64, device=runner.device)

    def _bounds(self, columns: RequestColumns) -> list[tuple[int, float]]:
        """Return the bounds of each row's block."""
        is_lossless = ~columns.is_open
        if self._config.max_corrections is not None:
            num_corrections = columns.num_mismatches - columns.num_overrides
            is_lossless |= num_corrections >= self._config.max_corrections
        flags = is_lossless.tolist()
        return [self._config.block_bounds(is_lossless=flag) for flag in flags]
