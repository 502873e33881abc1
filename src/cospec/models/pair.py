"""A draft and a target that can work together, and the checks that they can.

Tokenizers are compared by what each id stands for, not by size: Qwen2.5 0.5B and 72B have
vocabularies of different width that differ in padding rows only.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from cospec.errors import (
    ConfigError,
    PairError,
    PromptError,
    TokenizerMismatchError,
    unknown_name,
)
from cospec.models import packed, quantized
from cospec.models.attention import use_grouped_attention
from cospec.models.bundled import BUNDLED, bundled_models
from cospec.models.cache import probe
from cospec.models.load import load_model, load_tokenizer
from cospec.models.support import check_supported, context_length
from cospec.models.translate import translate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Quantization: TypeAlias = Literal["none", "int8"]
"""Of a draft's weights."""
_PLACES = ("device_map", "max_memory", "offload_folder")
"""Arguments of ``from_pretrained`` that say where the layers of a target go."""
_SAMPLE_TEXTS = (
    "Janet's ducks lay 16 eggs per day; she sells 3.5 of them for $1,234.50.",
    "def f(x):\n    return x**2  # naïve — 東京 🙂\n\n",
    " 1/2 + 0.25 = \\boxed{\\frac{3}{4}}",
)


@dataclass(frozen=True)
class ModelPair:
    """A target and a draft, both frozen, and the tokenizer they share.

    Attributes:
        target: The model whose distribution is ``p``.
        draft: The model that proposes, ``q``; None where tokens are drafted without a model.
        tokenizer: The target's; None for pairs that work on token ids only.
        notes: Differences that were found and do not matter, or how they are resolved.
        draft_quantization: Of the draft's weights: ``int8`` if they are 8-bit ones.

    Raises:
        UnsupportedModelError: A model cannot roll back its state.
    """

    target: PreTrainedModel
    draft: PreTrainedModel | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    notes: tuple[str, ...] = ()
    draft_quantization: Quantization = "none"

    def __post_init__(self) -> None:
        for model in self.models:
            check_supported(model)
            model.train(False)
            model.requires_grad_(False)
            use_grouped_attention(model)
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
        allow_different_tokenizers: bool = False,
        **kwargs: Any,  # Any: whatever transformers' from_pretrained takes
    ) -> ModelPair:
        """Load a pair from hub ids, folders or GGUF files.

        Args:
            target: Hub id, folder or ``.gguf`` file of the target; or the name of a pair that
                ships with the package, such as ``bundled:family``.
            draft: The same for the draft; without one, tokens are drafted without a model.
            dtype: Of both models' weights; "auto" is what each checkpoint has.
            device: Of both models; "auto" is CUDA where there is one, else the CPU. "balanced" and
                "sequential" spread the layers of the target over all GPUs, and the draft is on the
                first of them.
            allow_pickle: Load checkpoints that are no safetensors. Unpickling runs code that the
                file holds: only for files you trust.
            pack_weights: On a CPU, keep the weights in the layout of its matrix kernels where it
                has them (`cospec.models.packed`): faster, and a row's result no longer depends on
                its batch. The models of the pair can then not be saved or trained.
            draft_quantization: Of the draft's weights: none, or int8 on a CPU, with which its steps
                over a few rows are faster and its proposals a little worse
                (`cospec.models.quantized`).
            allow_different_tokenizers: Draft what both tokenizers spell alike (`models.translate`).
            **kwargs: For both models' ``from_pretrained``, such as ``trust_remote_code``; but
                ``device_map``, ``max_memory`` and ``offload_folder`` are for the target alone.

        Raises:
            ConfigError: There is no bundled pair of that name, or the draft cannot be quantized.
            CheckpointError: A checkpoint is missing, corrupt or pickled.
            PairError: The two cannot work together.
        """
        if draft_quantization not in get_args(Quantization):
            allowed = get_args(Quantization)
            raise ConfigError(unknown_name("draft quantization", draft_quantization, allowed))
        if str(target).startswith(BUNDLED):
            if draft is not None:
                raise ConfigError(f"{target} names both models; leave out draft ({draft}).")
            target, draft = bundled_models(str(target))
            dtype = "float32" if dtype == "auto" else dtype  # shipped in half the bytes
        sources = [target] if draft is None else [target, draft]
        tokenizers = [load_tokenizer(source, **kwargs) for source in sources]
        notes = []
        if draft is not None and not allow_different_tokenizers:
            notes += compare_tokenizers(*tokenizers)  # before anything large is loaded
        places = {key: kwargs.pop(key) for key in _PLACES if key in kwargs}
        models: list[PreTrainedModel] = []
        for source in sources:
            where = {"device": models[0].device} if models else {"device": device} | places
            model = load_model(source, dtype=dtype, allow_pickle=allow_pickle, **where, **kwargs)
            models.append(model)
        if draft is not None:
            notes += _settle(models, tokenizers if allow_different_tokenizers else None)
        own = None if draft is None else models[1]
        pair = cls(models[0], own, tokenizers[0], tuple(notes), draft_quantization)
        pair._change_weights(pack_weights)
        return pair

    def _change_weights(self, pack_weights: bool) -> None:
        """Quantize the draft if that is asked for, and pack what is not."""
        assert self.fingerprint, "is of the plain weights, so it is taken before they change"
        if self.draft_quantization == "int8":
            quantized.quantize_weights(self.draft_model)
        for model in self.models if pack_weights else ():
            packed.pack_weights(model)

    @property
    def models(self) -> tuple[PreTrainedModel, ...]:
        """The target, and the draft if there is one."""
        return (self.target,) if self.draft is None else (self.target, self.draft)

    @property
    def draft_model(self) -> PreTrainedModel:
        """The draft, where one is needed.

        Raises:
            PairError: There is none.
        """
        if self.draft is None:
            raise PairError(
                "this pair has no draft model; load one with it, or draft without a model: "
                "drafter='ngram'."
            )
        return self.draft

    @cached_property
    def fingerprint(self) -> str:
        """A short hash that tells this pair from others: shapes of all weights and some of them.

        The kind of a draft's quantized weights follows after a hyphen.
        """
        digest = hashlib.sha256()
        for model in self.models:
            for name, weight in _weights(model):
                some = weight.flatten()[:64].float().cpu().numpy().tobytes()
                digest.update(f"{name} {tuple(weight.shape)}".encode() + some)
        end = "" if self.draft_quantization == "none" else f"-{self.draft_quantization}"
        return digest.hexdigest()[:16] + end

    @property
    def draft_size(self) -> float:
        """Bytes of the draft's weights over those of the target's."""
        return weight_bytes(self.draft_model) / weight_bytes(self.target)

    @property
    def context_length(self) -> int:
        """Most tokens of prompt and completion together."""
        return min(context_length(model.config.get_text_config()) for model in self.models)

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """The tokens with which the target ends a text."""
        ids = _as_set(getattr(self.target.generation_config, "eos_token_id", None))
        return ids or _as_set(getattr(self.tokenizer, "eos_token_id", None))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text.

        Raises:
            PromptError: The text is no Unicode text: it holds half of a character. JSON can write
                one (a lone surrogate), and so can an argument of the command line.
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
            messages: ``{"role": …, "content": …}`` each.

        Raises:
            TokenizerMismatchError: The pair has no tokenizer, or it has no chat template.
        """
        if self.tokenizer is None or not self.tokenizer.chat_template:
            raise TokenizerMismatchError(
                "the target's tokenizer has no chat template; pass the prompt as plain text."
            )
        text = self.tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=False
        )
        assert isinstance(text, str), "not tokenized"
        return self.encode(text, add_special_tokens=False)


def weight_bytes(model: PreTrainedModel) -> int:
    """Bytes of a model's weights: those of packed and 8-bit layers too, shared ones once."""
    weights: dict[int, torch.Tensor] = {id(weight): weight for weight in model.parameters()}
    for module in model.modules():
        if isinstance(module, packed.PackedLinear | quantized.Int8Linear):
            weights[id(module)] = module.weight
    # Packed weights tell no size of their own.
    return sum(weight.shape.numel() * weight.dtype.itemsize for weight in weights.values())


def _weights(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of a model by name; those that wait on a disk or on the CPU are fetched."""
    for name, weight in model.state_dict().items():
        if not weight.is_meta:
            yield name, weight
            continue
        import accelerate.utils  # noqa: PLC0415  # has put it there

        owner, _, own_name = name.rpartition(".")
        module = model.get_submodule(owner)
        with accelerate.utils.align_module_device(module):
            yield name, getattr(module, own_name)


def _as_set(ids: int | list[int] | None) -> frozenset[int]:
    if ids is None:
        return frozenset()
    return frozenset(ids if isinstance(ids, list) else [ids])


def compare_tokenizers(
    target: PreTrainedTokenizerBase, draft: PreTrainedTokenizerBase
) -> list[str]:
    """Check that each id stands for the same string in both tokenizers.

    Returns:
        Notes on differences that do no harm: ids that only one of them has, other special tokens,
        another chat template.

    Raises:
        TokenizerMismatchError: An id stands for two strings, or the same text becomes other ids.
    """
    ours, theirs = target.get_vocab(), draft.get_vocab()
    strings = {i: token for token, i in ours.items()}
    notes = []
    for token, i in sorted(theirs.items(), key=lambda item: item[1]):
        if strings.get(i, token) != token:
            raise TokenizerMismatchError(
                f"draft and target tokenize differently: id {i} is {token!r} in the draft and "
                f"{strings[i]!r} in the target; pass a pair that shares a tokenizer, or "
                "--allow-different-tokenizers to draft the tokens that both spell alike."
            )
    only_draft = [token for token in theirs if token not in ours]
    only_target = [token for token in ours if token not in theirs]
    for who, tokens in (("draft", only_draft), ("target", only_target)):
        if tokens:
            some = ", ".join(map(repr, tokens[:3]))
            notes.append(f"only the {who} has {len(tokens)} tokens, such as {some}")
    for text in _SAMPLE_TEXTS:
        ids = [t(text, add_special_tokens=False)["input_ids"] for t in (target, draft)]
        if ids[0] != ids[1]:
            raise TokenizerMismatchError(
                f"draft and target split {text!r} differently though their ids stand for the same "
                "strings; pass a pair that shares its merges and normalization, or "
                "--allow-different-tokenizers to draft with it all the same."
            )
    for name in ("bos_token", "eos_token", "chat_template"):
        values = getattr(draft, name, None), getattr(target, name, None)
        if values[0] != values[1]:
            shown = "" if name == "chat_template" else f" ({values[0]!r} against {values[1]!r})"
            notes.append(f"the draft has another {name}{shown}; the target's is used")
    return notes


def _settle(
    models: list[PreTrainedModel], tokenizers: list[PreTrainedTokenizerBase] | None
) -> list[str]:
    """Return notes on two loaded models.

    Args:
        models: The target and the draft.
        tokenizers: Where they may differ: a draft with another one learns the target's ids.
    """
    notes = []
    if tokenizers is not None:
        try:
            notes = compare_tokenizers(*tokenizers)
        except TokenizerMismatchError:
            target, draft = models
            probe(draft)  # as it is: afterwards, logits of the tokens that it lacks hide all others
            width = target.config.get_text_config().vocab_size
            notes = [translate(draft, tokenizers[1], tokenizers[0], width, _SAMPLE_TEXTS)]
    return notes + _compare_models(*models)


def _compare_models(target: PreTrainedModel, draft: PreTrainedModel) -> list[str]:
    notes = []
    widths = [m.config.get_text_config().vocab_size for m in (target, draft)]
    if widths[0] != widths[1]:
        notes.append(
            f"the draft's logits are {widths[1]} wide and the target's {widths[0]}; "
            "the rows that only one of them has are padding"
        )
    eos = [_as_set(getattr(m.generation_config, "eos_token_id", None)) for m in (target, draft)]
    if eos[0] != eos[1]:
        shown = [sorted(ids) for ids in eos]
        notes.append(f"the draft ends at tokens {shown[1]}, the target at {shown[0]}, which counts")
    return notes
