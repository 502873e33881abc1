"""Hidden states in vLLM's second model runner, for arbiters that look at them.

This file knows vLLM's names and loads without vLLM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from cospec.vllm_plugin.known import require

if TYPE_CHECKING:
    from torch import Tensor

RUNNER_NAMES = (
    "sample",
    "speculator.sample_draft",
    "speculator.max_num_reqs",
    "speculator.num_speculative_steps",
    "speculator.hidden_size",
    "speculator.draft_model_config.dtype",
)


class HiddenStates:
    """The states that both models' output matrices were applied to in a step.

    The target's are those of the step that is sampled from. The draft's are kept by slot and place,
    as vLLM keeps the draft's logits, and are written in the draft's step: by its CUDA graph too.

    Args:
        runner: A loaded runner; it shows its states from now on.

    Raises:
        ConfigError: The runner has not the names that we know.
    """

    def __init__(self, runner: Any) -> None:  # Any: vLLM's second GPUModelRunner
        require(runner, RUNNER_NAMES)
        speculator = runner.speculator
        # Padded rows of a CUDA graph have slot -1: they write to the last, which nobody reads.
        shape = speculator.max_num_reqs + 1, speculator.num_speculative_steps
        self._drafts = torch.zeros(
            *shape,
            speculator.hidden_size,
            dtype=speculator.draft_model_config.dtype,
            device=runner.device,
        )
        self._target = self._drafts.new_empty(0, 0)
        self._sample, self._sample_draft = runner.sample, speculator.sample_draft
        runner.sample, speculator.sample_draft = self.sample, self.sample_draft

    def sample(
        self,
        hidden_states: Tensor,
        input_batch: Any,  # Any: vLLM's InputBatch
        *more: Any,  # Any: whatever the runner passes
        **options: Any,
    ) -> Any:  # Any: vLLM's SamplerOutput and two tensors
        """Keep the target's states of a step, row by row as its logits are."""
        self._target = hidden_states[input_batch.logits_indices]
        return self._sample(hidden_states, input_batch, *more, **options)

    def sample_draft(
        self,
        hidden_states: Tensor,
        sample_src_positions: Tensor,
        idx_mapping: Tensor,
        temperature: Tensor,
        seeds: Tensor,
        draft_step: Tensor,
        *more: Any,  # Any: as above
        **options: Any,
    ) -> Tensor:
        """Keep the draft's states of a step, (R, H'), at the slots `idx_mapping`, (R,)."""
        self._drafts[idx_mapping.long(), draft_step.long()] = hidden_states.to(self._drafts.dtype)
        found: Tensor = self._sample_draft(
            hidden_states,
            sample_src_positions,
            idx_mapping,
            temperature,
            seeds,
            draft_step,
            *more,
            **options,
        )
        return found

    def of_rows(self, slots: Tensor, places: Tensor) -> dict[str, Tensor]:
        """Take the states of the next rows of the step, by their names in `VerifiedRows`.

        vLLM verifies a large step in parts, one after the other.

        Args:
            slots: Slot of each row's request, (N,) int64.
            places: Place in the block of the token drafted from it, (N,) int64.
        """
        here, self._target = self._target[: len(slots)], self._target[len(slots) :]
        return {
            "target_hidden": here,
            "target_hidden_after": here.roll(-1, 0),
            "draft_hidden": self._drafts[slots, places],
        }
