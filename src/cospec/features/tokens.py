"""Kinds of tokens, by their text."""

from __future__ import annotations

import string
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

KINDS = ("digit", "punctuation", "space", "word", "piece")
"""Kinds of tokens; a token that is none of the first three is a word if a space leads it."""

_BLANK = "\u2581"
"""SentencePiece's sign for a leading space, which the decoder of a single token may drop."""


def kind_of(text: str) -> str:
    """Return the kind of a token by its text, one of `KINDS`."""
    bare = text.strip()
    if not bare:
        return "space"
    if bare.isdecimal():
        return "digit"
    if all(c in string.punctuation or not (c.isalnum() or c.isspace()) for c in bare):
        return "punctuation"
    return "word" if text[0].isspace() else "piece"


def token_kinds(tokenizer: PreTrainedTokenizerBase | None, vocab_size: int) -> Tensor:
    """Return the index into `KINDS` of every token, (V,) int64; without a tokenizer all pieces."""
    kinds = torch.full((vocab_size,), KINDS.index("piece"))
    if tokenizer is not None:
        for i in range(min(len(tokenizer), vocab_size)):
            text, piece = str(tokenizer.decode([i])), tokenizer.convert_ids_to_tokens([i])[0]
            if str(piece).startswith(_BLANK) and not text[:1].isspace():
                text = f" {text}"
            kinds[i] = KINDS.index(kind_of(text))
    return kinds
