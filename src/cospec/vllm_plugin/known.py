"""The releases of vLLM that the plugin supports, and the private names that it hooks into.

These names move within months. So other releases are refused, unless the settings say otherwise,
and every name is looked up, with its parameters, before anything is changed. An engine with
settings and an unknown vLLM does not start.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from typing import TYPE_CHECKING, Any

from cospec.errors import ConfigError, pip_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SUPPORTED = ("0.32", "0.33", "0.34")
"""Releases of vLLM that are supported, with any patch level; the first has a CPU build."""
NAMED = f"{SUPPORTED[0]} to {SUPPORTED[-1]}"
"""The same for messages."""
_SAMPLER = "vllm.v1.sample.rejection_sampler:"
_PROPOSER = "vllm.v1.spec_decode.llm_base_proposer:SpecDecodeBaseProposer."
_GPU_V1 = "vllm.v1.worker.gpu_model_runner:GPUModelRunner."
_GPU = "vllm.v1.worker.gpu."

V1_NAMES: dict[str, str] = {
    f"{_SAMPLER}RejectionSampler.forward": "self metadata draft_probs logits sampling_metadata",
    f"{_SAMPLER}RejectionSampler.apply_logits_processors": "self logits sampling_metadata metadata",
    f"{_SAMPLER}RejectionSampler._get_logprobs_tensors": (
        "self max_num_logprobs metadata logits target_logits bonus_logits sampled_token_ids"
    ),
    f"{_SAMPLER}apply_sampling_constraints": "logits cu_num_draft_tokens sampling_metadata",
    f"{_SAMPLER}expand_batch_to_tokens": "x cu_num_tokens num_tokens replace_from replace_to",
    f"{_PROPOSER}propose": (
        "self num_speculative_tokens target_token_ids target_positions target_hidden_states "
        "next_token_ids token_indices_to_sample common_attn_metadata sampling_metadata "
        "mm_embed_inputs num_rejected_tokens_gpu slot_mappings"
    ),
    f"{_PROPOSER}_sample_draft_tokens": "self hidden_states sampling_metadata",
    f"{_PROPOSER}_sample_from_logits": "self logits sampling_metadata",
    f"{_PROPOSER}take_last_draft_probs": "self",
    f"{_GPU_V1}_get_spec_decode_draft_probs": "self spec_decode_metadata",
    f"{_GPU_V1}_input_fits_in_drafter": "self common_attn_metadata",
    f"{_GPU_V1}sample_tokens": "self grammar_output",
    f"{_GPU_V1}take_draft_token_ids": "self",
    "vllm.tokenizers.registry:cached_tokenizer_from_config": "model_config kwargs",
    "vllm.distributed.parallel_state:get_tp_group": "",
}
"""Functions that `v1` calls or overrides, and their parameters. vLLM 0.34 has no first runner."""

_VERIFIED = (
    "draft_sampled pos cu_num_logits idx_mapping idx_mapping_np expanded_idx_mapping "
    "expanded_local_pos seq_lens_upper_bound_np"
)
_SAMPLED = (
    "draft_sampled cu_num_logits pos idx_mapping expanded_idx_mapping expanded_local_pos "
    "temperature seed num_speculative_steps synthetic_conditional_rates use_fp64 "
    "use_block_verification contexts watermarking watermarking_skip_mask watermark_key"
)
_FLY = "fly_window_size fly_entropy_threshold fly_entropy_top_k"

V2_NAMES: dict[str, str] = {
    f"{_GPU}spec_decode.rejection_sampler:RejectionSampler._verify": (
        f"self logits draft_logits {_VERIFIED} verify_draft_sampled | "
        f"self logits draft_logits {_VERIFIED}"
    ),
    f"{_GPU}spec_decode.rejection_sampler:rejection_sample": (
        f"target_logits draft_logits {_SAMPLED} | target_logits draft_logits {_SAMPLED} {_FLY} | "
        f"target_logits draft_logits_cache {_SAMPLED} {_FLY} skip_masked_vocab_blocks"
    ),
    f"{_GPU}sample.sampler:Sampler.add_request": "self req_idx sampling_params",
    f"{_GPU}sample.sampler:Sampler.apply_sampling_params": (
        "self logits expanded_idx_mapping idx_mapping idx_mapping_np pos input_ids "
        "expanded_local_pos seq_lens_upper_bound_np skip_top_k_top_p"
    ),
    f"{_GPU}model_runner:GPUModelRunner.load_model": "self load_dummy_weights args model kwargs",
    f"{_GPU}model_runner:GPUModelRunner.add_requests": "self scheduler_output",
    f"{_GPU}model_runner:GPUModelRunner.finish_requests": "self scheduler_output",
    "vllm.tokenizers.registry:cached_tokenizer_from_config": "model_config kwargs",
    "vllm.distributed.parallel_state:get_tp_group": "",
}
"""Functions that `v2` calls or overrides, and their parameters, release by release."""


def is_supported(version: str) -> bool:
    """Return whether we know this version of vLLM."""
    return version.startswith(tuple(f"{known}." for known in SUPPORTED))


def check_version(version: str) -> None:
    """Raise unless we know this version of vLLM.

    Raises:
        ConfigError: The version is another one.
    """
    if not is_supported(version):
        raise ConfigError(
            f"vLLM {version} is installed and CoSpec's plugin knows {NAMED}; install one of "
            f"these ({pip_line('vllm')}), take cospec out of additional_config, or set its "
            "any_vllm_version to true to try."
        )


def check_names(names: Mapping[str, str]) -> None:
    """Raise unless all names are where we know them, with the parameters that we know.

    Args:
        names: Names of the parameters, by ``module:attribute.attribute``; ``|`` between those of
            different releases.

    Raises:
        ConfigError: A name is missing or takes other parameters.
    """
    for name, known in names.items():
        module, _, path = name.partition(":")
        try:
            found: Any = functools.reduce(getattr, path.split("."), importlib.import_module(module))
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"this vLLM has no {name} ({error}); CoSpec's plugin knows {NAMED} as released."
            ) from None
        parameters = " ".join(inspect.signature(found).parameters)
        if parameters not in known.split(" | "):
            raise ConfigError(
                f"{name} of this vLLM takes ({parameters}) and CoSpec's plugin knows it with "
                f"({known}), as in {NAMED} as released."
            )


def require(it: object, names: Iterable[str]) -> None:
    """Raise unless an object of vLLM's has the attributes that we read, dots for nested ones.

    Raises:
        ConfigError: An attribute is missing.
    """
    for name in names:
        try:
            functools.reduce(getattr, name.split("."), it)
        except AttributeError:
            raise ConfigError(
                f"{type(it).__name__} of this vLLM has no {name}; CoSpec's plugin knows {NAMED} "
                "as released."
            ) from None
