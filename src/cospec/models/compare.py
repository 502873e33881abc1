"""Checks that two models fit together as a pair, and notes on how they differ.

Tokenizers are compared by what each id stands for, not by size: Qwen2.5 0.5B and 72B have
vocabularies of different width that differ in padding rows only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cospec.errors import TokenizerMismatchError
from cospec.models.probe import probe
from cospec.models.translate import translate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_OWN = (
    "CoSpec's own engine can also draft tokens that both spell alike: "
    "--allow-different-tokenizers, from Python allow_different_tokenizers=True."
)
_SAMPLE_TEXTS = (
    "Janet's ducks lay 16 eggs per day; she sells 3.5 of them for $1,234.50.",
    "def f(x):\n    return x**2  # naïve — 東京 🙂\n\n",
    " 1/2 + 0.25 = \\boxed{\\frac{3}{4}}",
)


def compare_tokenizers(
    target: PreTrainedTokenizerBase, draft: PreTrainedTokenizerBase
) -> list[str]:
    """Check that each id stands for the same string in both tokenizers.

    Returns:
        Notes on differences that do no harm: ids that only one of them has, other special tokens,
        another chat template.

    Raises:
        TokenizerMismatchError: An id stands for two strings, or the same text gets different ids.
    """
    ours, theirs = target.get_vocab(), draft.get_vocab()
    strings = {i: token for token, i in ours.items()}
    notes = []
    for token, i in sorted(theirs.items(), key=lambda item: item[1]):
        if strings.get(i, token) != token:
            raise TokenizerMismatchError(
                f"draft and target tokenize differently: id {i} is {token!r} in the draft and "
                f"{strings[i]!r} in the target; pass a pair that shares a tokenizer; {_OWN}"
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
                f"strings; pass a pair that shares its merges and normalization; {_OWN}"
            )
    for name in ("bos_token", "eos_token", "chat_template"):
        values = getattr(draft, name, None), getattr(target, name, None)
        if values[0] != values[1]:
            shown = "" if name == "chat_template" else f" ({values[0]!r} against {values[1]!r})"
            notes.append(f"the draft has another {name}{shown}; the target's is used")
    return notes


def match_models(
    models: list[PreTrainedModel], tokenizers: list[PreTrainedTokenizerBase] | None
) -> list[str]:
    """Compare two loaded models, translate the draft's ids if needed, and return notes.

    Args:
        models: The target and the draft.
        tokenizers: Their tokenizers, if they may differ: the draft then learns the target's ids.
    """
    notes = []
    if tokenizers is not None:
        try:
            notes = compare_tokenizers(*tokenizers)
        except TokenizerMismatchError:
            target, draft = models
            probe(draft)  # as it is: afterwards, logits of tokens that it lacks hide all others
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
    eos = [ids_of(getattr(m.generation_config, "eos_token_id", None)) for m in (target, draft)]
    if eos[0] != eos[1]:
        shown = [sorted(ids) for ids in eos]
        notes.append(f"the draft ends at tokens {shown[1]}, the target at {shown[0]}, which counts")
    return notes


def ids_of(ids: int | list[int] | None) -> frozenset[int]:
    """The ids of a setting that holds one, several, or none."""
    if ids is None:
        return frozenset()
    return frozenset(ids if isinstance(ids, list) else [ids])
