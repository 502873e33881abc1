"""The drafter of vLLM's first model runner: its logits, and the requests that it leaves out.

This file knows vLLM's names and loads without vLLM.
"""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor


def keep_draft_logits(runner: Any, *, with_hidden: bool) -> None:  # Any: vLLM's GPUModelRunner
    """Make a runner's drafter hand out its logits where it would hand out probabilities.

    With hidden states, it hands out (R, V + H'): the states that the logits were computed from
    follow the logits. It drafts the same tokens as before: the most probable ones, unless it was
    told to sample. If it samples, requests with a seed draft by it, which vLLM 0.32 ignores there.
    """

    def sample(
        self: Any,  # Any: vLLM's SpecDecodeBaseProposer
        hidden_states: Tensor,
        sampling_metadata: Any,  # Any: vLLM's SamplingMetadata
    ) -> tuple[Tensor, Tensor]:
        logits: Tensor = self.model.compute_logits(hidden_states)
        shown = logits
        if with_hidden:
            shown = torch.cat([logits, hidden_states.to(logits.dtype)], dim=1)
        if not is_sampling(self, sampling_metadata):
            return logits.argmax(dim=-1), shown
        # A copy, which may be divided in place.
        token_ids, _ = self._sample_from_logits(logits.clone(), sampling_metadata)
        is_discarded = runner.discard_request_mask.np  # their prompts are not read yet
        for row, generator in sampling_metadata.generators.items():
            if is_discarded[row]:
                continue
            warm = logits[row] / sampling_metadata.temperature[row]
            probs = warm.softmax(dim=-1, dtype=torch.float32)
            noise = torch.empty_like(probs).exponential_(generator=generator)
            token_ids[row] = (probs / noise).argmax()
        return token_ids, shown

    runner.drafter._sample_draft_tokens = types.MethodType(sample, runner.drafter)


def follow_drafting(
    runner: Any,  # Any: vLLM's GPUModelRunner
    sampler: Any,  # Any: cospec.vllm_plugin.v1.ArbiterSampler, which imports vLLM
) -> None:
    """Tell a sampler for which requests the runner drafted nothing: of these it verifies token 0.

    Near ``--max-model-len`` vLLM drafts nothing for any request of a step.
    """
    stock = runner._input_fits_in_drafter

    def input_fits_in_drafter(*args: Any) -> Any:  # Any: whatever the runner passes
        fits, here = stock(*args), set(runner.input_batch.req_ids)
        undrafted = sampler.undrafted - here if fits else sampler.undrafted | here
        sampler.undrafted = undrafted & runner.requests.keys()
        return fits

    runner._input_fits_in_drafter = input_fits_in_drafter


def is_sampling(drafter: Any, sampling_metadata: Any) -> bool:  # Any: as above
    """Return whether a drafter samples its tokens in a step."""
    return bool(drafter._enable_probabilistic_draft_probs and not sampling_metadata.all_greedy)
