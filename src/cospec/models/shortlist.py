"""A draft's output matrix of which few rows are multiplied: those of likely tokens.

A small draft spends a sixth or more of a step on its output matrix, and nearly all rows of it are
of tokens that it never proposes. FR-Spec (Zhao et al. 2025, arXiv 2502.14856) multiplies only the
rows of frequent tokens. Here these are the first token ids, which most tokenizers give to frequent
tokens, and all tokens that a drafter has read: those of its prompts, and those that the target
wrote. So a rare word is drafted once a text has had it.

The list belongs to a drafter (`Shortlist`). Whoever reads with the model otherwise, as audits do,
gets the logits of all tokens.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import torch
from torch import nn

from cospec.errors import ConfigError
from cospec.models.quantized import HEIGHT_MULTIPLE, Int4Linear, Int8Linear

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor
    from transformers import PreTrainedModel

NOTE = (
    "draft_vocab_size: the draft considers rare tokens once it has read them. So sampled texts, "
    "and those of an arbiter that keeps drafted tokens, can depend on the other texts of a call"
)
"""Note for a pair."""


class Shortlist:
    """The tokens that a drafter considers.

    Args:
        head: The draft's output matrix.
    """

    def __init__(self, head: ShortlistHead) -> None:
        self._head = head
        self._is_listed = torch.arange(head.out_features) < head.first.out_features
        self.listed: tuple[Tensor, Int8Linear] | None = None
        """Listed tokens beyond the first ones, ascending, and their rows."""
        self.add(head.always)

    def add(self, token_ids: Tensor) -> None:
        """List tokens, int64 of any shape."""
        if self._is_listed[token_ids].all():
            return
        self._is_listed[token_ids] = True
        num_first = self._head.first.out_features
        ids = self._is_listed[num_first:].nonzero()[:, 0] + num_first
        self.listed = ids, self._head.rows.part(ids)


_used: ContextVar[Shortlist | None] = ContextVar("_used", default=None)


@contextmanager
def using(tokens: Shortlist | None) -> Iterator[None]:
    """Let heads multiply the rows of a list alone, in this thread; with None, all rows."""
    token = _used.set(tokens)
    try:
        yield
    finally:
        _used.reset(token)


class ShortlistHead(nn.Module):
    """A quantized output matrix that can multiply its first rows and those of listed tokens alone.

    Args:
        head: The output matrix that it replaces, (V, H). The first rows have as many bits as it
            has, all others 8.
        num_first: Number of first rows.
        always: Further tokens that every list has, int64.
    """

    def __init__(self, head: Int8Linear, num_first: int, always: Tensor) -> None:
        super().__init__()
        self.in_features, self.out_features = head.in_features, head.out_features
        self.always = always
        self.rows = head.part(slice(None))
        first = head.part(slice(num_first))
        self.first = Int4Linear(first.plain()) if isinstance(head, Int4Linear) else first

    @property
    def weight(self) -> Tensor:
        """All rows, (V, H) int8."""
        return self.rows.weight

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, (..., V), from (..., H). Tokens that are not listed get the least one."""
        if (short := _used.get()) is None:
            whole: Tensor = self.rows(x)
            return whole
        logits: Tensor = self.first(x)
        least = logits.amin(dim=-1, keepdim=True)
        out = least.expand(*least.shape[:-1], self.out_features).clone()
        out[..., : self.first.out_features] = logits
        if short.listed is not None:
            ids, rows = short.listed
            out[..., ids] = rows(x)
        return out


def shorten_head(model: PreTrainedModel, num_first: int, always: Iterable[int]) -> None:
    """Replace the output matrix of a quantized draft, in place.

    Args:
        model: The draft.
        num_first: Number of first token ids that drafters always consider.
        always: Further ones, such as tokens that end a text; ids that the draft lacks are left out.

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
    if not HEIGHT_MULTIPLE <= num_first <= most or num_first % HEIGHT_MULTIPLE:
        raise ConfigError(
            f"draft_vocab_size is {num_first}; it must be a multiple of {HEIGHT_MULTIPLE} from "
            f"{HEIGHT_MULTIPLE} to {most}, or be left out for all {head.out_features} tokens."
        )
    ids = torch.tensor(sorted(i for i in always if 0 <= i <= most), dtype=torch.int64)
    short = ShortlistHead(head, num_first, ids)
    model.set_output_embeddings(short)  # type: ignore[no-untyped-call]


def shortlist_of(model: PreTrainedModel) -> Shortlist | None:
    """Return a new list for a drafter; None if the draft's output matrix is whole."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return Shortlist(head) if isinstance(head, ShortlistHead) else None


def draft_vocab_size(model: PreTrainedModel) -> int | None:
    """Return the number of first tokens of a shortened output matrix; None if it is whole."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return head.first.out_features if isinstance(head, ShortlistHead) else None


def shared_bytes(model: PreTrainedModel) -> int:
    """Return the bytes of the first rows, if they are a part of all rows."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    is_part = isinstance(head, ShortlistHead) and not isinstance(head.first, Int4Linear)
    return int(head.first.weight.nbytes) if is_part else 0


def unread_bytes(model: PreTrainedModel) -> int:
    """Return the bytes of a shortened output matrix that a step does not read."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if not isinstance(head, ShortlistHead):
        return 0
    return int(head.weight.nbytes) - shared_bytes(model)
