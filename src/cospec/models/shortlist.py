"""A draft's output matrix of which few rows are multiplied: those of likely tokens.

A small draft spends a sixth or more of a step on its output matrix, and nearly all rows of it are
of tokens that it never proposes. FR-Spec (Zhao et al. 2025, arXiv 2502.14856) multiplies only the
rows of frequent tokens. Here these are the first token ids, which most tokenizers give to frequent
tokens, and all tokens that the draft has read: those of prompts, and those that the target wrote.
So a rare word is drafted once a text has had it.

Drafts then depend on the texts that were read before. Exact greedy decoding writes the same text
whatever is drafted. Sampled texts, and those of an arbiter that keeps drafted tokens, do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from cospec.errors import ConfigError
from cospec.models.quantized import Int4Linear, Int8Linear

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor
    from transformers import PreTrainedModel

NOTE = (
    "draft_vocab_size: the draft considers rare tokens once it has read them. So sampled texts, "
    "and those of an arbiter that keeps drafted tokens, can depend on the texts before them"
)
"""Note for a pair."""
_MULTIPLE = 16  # outputs that the 4-bit operator takes at once


class ShortlistHead(nn.Module):
    """A quantized output matrix that multiplies its first rows, and those of listed tokens.

    Args:
        head: The output matrix that it replaces, (V, H). The first rows have as many bits as it
            has, all others 8.
        num_first: Number of first rows.
    """

    def __init__(self, head: Int8Linear, num_first: int) -> None:
        super().__init__()
        self.in_features, self.out_features = head.in_features, head.out_features
        self.rows = head.part(slice(None))
        first = head.part(slice(num_first))
        self.first = Int4Linear(first.plain()) if isinstance(head, Int4Linear) else first
        self._is_listed = torch.arange(head.out_features) < num_first
        self._listed: tuple[Tensor, Int8Linear] | None = None

    @property
    def weight(self) -> Tensor:
        """All rows, (V, H) int8."""
        return self.rows.weight

    def add(self, token_ids: Tensor) -> None:
        """List tokens, int64 of any shape: their rows are multiplied from now on."""
        if self._is_listed[token_ids].all():
            return
        self._is_listed[token_ids] = True
        num_first = self.first.out_features
        ids = self._is_listed[num_first:].nonzero()[:, 0] + num_first
        self._listed = ids, self.rows.part(ids)

    def add_read(self, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        """List tokens on their way into the embeddings, as a hook."""
        self.add(given[0])

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, (..., V), from (..., H). Tokens that are not listed get the least one."""
        logits: Tensor = self.first(x)
        listed = self._listed  # another thread may replace it
        least = logits.amin(dim=-1, keepdim=True)
        out = least.expand(*least.shape[:-1], self.out_features).clone()
        out[..., : self.first.out_features] = logits
        if listed is not None:
            ids, rows = listed
            out[..., ids] = rows(x)
        return out


def shorten_head(model: PreTrainedModel, num_first: int, token_ids: Iterable[int]) -> None:
    """Replace the output matrix of a quantized draft, in place; tokens that it reads are listed.

    Args:
        model: The draft.
        num_first: Number of first token ids that are always multiplied.
        token_ids: Further tokens that are always multiplied, such as those that end a text.

    Raises:
        ConfigError: The output matrix is not quantized, or cannot be cut there.
    """
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if not isinstance(head, Int8Linear):
        raise ConfigError(
            f"draft_vocab_size is {num_first}, and the draft's output matrix is not quantized; "
            "pass draft_quantization int8 or int4, which take matrices of a width that 32 divides, "
            "or leave it out."
        )
    most = head.out_features - 1
    if not _MULTIPLE <= num_first <= most or num_first % _MULTIPLE:
        raise ConfigError(
            f"draft_vocab_size is {num_first}; it must be a multiple of {_MULTIPLE} from "
            f"{_MULTIPLE} to {most}, or be left out for all {head.out_features} tokens."
        )
    short = ShortlistHead(head, num_first)
    short.add(torch.tensor(sorted(token_ids), dtype=torch.int64))
    model.set_output_embeddings(short)  # type: ignore[no-untyped-call]
    model.get_input_embeddings().register_forward_pre_hook(short.add_read)


def draft_vocab_size(model: PreTrainedModel) -> int | None:
    """Return the number of first tokens of a shortened output matrix; None if it has all."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return head.first.out_features if isinstance(head, ShortlistHead) else None
