"""Where the plugin enters vLLM, and the check that the installed vLLM is one that it knows.

What `v1` and `v2` use are vLLM's private names, which move within months. So the version is pinned
and every name is looked up, with its parameters, before anything is changed: an engine with
settings and an unknown vLLM does not start. `repair_cpu` mends faults of vLLM's sampling on a CPU.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
from typing import TYPE_CHECKING, Any

import torch

from cospec.errors import ConfigError
from cospec.vllm_plugin.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

logger = logging.getLogger(__name__)

SUPPORTED = "0.32"
"""Of vLLM: this version with any patch level."""

_MARK = "__cospec__"

_SAMPLER = "vllm.v1.sample.rejection_sampler:"
_PROPOSER = "vllm.v1.spec_decode.llm_base_proposer:SpecDecodeBaseProposer."
_GPU = "vllm.v1.worker.gpu."

V1_NAMES: dict[str, str] = {
    f"{_SAMPLER}RejectionSampler.forward": "self metadata draft_probs logits sampling_metadata",
    f"{_SAMPLER}RejectionSampler.apply_logits_processors": "self logits sampling_metadata metadata",
    f"{_SAMPLER}RejectionSampler._get_logprobs_tensors": (
        "self max_num_logprobs metadata logits target_logits bonus_logits sampled_token_ids"
    ),
    f"{_SAMPLER}apply_sampling_constraints": "logits cu_num_draft_tokens sampling_metadata",
    f"{_SAMPLER}expand_batch_to_tokens": "x cu_num_tokens num_tokens replace_from replace_to",
    f"{_PROPOSER}_sample_draft_tokens": "self hidden_states sampling_metadata",
    f"{_PROPOSER}_sample_from_logits": "self logits sampling_metadata",
    f"{_PROPOSER}take_last_draft_probs": "self",
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner._get_spec_decode_draft_probs": (
        "self spec_decode_metadata"
    ),
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.sample_tokens": "self grammar_output",
    "vllm.tokenizers.registry:cached_tokenizer_from_config": "model_config kwargs",
    "vllm.distributed.parallel_state:get_tp_group": "",
}
"""What `v1` calls or overrides, and its parameters."""

V2_NAMES: dict[str, str] = {
    f"{_GPU}spec_decode.rejection_sampler:RejectionSampler._verify": (
        "self logits draft_logits draft_sampled pos cu_num_logits idx_mapping idx_mapping_np "
        "expanded_idx_mapping expanded_local_pos seq_lens_upper_bound_np verify_draft_sampled"
    ),
    f"{_GPU}spec_decode.rejection_sampler:rejection_sample": (
        "target_logits draft_logits draft_sampled cu_num_logits pos idx_mapping "
        "expanded_idx_mapping expanded_local_pos temperature seed num_speculative_steps "
        "synthetic_conditional_rates use_fp64 use_block_verification contexts watermarking "
        "watermarking_skip_mask watermark_key"
    ),
    f"{_GPU}sample.sampler:Sampler.add_request": "self req_idx sampling_params",
    f"{_GPU}sample.sampler:Sampler.apply_sampling_params": (
        "self logits expanded_idx_mapping idx_mapping idx_mapping_np pos input_ids "
        "expanded_local_pos seq_lens_upper_bound_np skip_top_k_top_p"
    ),
    f"{_GPU}model_runner:GPUModelRunner.load_model": "self load_dummy_weights args model kwargs",
    "vllm.tokenizers.registry:cached_tokenizer_from_config": "model_config kwargs",
    "vllm.distributed.parallel_state:get_tp_group": "",
}
"""What `v2` calls or overrides, and its parameters."""


def hook_workers() -> None:
    """Have every worker of this process look for our settings once its runner is built.

    It does nothing for a worker without settings, and may be called any number of times.
    """
    try:
        base = importlib.import_module("vllm.v1.worker.worker_base").WorkerWrapperBase
        stock = base.init_device
    except (ImportError, AttributeError) as error:
        logger.warning("CoSpec finds no worker to rule in and stays off: %s", error)
        return
    if hasattr(stock, _MARK):
        return

    @functools.wraps(stock)
    def init_device(self: Any) -> None:  # Any: vLLM's WorkerWrapperBase
        stock(self)
        activate(self.worker, self.vllm_config)

    setattr(init_device, _MARK, True)
    base.init_device = init_device


def activate(worker: Any, vllm_config: Any) -> bool:  # Any: vLLM's Worker and VllmConfig
    """Put the arbiter into a worker whose model runner is built and not yet loaded.

    Returns:
        Whether there are settings.

    Raises:
        ConfigError: There are, and this vLLM or this engine is not one that we support.
    """
    settings = Settings.from_vllm(vllm_config)
    if settings is None:
        return False
    check_version(importlib.import_module("vllm").__version__)
    if worker.use_v2_model_runner:
        check_names(V2_NAMES)
        from cospec.vllm_plugin import v2  # noqa: PLC0415  # imports vLLM

        v2.install(worker.model_runner, settings, vllm_config)
    else:
        check_names(V1_NAMES)
        from cospec.vllm_plugin import v1  # noqa: PLC0415  # imports vLLM

        v1.install(worker.model_runner, settings, vllm_config)
    return True


def check_version(version: str) -> None:
    """Raise unless we know this version of vLLM.

    Raises:
        ConfigError: We do not.
    """
    if not version.startswith(f"{SUPPORTED}."):
        raise ConfigError(
            f"vLLM {version} is installed and CoSpec's plugin knows {SUPPORTED}.*; install that "
            "one (pip install 'cospec[vllm]'), or take cospec out of additional_config."
        )


def check_names(names: Mapping[str, str]) -> None:
    """Raise unless all names are where we know them, with the parameters that we know.

    Args:
        names: By ``module:attribute.attribute``, the parameters' names.

    Raises:
        ConfigError: One is missing or takes others.
    """
    for name, known in names.items():
        module, _, path = name.partition(":")
        try:
            found: Any = functools.reduce(getattr, path.split("."), importlib.import_module(module))
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"this vLLM has no {name} ({error}); CoSpec's plugin knows {SUPPORTED}.* as "
                "released."
            ) from None
        parameters = " ".join(inspect.signature(found).parameters)
        if parameters != known:
            raise ConfigError(
                f"{name} of this vLLM takes ({parameters}) and CoSpec's plugin knows it with "
                f"({known}), as in {SUPPORTED}.* as released."
            )


def require(it: object, names: Iterable[str]) -> None:
    """Raise unless an object of vLLM's has the attributes that we read, dots for nested ones.

    Raises:
        ConfigError: One is missing.
    """
    for name in names:
        try:
            functools.reduce(getattr, name.split("."), it)
        except AttributeError:
            raise ConfigError(
                f"{type(it).__name__} of this vLLM has no {name}; CoSpec's plugin knows "
                f"{SUPPORTED}.* as released."
            ) from None


def is_first_tensor_rank() -> bool:
    """Whether this worker is the one of its tensor-parallel group that counts and logs."""
    group = importlib.import_module("vllm.distributed.parallel_state").get_tp_group()
    return bool(group.rank_in_group == 0)


def tokenizer_of(vllm_config: Any) -> Any:  # Any: vLLM's VllmConfig; its tokenizer or None
    """The target's tokenizer, as vLLM loads it."""
    registry = importlib.import_module("vllm.tokenizers.registry")
    return registry.cached_tokenizer_from_config(vllm_config.model_config)


def repair_cpu(sampler_module: Any) -> None:  # Any: vllm.v1.sample.rejection_sampler
    """Mend two faults of vLLM 0.32's sampled verification on a CPU, in this process.

    ``expand_batch_to_tokens`` returns memory that was never written, for its kernel fills a copy:
    temperature, top-k and top-p are then noise. And a step without drafted rows fails with top-k.
    """
    if hasattr(sampler_module.apply_sampling_constraints, _MARK):
        return
    stock = sampler_module.apply_sampling_constraints

    @functools.wraps(stock)
    def apply_sampling_constraints(
        logits: Tensor,
        cu_num_draft_tokens: Tensor,
        sampling_metadata: Any,  # Any: vLLM's SamplingMetadata
    ) -> Any:  # Any: a tensor
        if logits.shape[0] == 0:
            return logits
        return stock(logits, cu_num_draft_tokens, sampling_metadata)

    setattr(apply_sampling_constraints, _MARK, True)
    sampler_module.apply_sampling_constraints = apply_sampling_constraints
    sampler_module.expand_batch_to_tokens = expand_batch_to_tokens


def expand_batch_to_tokens(
    x: Tensor, cu_num_tokens: Tensor, num_tokens: int, replace_from: int = 0, replace_to: int = 0
) -> Tensor:
    """Each request's value for each of its tokens, as vLLM's function of that name promises.

    Args:
        x: (R,).
        cu_num_tokens: Tokens of the requests up to and with each, (R,).
        num_tokens: T.
        replace_from: A value that is replaced.
        replace_to: By what.

    Returns:
        (T,).
    """
    tokens = torch.arange(num_tokens, device=x.device)
    expanded = x[torch.searchsorted(cu_num_tokens.long(), tokens, right=True)]
    return torch.where(expanded == replace_from, replace_to, expanded).to(x.dtype)
