"""Blocks that end by themselves in vLLM's second model runner, as of 0.34.

The speculator drafts in a loop, and describes each step to the attention before it runs: there
`EndingBlocks` looks at the tokens so far, and raises once every block has ended. On a GPU a draft
step is still a CUDA graph, but the whole loop is no longer one. How many tokens a block has is
told to the scheduler by the handler of the drafts.
This file knows vLLM's names and loads without vLLM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from cospec.vllm_plugin.blocks import AllEndedError, open_blocks
from cospec.vllm_plugin.known import require

if TYPE_CHECKING:
    from torch import Tensor

    from cospec.config import DecodeConfig
    from cospec.drafters.ends import Ends
    from cospec.vllm_plugin.requests import RequestTable

RUNNER_NAMES = (
    "draft_tokens_handler._draft_tokens_by_req",
    "draft_tokens_handler.set_draft_tokens",
    "speculator.draft_tokens",
    "speculator.supports_decode_metadata_update",
    "speculator._configure_decode_metadata_update",
    "speculator._build_uniform_attn_metadata",
)


class EndingBlocks:
    """Ends the blocks of a runner's speculator; each row's block ends on its own.

    Args:
        runner: The runner, whose speculator keeps its logits if blocks end by confidence.
        table: The runner's requests.
        config: Options that end blocks.

    Raises:
        ConfigError: The runner has not the names that we know.
    """

    def __init__(
        self,
        runner: Any,  # Any: vLLM's second GPUModelRunner
        table: RequestTable,
        config: DecodeConfig,
    ) -> None:
        require(runner, RUNNER_NAMES)
        self._speculator, self._table, self._config = runner.speculator, table, config
        self._handler = runner.draft_tokens_handler
        self._propose = self._speculator.propose
        self._describe = self._speculator._build_uniform_attn_metadata
        self._hand_out = self._handler.set_draft_tokens
        self._speculator.propose = self.propose
        self._speculator._build_uniform_attn_metadata = self.describe
        self._handler.set_draft_tokens = self.hand_out
        # Else the loop is captured as one graph, which nothing can stop.
        self._speculator.supports_decode_metadata_update = False
        self._speculator._configure_decode_metadata_update = lambda: None
        self._ends: Ends | None = None
        self._slots = torch.empty(0, dtype=torch.int64)
        self._lengths: Tensor | None = None  # of this step's blocks so far, (R,)

    def propose(
        self,
        input_batch: Any,  # Any: vLLM's InputBatch
        attn_metadata: Any,  # Any: by layer, vLLM's
        slot_mappings: Any,
        last_hidden_states: Tensor,
        aux_hidden_states: Any,  # Any: tensors, or None
        num_sampled: Tensor,
        num_rejected: Tensor,
        last_sampled: Tensor,
        *more: Any,  # Any: whatever the runner passes
        **options: Any,
    ) -> Tensor:
        """Draft for R requests, (R, K): of each row, the tokens up to its block's end count.

        `num_sampled` is 0 for a request whose prompt is not read yet, (R,). `last_sampled` is the
        last token of each slot's text, (slots, 1).
        """
        self._begin(input_batch, num_sampled, last_sampled, **options)
        shown = attn_metadata, slot_mappings, last_hidden_states, aux_hidden_states
        try:
            found: Tensor = self._propose(
                input_batch, *shown, num_sampled, num_rejected, last_sampled, *more, **options
            )
        except AllEndedError:
            found = self._speculator.draft_tokens[: input_batch.num_reqs]
        self._lengthen()
        self._ends = None
        return found

    def _begin(
        self,
        input_batch: Any,  # Any: vLLM's InputBatch
        num_sampled: Tensor,
        last_sampled: Tensor,
        *,
        dummy_run: bool = False,
        **_: Any,  # Any: the runner's other options
    ) -> None:
        """Open the blocks of a step, unless it is a warm-up."""
        self._ends = self._lengths = None
        if dummy_run:
            return
        self._slots = input_batch.idx_mapping.long()
        columns = self._table.columns(self._slots)
        next_ids = last_sampled[self._slots, 0]
        self._ends = open_blocks(self._config, columns, next_ids, num_sampled == 0)
        self._lengths = torch.zeros_like(self._slots)

    def _lengthen(self) -> None:
        """Count the token that was drafted last in the blocks that were open for it."""
        if self._ends is not None and self._lengths is not None:
            self._lengths += self._ends.is_open

    def describe(self, *args: Any, step: int, **given: Any) -> Any:  # Any: as above
        """Describe a step of the loop to the attention, unless the last block has ended."""
        self._lengthen()
        if (ends := self._ends) is not None:
            place = step - 1
            ids = self._speculator.draft_tokens[: len(self._slots), place : place + 1]
            ends.after(place, ids, self._logits(place), None)
            if not ends.is_open.any():
                raise AllEndedError
        return self._describe(*args, step=step, **given)

    def _logits(self, place: int) -> Tensor:
        """The logits that the tokens at a place were drawn from, (R, V), if blocks need them."""
        if not self._config.ends_by_confidence:
            return torch.empty(0)
        logits: Tensor = self._speculator.draft_logits.values[self._slots, place]
        return logits

    def hand_out(self, input_batch: Any, draft_tokens: Tensor) -> None:  # Any: vLLM's InputBatch
        """Tell the scheduler of each request's drafts up to the end of its block."""
        self._hand_out(input_batch, draft_tokens)
        lengths, self._lengths = self._lengths, None
        if lengths is None:
            return
        drafts = self._handler._draft_tokens_by_req  # by id, token ids or their number
        pairs = zip(input_batch.req_ids, lengths.clamp(min=1).tolist(), strict=True)
        for request_id, length in pairs:
            kept = drafts[request_id]
            drafts[request_id] = min(kept, length) if isinstance(kept, int) else kept[:length]
