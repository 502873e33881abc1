"""Attention over the ragged cache without copies of keys and values, and without padding elsewhere.

The only file that knows Hugging Face's attention functions. Where several query heads share a
key-value head, transformers copies keys and values for each of them as soon as there is a mask,
which with the ragged cache is always. Reading the whole cache several times over is most of what a
verify step costs on a CPU. Here the query heads of a group become rows of one query instead (as
transformers does for a single token): the same sums, nothing copied.

Rows read different numbers of tokens where blocks end early. All layers but attention look at one
token at a time, so a model can be given the tokens of all rows as a single row without padding
(`without_padding`). Only attention lays them out by rows again, short rows apart from long ones.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from cospec.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn
    from transformers import PreTrainedModel

_GROUPS = "_cospec_groups"
"""Attribute of a mask: what `_for_groups` made of it."""
_NAME, _PADDED = "cospec_sdpa", "cospec_sdpa_padded"
"""Names of the attention in models that can go without padding, and in those that cannot."""
_ROW_MULTIPLE = 4
"""In bfloat16 on a CPU, queries are padded to a multiple of this. Otherwise the last two or three
after each 32 can have other bits than the same queries among more."""
_LEAST_LENGTH = 16
"""Shorter padded rows are all computed together: a second call would cost more than padding."""


def sums_in_parts(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether the last bits of attention depend on the numbers of queries and places."""
    return (device.type, dtype) == ("cpu", torch.bfloat16)


class _Part(NamedTuple):
    """Some rows that are padded to one length."""

    rows: Tensor | slice
    """Indices of these among the B rows."""
    tokens: Tensor | slice
    """Indices of their tokens among the T tokens."""
    padded: Tensor
    """Indices of these among the padded tokens of the part."""
    length: int


_parts: ContextVar[list[_Part] | None] = ContextVar("_parts", default=None)


@contextmanager
def without_padding(places: Tensor, num_rows: int, length: int) -> Iterator[None]:
    """Give models that use `grouped_attention` T tokens of B rows as one row of T.

    Args:
        places: Indices of these tokens among the B n tokens of padded rows, (T,) int64. The mask
            that the model is given covers the padded rows, (B, 1, n, S).
        num_rows: B.
        length: n.
    """
    token = _parts.set(_short_and_long(places, num_rows, length))
    try:
        yield
    finally:
        _parts.reset(token)


def _short_and_long(places: Tensor, num_rows: int, length: int) -> list[_Part]:
    """Separate rows of at most a quarter of the length from the others, on a CPU where it pays."""
    whole = [_Part(slice(None), slice(None), places, length)]
    if places.device.type != "cpu" or length < _LEAST_LENGTH:
        return whole
    rows, columns = places // length, places % length
    ends = torch.zeros(num_rows, dtype=torch.int64).scatter_reduce(0, rows, columns + 1, "amax")
    is_short = ends <= length // 4
    parts = []
    for is_here in (is_short, ~is_short):
        if not is_here.any():
            return whole
        tokens = is_here[rows].nonzero()[:, 0]
        longest = max(1, int(ends[is_here].max()))
        number = is_here.cumsum(0) - 1  # of each row in its part
        padded = number[rows[tokens]] * longest + columns[tokens]
        parts.append(_Part(is_here.nonzero()[:, 0], tokens, padded, longest))
    return parts


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,  # Any: what else a model passes to its attention function
) -> tuple[Tensor, None]:
    """Compute the same as transformers' ``sdpa``, for G query heads per key-value head.

    Args:
        module: The attention layer.
        query: (B, heads, n, D); within `without_padding` (1, heads, T, D).
        key: (B, heads / G, S, D).
        value: (B, heads / G, S, D).
        attention_mask: Added to the scores, (B, 1, n, S).
        scaling: Factor of the scores; 1 / sqrt(D) if None.
        **kwargs: For transformers' own function, which computes what is not grouped and masked.

    Returns:
        (B, n, heads, D), or (1, T, heads, D), and None.
    """
    if (parts := _parts.get()) is None:
        return _attend(module, query, key, value, attention_mask, scaling, **kwargs)
    if attention_mask is None:
        raise ValueError("the model passes on no mask")
    tokens = query[0].transpose(0, 1)  # (T, heads, D)
    found = tokens.new_empty(tokens.shape)  # without the gaps of the view
    for part in parts:
        places = part.padded.to(query.device)
        keys, values = key[part.rows], value[part.rows]
        padded = tokens.new_zeros(len(keys) * part.length, *tokens.shape[1:])
        padded[places] = tokens[part.tokens]
        padded = padded.view(len(keys), part.length, *tokens.shape[1:]).transpose(1, 2)
        is_whole = isinstance(part.rows, slice)
        mask = attention_mask if is_whole else attention_mask[part.rows, :, : part.length]
        one, _ = _attend(module, padded, keys, values, mask, scaling, **kwargs)
        found[part.tokens] = one.flatten(0, 1)[places]
    return found[None], None


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None,
    **kwargs: Any,  # Any: as in `grouped_attention`
) -> tuple[Tensor, None]:
    """Compute attention of padded rows."""
    num_rows, num_heads, length, size = query.shape
    num_shared = num_heads // key.shape[1]  # G
    is_plain = kwargs.get("position_bias") is None and kwargs.get("softcap") is None
    is_cut = sums_in_parts(query.device, query.dtype)
    is_simple = num_shared == 1 and not is_cut
    if attention_mask is None or attention_mask.shape[1] > 1 or is_simple or not is_plain:
        output: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return output
    grouped = query.reshape(num_rows, -1, num_shared * length, size)  # (B, heads / G, G n, D)
    missing = -grouped.shape[2] % _ROW_MULTIPLE if is_cut else 0
    if missing:
        grouped = pad(grouped, (0, 0, 0, missing))
    mask = _for_groups(attention_mask, num_shared, missing)
    found = scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scaling)
    found = found[:, :, : num_shared * length]
    return found.reshape(num_rows, num_heads, length, size).transpose(1, 2).contiguous(), None


def _for_groups(mask: Tensor, num_shared: int, num_padding: int) -> Tensor:
    """Repeat a mask, (B, 1, n, S), for the G query heads of a group: (B, 1, G n + padding, S).

    All layers of a forward share one mask, so the result is kept with it.
    """
    known: dict[tuple[int, int], Tensor] = mask.__dict__.setdefault(_GROUPS, {})
    if (num_shared, num_padding) not in known:
        found = mask.repeat(1, 1, num_shared, 1)
        found = pad(found, (0, 0, 0, num_padding)) if num_padding else found
        known[num_shared, num_padding] = found
    return known[num_shared, num_padding]


def can_go_without_padding(model: PreTrainedModel) -> bool:
    """Tell whether a model may be read `without_padding`."""
    return bool(model.config._attn_implementation == _NAME)


def use_grouped_attention(model: PreTrainedModel) -> None:
    """Let a model use `grouped_attention`, unless its own attention takes our masks.

    Flash attention and kernels from the hub take no masks: they would read past their keys, which
    ends the process on a GPU.

    Raises:
        UnsupportedModelError: Its attention takes no masks and cannot be changed.
    """
    name = model.config._attn_implementation
    if name in ("eager", "flex_attention", _NAME, _PADDED):
        return
    try:
        model.set_attn_implementation(_NAME)
    except ValueError as error:
        raise UnsupportedModelError(
            f"{type(model).__name__} uses the attention {name!r}, which takes no masks, and cannot "
            f"be changed ({error}); load it with attn_implementation='eager'."
        ) from None


def keep_padding(model: PreTrainedModel) -> bool:
    """Make a model that failed without padding use it; return False if it already did."""
    if not can_go_without_padding(model):
        return False
    model.set_attn_implementation(_PADDED)
    return True


# At import, so that a process that gets a model from another one finds it.
for _name in (_NAME, _PADDED):
    AttentionInterface.register(_name, grouped_attention)
    AttentionMaskInterface.register(_name, sdpa_mask)
