"""CoSpec inside transformers' ``generate``, as a ``custom_generate`` folder, hub id or callable.

``generate`` itself prepares the inputs, the logits processors and the stopping criteria from its
``GenerationConfig``. Here the tokens are decoded. See docs/transformers.md.
"""

from __future__ import annotations

import copy
import logging
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from transformers import LogitsProcessorList, StoppingCriteriaList, StopStringCriteria
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria
from transformers.utils.generic import ModelOutput

from cospec.arbiters.learned import notes_on
from cospec.config import DecodeConfig, SamplingConfig
from cospec.custom_generate.batch import TransformersEngine
from cospec.custom_generate.keys import refuse_unsupported
from cospec.custom_generate.loaded import arbiter_for
from cospec.errors import ConfigError
from cospec.models import ModelPair
from cospec.models.compare import match_models
from cospec.types import Needs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

    from cospec.types import Arbiter, Completion

__all__ = ["Collaborative", "CollaborativeOutput", "generate"]

_log = logging.getLogger(__name__)

_WARPERS: dict[type, str] = {
    TemperatureLogitsWarper: "temperature",
    TopKLogitsWarper: "top_k",
    TopPLogitsWarper: "top_p",
    MinPLogitsWarper: "min_p",
}
"""Logits processors that the engine can apply itself, to both models, in its order."""
_DONE_BY_THE_ENGINE = (MaxLengthCriteria, EosTokenCriteria)
_DEFAULT_NUM_ASSISTANT_TOKENS, _DEFAULT_CONFIDENCE = 20, 0.4  # of transformers
_PREPARED = {"attention_mask", "position_ids", "logits_to_keep", "use_cache", "cache_position"}
_CACHES = {"cache", "past_key_values"}


@dataclass
class CollaborativeOutput(ModelOutput):
    """The output with ``return_dict_in_generate=True``."""

    sequences: Tensor | None = None
    """Prompt and completion of each row, (B, T)."""
    completions: list[Completion] | None = None
    """One a row: text, origins of tokens, counts and trace."""


def generate(
    model: PreTrainedModel,
    *,
    assistant_model: PreTrainedModel | None = None,
    arbiter: str | Arbiter = "lossless",
    tokenizer: PreTrainedTokenizerBase | None = None,
    streamer: Any = None,  # Any: transformers' are not typed
    **arguments: Any,  # Any: those of generate
) -> Tensor | CollaborativeOutput:
    """Generate with a draft and an arbiter: what ``custom_generate="OWNER/NAME"`` calls.

    Args:
        model: The target.
        assistant_model: The draft; None where prompt lookup drafts.
        arbiter: Its spec as on the command line, or the arbiter itself.
        tokenizer: Of both models, for stop strings and texts.
        streamer: Gets the tokens of each block as they stand.
        **arguments: Of ``model.generate``.

    Raises:
        ConfigError: An argument is not supported; it is named.
    """
    if arguments.pop("assistant_tokenizer", None) is not None:
        raise ConfigError(
            "assistant_tokenizer is given, and draft and target have to share a tokenizer here; "
            "pass a draft that shares the target's, and leave assistant_tokenizer out."
        )
    decode = Collaborative(assistant_model, arbiter, tokenizer=tokenizer, streamer=streamer)
    target: Any = model  # whose `generate` is not typed
    own = target.generation_config.stop_strings
    arguments = _with_stop_strings(arguments, own, tokenizer)
    if tokenizer is not None:  # else `generate` asks for it
        target.generation_config.stop_strings = None  # it would add them once more
    try:
        # A model whose own repository has the folder calls this function by its `generate`.
        own_generate = type(target).generate
        found: Tensor | CollaborativeOutput = own_generate(
            target, custom_generate=decode, **arguments
        )
    finally:
        target.generation_config.stop_strings = own
    return found


def _with_stop_strings(arguments: dict[str, Any], own: Any, tokenizer: Any) -> dict[str, Any]:
    """Return the arguments of `generate` with stop strings as the criterion that they become.

    Transformers makes it itself, but passes no tokenizer on to where a callable decodes.

    Args:
        arguments: Of `generate`.
        own: Stop strings of the model's own config, for where no others are given.
        tokenizer: Of the model.
    """
    config = arguments.get("generation_config")
    found = arguments.get("stop_strings") or getattr(config, "stop_strings", None) or own
    if not found or tokenizer is None:
        return arguments
    arguments = {key: value for key, value in arguments.items() if key != "stop_strings"}
    if config is not None:
        arguments["generation_config"] = copy.deepcopy(config)
        arguments["generation_config"].stop_strings = None
    criteria = StoppingCriteriaList(arguments.get("stopping_criteria") or [])
    criteria.append(StopStringCriteria(tokenizer, found))
    return arguments | {"stopping_criteria": criteria}


class Collaborative:
    """A decoding method for ``model.generate(..., custom_generate=Collaborative(draft, arbiter))``.

    Args:
        draft: The draft; None where prompt lookup drafts (``prompt_lookup_num_tokens``).
        arbiter: Its spec as on the command line, or the arbiter itself.
        tokenizer: Of both models, for the texts of completions and trained arbiters.
        streamer: Gets prompt and tokens; pass it here, not to ``generate``.
    """

    def __init__(
        self,
        draft: PreTrainedModel | None,
        arbiter: str | Arbiter = "lossless",
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        streamer: Any = None,  # Any: transformers' are not typed
    ) -> None:
        self._draft, self._arbiter = draft, arbiter
        self._tokenizer, self._streamer = tokenizer, streamer

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,  # Any: what generate has prepared for the model's forward
    ) -> Tensor | CollaborativeOutput:
        """Decode; called by ``generate``.

        Raises:
            ConfigError: A setting or an input is not supported; it is named.
        """
        refuse_unsupported(generation_config)
        prompts = _prompts(input_ids, model_kwargs)
        with _as_before(model, self._draft):
            pair = ModelPair(model, self._draft, self._tokenizer)
            notes = [] if self._draft is None else match_models([model, self._draft], None)
            arbiter = self._arbiter
            if isinstance(arbiter, str):
                arbiter = arbiter_for(arbiter, pair)
            is_told = bool(generation_config.return_dict_in_generate)
            decode = _decode_config(generation_config, self._draft, len(prompts))
            engine = TransformersEngine(pair, arbiter, decode, keep_trace=is_told)
            engine.input_ids = input_ids
            warpers, engine.processors = _split(logits_processor)
            engine.criteria = StoppingCriteriaList(
                c for c in stopping_criteria if type(c) not in _DONE_BY_THE_ENGINE
            )
            sampling = _sampling(generation_config, warpers, input_ids.shape[1], stopping_criteria)
            if generation_config.do_sample or Needs.UNIFORMS in arbiter.needs:
                sampling = replace(sampling, seed=int(torch.randint(2**62, ()).item()))
            for note in (*notes, *notes_on(arbiter, engine.config, sampling)):
                _note(note)
            completions = self._run(engine, prompts, sampling)
        sequences = _padded(input_ids, completions, generation_config)
        return CollaborativeOutput(sequences, completions) if is_told else sequences

    def _run(
        self, engine: TransformersEngine, prompts: list[list[int]], sampling: SamplingConfig
    ) -> list[Completion]:
        if self._streamer is None:
            return engine.generate(prompts, sampling)
        if len(prompts) > 1:
            raise ConfigError(f"a streamer shows one row, and there are {len(prompts)}.")
        self._streamer.put(engine.input_ids.cpu())
        completions = []
        for delta in engine.stream(prompts, sampling):
            self._streamer.put(torch.tensor(delta.token_ids))
            completions += [] if delta.completion is None else [delta.completion]
        self._streamer.end()
        return completions


@cache
def _note(text: str) -> None:
    """Say something once."""
    _log.warning("note: %s", text)


@contextmanager
def _as_before(*models: PreTrainedModel | None) -> Iterator[None]:
    """Give models back as they were: a pair freezes its models, and changes their attention."""
    found = [model for model in models if model is not None]
    attentions = [model.config._attn_implementation for model in found]
    modes = [(module, module.training) for model in found for module in model.modules()]
    open_ = [weight for m in found for weight in m.parameters() if weight.requires_grad]
    try:
        yield
    finally:
        for module, is_training in modes:
            module.training = is_training
        for model, attention in zip(found, attentions, strict=True):
            if model.config._attn_implementation != attention:
                model.set_attn_implementation(attention)
        for weight in open_:
            weight.requires_grad_(True)


def _prompts(input_ids: Tensor, prepared: dict[str, Any]) -> list[list[int]]:
    """Return the rows without padding.

    Raises:
        ConfigError: There is an input beside the tokens, or a cache that was filled already, or the
            tokens have positions of the user's own.
    """
    for key, value in prepared.items():
        if isinstance(value, dict) and not value:  # what generate passes for no image
            continue
        is_filled = key in _CACHES and value is not None and value.get_seq_length() > 0
        if is_filled or (value is not None and key not in _PREPARED | _CACHES):
            raise ConfigError(
                f"{key} is given, which generation with an arbiter does not take; pass input_ids "
                "and attention_mask alone."
            )
    mask = prepared.get("attention_mask")
    seen = torch.ones_like(input_ids).bool() if mask is None else mask.bool()  # (B, L)
    positions, usual = prepared.get("position_ids"), seen.cumsum(-1) - 1
    if positions is not None and (
        positions.shape[-1] != usual.shape[-1] or ((positions != usual) & seen).any()
    ):
        raise ConfigError(
            f"position_ids ends in {positions.flatten().tolist()[-4:]}, and generation with an "
            "arbiter counts positions by attention_mask alone; leave position_ids out."
        )
    return [row[kept].tolist() for row, kept in zip(input_ids, seen, strict=True)]


def _decode_config(config: GenerationConfig, draft: object, num_rows: int) -> DecodeConfig:
    k, confidence = config.num_assistant_tokens, config.assistant_confidence_threshold
    options: dict[str, Any] = {"batch_size": num_rows}
    if draft is None:
        if config.prompt_lookup_num_tokens is None:
            raise ConfigError(
                "there is no draft; pass it as assistant_model to the folder, or as the first "
                "argument of Collaborative; or pass prompt_lookup_num_tokens to draft by prompt "
                "lookup."
            )
        options |= {"num_speculative_tokens": config.prompt_lookup_num_tokens, "drafter": "ngram"}
        if (longest := config.max_matching_ngram_size) is not None:
            options |= {"prompt_lookup_max": longest, "prompt_lookup_min": min(2, longest)}
        return DecodeConfig(**options)
    for key in ("prompt_lookup_num_tokens", "max_matching_ngram_size"):
        if (value := getattr(config, key)) is not None:
            raise ConfigError(
                f"{key} is {value}, and a draft is given; pass one or the other: leave {key} out, "
                "or leave the draft out to draft by prompt lookup."
            )
    if confidence not in (None, _DEFAULT_CONFIDENCE):
        options["draft_confidence_threshold"] = confidence
    if k != _DEFAULT_NUM_ASSISTANT_TOKENS:
        options["num_speculative_tokens"] = k
    return DecodeConfig(**options)


def _split(processors: LogitsProcessorList) -> tuple[dict[str, Any], LogitsProcessorList]:
    """Return settings of the engine's warper, which comes last, and the processors before it."""
    kept, earlier = list(processors), list(_WARPERS.values())
    settings: dict[str, Any] = {}
    while kept and (name := _warper(kept[-1])) in earlier:
        settings[name] = getattr(kept.pop(), name)
        earlier = earlier[: earlier.index(name)]
    return settings, LogitsProcessorList(kept)


def _warper(processor: object) -> str:
    """Return the setting that a processor stands for; empty if it does anything else."""
    is_plain = getattr(processor, "min_tokens_to_keep", 1) == 1
    is_plain &= getattr(processor, "filter_value", -float("inf")) == -float("inf")
    return _WARPERS.get(type(processor), "") if is_plain else ""


def _sampling(
    config: GenerationConfig,
    warpers: dict[str, Any],
    num_prompt_tokens: int,
    criteria: StoppingCriteriaList,
) -> SamplingConfig:
    """Return the settings of all rows.

    Length and stop tokens are those of the criteria, which ``generate`` makes from the config or
    takes from the user.
    """
    lengths = [c.max_length for c in criteria if type(c) is MaxLengthCriteria]
    stops = [c.eos_token_id.tolist() for c in criteria if type(c) is EosTokenCriteria]
    settings: dict[str, Any] = {
        "max_new_tokens": max(1, min(lengths, default=config.max_length) - num_prompt_tokens),
        "ignore_eos": True,  # of the model
        "stop_token_ids": sorted({token for some in stops for token in some}),
    }
    if config.do_sample:
        settings |= {"temperature": 1.0} | warpers
    return SamplingConfig(**settings)


def _padded(input_ids: Tensor, completions: list[Completion], config: GenerationConfig) -> Tensor:
    """Return prompts and completions, (B, T)."""
    longest = max(len(c.token_ids) for c in completions)
    pad = config._pad_token_tensor
    fill = 0 if pad is None else int(pad)
    rows = [c.token_ids + [fill] * (longest - len(c.token_ids)) for c in completions]
    new = torch.tensor(rows, dtype=input_ids.dtype, device=input_ids.device)
    return torch.cat([input_ids, new], dim=1)
