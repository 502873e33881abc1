"""Blocks that end by themselves in vLLM's first model runner, which drafts whole ones.

vLLM's loop over the tokens of a block cannot be told to stop. So the drafter's sampling function
raises once every block has ended, `EndingBlocks.propose` catches that, and the list of drafts that
goes to the scheduler is cut row by row.
This file knows vLLM's names and loads without vLLM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from cospec.vllm_plugin.blocks import AllEndedError, block_bounds, goes_on, open_blocks
from cospec.vllm_plugin.v1_cascade import Guessing
from cospec.vllm_plugin.v1_drafter import is_sampling

if TYPE_CHECKING:
    from torch import Tensor

    from cospec.config import DecodeConfig
    from cospec.drafters.ends import Ends
    from cospec.vllm_plugin.requests import RequestColumns


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
        self._guessing = Guessing(runner, config) if config.cascade else None
        self._ends: Ends | None = None
        self._lengths: Tensor | None = None
        self._drafted: list[tuple[Tensor, Tensor | None]] = []

    def propose(self, **given: Any) -> Tensor:  # Any: whatever the runner passes
        """Draft up to K tokens for R rows, (R, J): J is the length of the longest block."""
        self._ends, self._lengths, self._drafted = None, None, []
        if (step := self._requests(given["next_token_ids"])) is None:
            whole: Tensor = self._propose(**given)
            return whole
        drafter, columns = self._runner.drafter, step[0]
        guessing = self._guessing if given["num_speculative_tokens"] > 1 else None
        if guessing is not None and not is_sampling(drafter, given["sampling_metadata"]):
            bounds, is_open = block_bounds(self._config, columns), goes_on(*step)
            found, self._lengths = guessing.draft(
                self._propose, self._sample, given, bounds, columns.stop_ids, is_open
            )
            return found
        self._ends = open_blocks(self._config, *step)
        self._lengths = torch.zeros_like(step[1], dtype=torch.int64)
        try:
            found = self._propose(**given)
        except AllEndedError:
            token_ids, shown = zip(*self._drafted, strict=True)
            if shown[0] is not None:
                drafter._last_draft_probs = torch.stack(shown, dim=1)
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
            raise AllEndedError
        return token_ids, shown

    def take(self) -> Any:  # Any: vLLM's DraftTokenIds
        """Return the drafted tokens of each row up to the end of its block."""
        found, lengths = self._take(), self._lengths
        self._lengths = None
        if found is None or lengths is None:
            return found
        pairs = zip(found.draft_token_ids, lengths.clamp(min=1).tolist(), strict=True)
        return type(found)(found.req_ids, [ids[:length] for ids, length in pairs])

    def _requests(self, next_ids: Tensor) -> tuple[RequestColumns, Tensor, Tensor] | None:
        """Return a step's R requests: their columns, their last tokens, and which are not read yet.

        None in a warm-up.
        """
        runner, sampler = self._runner, self._sampler
        if any(one not in runner.requests for one in runner.input_batch.req_ids):
            return None
        slots = torch.tensor(sampler.find_slots(), device=runner.device)
        is_discarded = torch.from_numpy(runner.discard_request_mask.np[: len(slots)].copy())
        return sampler.adapter.table.columns(slots), next_ids, is_discarded.to(runner.device)
