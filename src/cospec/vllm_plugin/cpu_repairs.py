"""Repairs of faults of vLLM's sampled verification on a CPU, in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from cospec.vllm_plugin.wrap import wrap_once

if TYPE_CHECKING:
    from torch import Tensor


def repair_cpu(sampler_module: Any) -> None:  # Any: vllm.v1.sample.rejection_sampler
    """Repair two faults of sampled verification on a CPU, once.

    ``expand_batch_to_tokens`` returns memory that was never written, because its kernel fills a
    copy: temperature, top-k and top-p are then noise. And a step without drafted rows fails with
    top-k.
    """
    wrap_once(sampler_module, "apply_sampling_constraints", _for_any_rows)
    sampler_module.expand_batch_to_tokens = expand_batch_to_tokens


def _for_any_rows(stock: Any) -> Any:  # Any: vLLM's function
    def apply_sampling_constraints(
        logits: Tensor,
        cu_num_draft_tokens: Tensor,
        sampling_metadata: Any,  # Any: vLLM's SamplingMetadata
    ) -> Any:  # Any: a tensor
        if logits.shape[0] == 0:
            return logits
        return stock(logits, cu_num_draft_tokens, sampling_metadata)

    return apply_sampling_constraints


def expand_batch_to_tokens(
    x: Tensor, cu_num_tokens: Tensor, num_tokens: int, replace_from: int = 0, replace_to: int = 0
) -> Tensor:
    """Each request's value for each of its tokens, as vLLM's function of that name promises.

    Args:
        x: Value of each request, (R,).
        cu_num_tokens: Number of tokens up to and including each request, (R,).
        num_tokens: Number of all tokens, T.
        replace_from: Value that is replaced.
        replace_to: Value in its place.

    Returns:
        Value of each token, (T,).
    """
    tokens = torch.arange(num_tokens, device=x.device)
    expanded = x[torch.searchsorted(cu_num_tokens.long(), tokens, right=True)]
    return torch.where(expanded == replace_from, replace_to, expanded).to(x.dtype)
