"""A draft and a target that can work together."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, get_args

from cospec.config import Quantization
from cospec.errors import (
    ConfigError,
    PairError,
    PromptError,
    TokenizerMismatchError,
    UnsupportedModelError,
    unknown_name,
)
from cospec.models import packed, quantized, shortlist
from cospec.models.attention import keep_padding, use_grouped_attention
from cospec.models.bundled import BUNDLED, bundled_models
from cospec.models.compare import compare_tokenizers, ids_of, match_models
from cospec.models.load import load_model, load_tokenizer
from cospec.models.probe import probe
from cospec.models.support import check_supported, context_length, warn_of_mixed_rows

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PLACES = ("device_map", "max_memory", "offload_folder")
"""Arguments of ``from_pretrained`` that place the layers of a target."""
_CHANGED = packed.PackedLinear | quantized.Int8Linear
_PLAIN = "_cospec_plain"
"""Attribute of a packed or quantized model, and of copies of it: the bytes for its fingerprint,
from before that change."""


@dataclass(frozen=True)
class ModelPair:
    """A target and a draft, both frozen, and the tokenizer they share.

    Attributes:
        target: The model whose distribution is ``p``.
        draft: The model that proposes, ``q``; None where tokens are drafted without a model.
        tokenizer: The target's; None for pairs that work on token ids only.
        notes: Differences between the models that do no harm, or how they are resolved.
        draft_quantization: Quantization of the draft's weights; none if they are as loaded.
        draft_vocab_size: Number of first tokens that the draft always considers; None for all.

    Raises:
        UnsupportedModelError: A model cannot roll back its state.
        PairError: The models are on different devices.
    """

    target: PreTrainedModel
    draft: PreTrainedModel | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    notes: tuple[str, ...] = ()
    draft_quantization: Quantization = "none"
    draft_vocab_size: int | None = None

    def __post_init__(self) -> None:
        if self.draft is not None and self.draft.device != self.target.device:
            raise PairError(
                f"the target is on {self.target.device} and the draft on {self.draft.device}; load "
                "both on one device."
            )
        if self.draft is not None and (kind := quantized.quantization(self.draft)) != "none":
            object.__setattr__(self, "draft_quantization", kind)
            object.__setattr__(self, "draft_vocab_size", shortlist.draft_vocab_size(self.draft))
        warn_of_mixed_rows(self.target)
        for model in self.models:
            check_supported(model)
            model.train(False)
            model.requires_grad_(False)
            use_grouped_attention(model)
            try:
                probe(model)
            except UnsupportedModelError:
                if not keep_padding(model):
                    raise
                probe(model)

    @classmethod
    def from_pretrained(
        cls,
        target: str | Path,
        draft: str | Path | None = None,
        *,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "auto",
        allow_pickle: bool = False,
        pack_weights: bool = True,
        draft_quantization: Quantization = "none",
        draft_vocab_size: int | None = None,
        allow_different_tokenizers: bool = False,
        **kwargs: Any,  # Any: whatever transformers' from_pretrained takes
    ) -> ModelPair:
        """Load a pair from hub ids, folders or GGUF files.

        Args:
            target: Hub id, folder or ``.gguf`` file of the target; or the name of a pair that
                ships with the package, such as ``bundled:family``.
            draft: The same for the draft; without one, tokens are drafted without a model.
            dtype: Data type of both models' weights; "auto" is that of each checkpoint.
            device: Device of both models; "auto" is CUDA if there is one, else the CPU. "balanced"
                and "sequential" spread the layers of the target over all GPUs, and the draft is on
                the first of them.
            allow_pickle: Load pickled checkpoints as well. Unpickling runs code that the file
                holds: only for files you trust.
            pack_weights: On a CPU, keep the weights in the layout of its matrix kernels, if it has
                them (`cospec.models.packed`). This is faster and gives a row the same bits in any
                batch, but the models can then not be saved or trained.
            draft_quantization: Quantization of the draft's weights: none, or int8 or int4 on a CPU,
                which make steps over a few rows faster and proposals a little worse
                (`cospec.models.quantized`).
            draft_vocab_size: Number of first token ids that a quantized draft always considers; all
                others only once it has read them (`cospec.models.shortlist`). None for all.
            allow_different_tokenizers: Draft tokens that both tokenizers spell alike (`translate`).
            **kwargs: For both models' ``from_pretrained``, such as ``trust_remote_code``; but
                ``device_map``, ``max_memory`` and ``offload_folder`` apply to the target alone.

        Raises:
            ConfigError: There is no bundled pair of that name, or the draft cannot be changed so.
            CheckpointError: A checkpoint is missing, corrupt or pickled.
            PairError: The two cannot work together.
        """
        _check_draft(draft_quantization, draft_vocab_size)
        if str(target).startswith(BUNDLED):
            target, draft = _bundled(str(target), draft)
            dtype = "float32" if dtype == "auto" else dtype  # shipped in half the bytes
        sources = [target] if draft is None else [target, draft]
        tokenizers = [load_tokenizer(source, **kwargs) for source in sources]
        notes = []
        if draft is not None and not allow_different_tokenizers:
            notes += compare_tokenizers(*tokenizers)  # before anything large is loaded
        models = _load(sources, device, dtype=dtype, allow_pickle=allow_pickle, **kwargs)
        if draft is not None:
            notes += match_models(models, tokenizers if allow_different_tokenizers else None)
        notes += packed.notes_on(models) if pack_weights else []
        notes += [] if draft_vocab_size is None else [shortlist.NOTE]
        own = None if draft is None else models[1]
        changes = draft_quantization, draft_vocab_size
        return cls(models[0], own, tokenizers[0], tuple(notes), *changes)._changed(pack_weights)

    def _changed(self, pack_weights: bool) -> ModelPair:
        """Quantize the draft and shorten its vocabulary if asked to, and pack all other weights."""
        samples = [_sample(model) for model in self.models]
        if self.draft_quantization != "none":
            quantized.quantize_weights(self.draft_model, self.draft_quantization)
        if self.draft_vocab_size is not None:
            always = self.eos_token_ids.union(self.special_token_ids.values())
            shortlist.shorten_head(self.draft_model, self.draft_vocab_size, always)
        for model, sample in zip(self.models, samples, strict=True):
            num_packed = packed.pack_weights(model) if pack_weights else 0
            if num_packed or quantized.quantization(model) != "none":
                setattr(model, _PLAIN, sample)
        return self

    @property
    def models(self) -> tuple[PreTrainedModel, ...]:
        """The target, and the draft if there is one."""
        return (self.target,) if self.draft is None else (self.target, self.draft)

    @property
    def draft_model(self) -> PreTrainedModel:
        """The draft, where one is needed.

        Raises:
            PairError: The pair has no draft.
        """
        if self.draft is None:
            raise PairError(
                "this pair has no draft model; load one with it, or draft without a model: "
                "drafter='ngram'."
            )
        return self.draft

    @cached_property
    def special_token_ids(self) -> dict[str, int]:
        """Ids of special tokens by their text: all tokens that decoded text leaves out."""
        if self.tokenizer is None:
            return {}
        try:
            added = self.tokenizer.added_tokens_decoder
        except NotImplementedError:  # some tokenizers of other libraries tell only the named ones
            added = {}
        names, ids = self.tokenizer.all_special_tokens, self.tokenizer.all_special_ids
        found = {one.content: i for i, one in added.items() if one.special}
        return found | dict(zip(names, ids, strict=True))

    @cached_property
    def fingerprint(self) -> str:
        """A short hash that identifies this pair, from the shapes and some values of all weights.

        If the draft is quantized, the kind follows after a hyphen, and the size of a shortened
        vocabulary after another.
        """
        digest = hashlib.sha256()
        for model in self.models:
            digest.update(getattr(model, _PLAIN, None) or _sample(model))
        end = "" if self.draft_quantization == "none" else f"-{self.draft_quantization}"
        end += "" if self.draft_vocab_size is None else f"-{self.draft_vocab_size}"
        return digest.hexdigest()[:16] + end

    @property
    def draft_size(self) -> float:
        """Bytes that a step of the draft reads, divided by the bytes of the target's weights."""
        unread = sum(layer.weight.nbytes for layer in quantized.int4_layers(self.draft_model))
        unread += shortlist.unread_bytes(self.draft_model)
        return (weight_bytes(self.draft_model) - unread) / weight_bytes(self.target)

    @property
    def context_length(self) -> int:
        """Most tokens of prompt and completion together, where both models read them."""
        return min(map(context_of, self.models))

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """The tokens with which the target ends a text."""
        ids = ids_of(getattr(self.target.generation_config, "eos_token_id", None))
        return ids or ids_of(getattr(self.tokenizer, "eos_token_id", None))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text.

        Raises:
            PromptError: The text holds half of a character (a lone surrogate), as JSON and
                arguments of the command line can.
        """
        assert self.tokenizer is not None, "texts need a tokenizer"
        try:
            text.encode()
        except UnicodeEncodeError as error:
            around = text[max(0, error.start - 20) : error.start + 20]
            raise PromptError(
                f"a prompt holds half of a character, {text[error.start]!r}, in {around!r}; repair "
                "the text."
            ) from None
        ids: list[int] = self.tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
        return ids

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Token ids of a conversation in the target's chat template, ready to be answered.

        Args:
            messages: Messages, each ``{"role": …, "content": …}``.

        Raises:
            PromptError: `messages` is no such list, or the template refuses it.
            TokenizerMismatchError: The pair has no tokenizer, or it has no chat template.
        """
        is_list = isinstance(messages, Sequence) and len(messages) > 0
        if not is_list or not all(isinstance(one, Mapping) for one in messages):
            raise PromptError(
                f"messages is {messages!r}; pass a list of messages: "
                '[{"role": "user", "content": "..."}].'
            )
        if self.tokenizer is None or not self.tokenizer.chat_template:
            raise TokenizerMismatchError(
                "the target's tokenizer has no chat template; pass the prompt as plain text."
            )
        from jinja2 import TemplateError  # noqa: PLC0415  # not loaded without a chat

        try:
            text = self.tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=True, tokenize=False
            )
        except TemplateError as error:
            raise PromptError(
                f"the target's chat template refuses the messages: {error}; pass roles and an "
                "order that it takes, or the prompt as plain text."
            ) from error
        assert isinstance(text, str), "not tokenized"
        return self.encode(text, add_special_tokens=False)


def _check_draft(kind: str, vocab_size: object) -> None:
    """Refuse settings of a draft before anything is loaded."""
    if kind not in (allowed := get_args(Quantization)):
        raise ConfigError(unknown_name("draft quantization", kind, allowed))
    if vocab_size is None:
        return
    if type(vocab_size) is not int:
        raise ConfigError(
            f"draft_vocab_size is {vocab_size!r}; it must be a whole number, such as 32768, or be "
            "left out for all tokens."
        )
    if kind == "none":
        raise ConfigError(
            f"draft_vocab_size is {vocab_size}, and draft_quantization is none; pass int8 or int4, "
            "or leave draft_vocab_size out."
        )


def _bundled(name: str, draft: str | Path | None) -> tuple[Path, Path]:
    """Return the folders of a bundled pair."""
    if draft is not None:
        raise ConfigError(f"{name} names both models; leave out draft ({draft}).")
    return bundled_models(name)


def context_of(model: PreTrainedModel) -> int:
    """Most tokens of prompt and completion together that a model can read."""
    return context_length(model.config.get_text_config())


def weight_bytes(model: PreTrainedModel) -> int:
    """Bytes of a model's weights: those of packed and quantized layers too, shared ones once."""
    # Packed weights tell no size of their own.
    held = sum(weight.shape.numel() * weight.dtype.itemsize for weight in _distinct(model))
    in_4_bits = quantized.int4_layers(model)
    held -= shortlist.shared_bytes(model)
    return held + sum(layer.packed.nbytes + layer.groups.nbytes for layer in in_4_bits)


def num_weights(model: PreTrainedModel) -> int:
    """Number of values in a model's weights, without the copied output matrix of changed models."""
    number = sum(weight.shape.numel() for weight in _distinct(model))
    output = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if isinstance(output, shortlist.ShortlistHead):
        number -= sum(
            one.numel() for one in (output.first.weight, output.first.bias) if one is not None
        )
        output = output.rows
    if isinstance(output, _CHANGED) and model.config.tie_word_embeddings:
        number -= output.weight.shape.numel()
    return number


def _distinct(model: PreTrainedModel) -> Iterable[torch.Tensor]:
    """A model's weights, each once."""
    weights: dict[int, torch.Tensor] = {id(weight): weight for weight in model.parameters()}
    for module in model.modules():
        if isinstance(module, _CHANGED):
            weights[id(module)] = module.weight
    return weights.values()


def _load(
    sources: Sequence[str | Path],
    device: str | torch.device,
    **kwargs: Any,  # Any: as in from_pretrained
) -> list[PreTrainedModel]:
    """Load a target, which may be spread over devices, and a draft on the target's first device."""
    places = {key: kwargs.pop(key) for key in _PLACES if key in kwargs}
    target = load_model(sources[0], device=device, **places, **kwargs)
    if target.device.type == "meta":
        raise ConfigError(
            f"the embeddings of {sources[0]} were put on a disk or aside in memory, where nothing "
            "computes; pass a device_map that leaves them on a device, or spread over more GPUs."
        )
    return [target, *(load_model(one, device=target.device, **kwargs) for one in sources[1:])]


def _sample(model: PreTrainedModel) -> bytes:
    """Return the shapes of all weights of a model and some of their values."""
    return b"".join(
        f"{name} {tuple(weight.shape)}".encode()
        + weight.flatten()[:64].float().cpu().numpy().tobytes()
        for name, weight in _weights(model)
    )


def _weights(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of a model by name; those offloaded to a disk or the CPU are fetched."""
    for name, weight in model.state_dict().items():
        if not weight.is_meta:
            yield name, weight
            continue
        import accelerate.utils  # noqa: PLC0415  # installed, since it has offloaded them

        owner, _, own_name = name.rpartition(".")
        module = model.get_submodule(owner)
        with accelerate.utils.align_module_device(module):
            yield name, getattr(module, own_name)
