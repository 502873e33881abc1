"""Attention over the ragged cache without copies of keys and values.

The only file that knows Hugging Face's attention functions. Where several query heads share a
key-value head, transformers copies keys and values for each of them as soon as there is a mask,
which with the ragged cache is always. Reading the whole cache several times over is most of what a
verify step costs on a CPU. Here the query heads of a group become rows of one query instead (as
transformers does for a single token): the same sums, nothing copied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

_NAME = "cospec_sdpa"


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,  # Any: what else a model passes to its attention function
) -> tuple[Tensor, None]:
    """Compute the same as transformers' ``sdpa``, for G query heads a key-value head.

    Args:
        module: The attention layer.
        query: (B, heads, n, D).
        key: (B, heads / G, S, D).
        value: (B, heads / G, S, D).
        attention_mask: Added to the scores, (B, 1, n, S).
        scaling: Of the scores; 1 / sqrt(D) if None.
        **kwargs: For transformers' own function, which does all that is not grouped and masked.

    Returns:
        (B, n, heads, D) and None.
    """
    num_rows, num_heads, length, size = query.shape
    num_shared = num_heads // key.shape[1]  # G
    is_plain = kwargs.get("position_bias") is None and kwargs.get("softcap") is None
    if attention_mask is None or attention_mask.shape[1] > 1 or num_shared == 1 or not is_plain:
        output: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return output
    grouped = query.reshape(num_rows, -1, num_shared * length, size)  # (B, heads / G, G n, D)
    found = scaled_dot_product_attention(
        grouped,
        key,
        value,
        attn_mask=attention_mask.repeat(1, 1, num_shared, 1),  # (B, 1, G n, S)
        scale=scaling,
    )
    return found.reshape(num_rows, num_heads, length, size).transpose(1, 2).contiguous(), None


def use_grouped_attention(model: PreTrainedModel) -> None:
    """Let a model that uses transformers' ``sdpa`` use `grouped_attention`."""
    if model.config._attn_implementation != "sdpa":
        return
    model.set_attn_implementation(_NAME)


# At import, so that a process finds it which gets a model from another one.
AttentionInterface.register(_NAME, grouped_attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)
