"""Checks that a model can be decoded exactly, and the positions that its configuration allows."""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING

import torch

from cospec.errors import UnsupportedModelError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel

_log = logging.getLogger(__name__)

_LAYER_TYPES = {"full_attention", "sliding_attention"}
_SWITCHING_ROPES = {"dynamic", "longrope"}


def check_supported(model: PreTrainedModel) -> None:
    """Refuse a model that cannot roll back.

    Raises:
        UnsupportedModelError: A recurrent, hybrid, chunked or encoder-decoder model.
    """
    name = type(model).__name__
    config = model.config.get_text_config()
    advice = "use a decoder-only transformer whose layers all attend to a key-value cache"
    if model.config.is_encoder_decoder:
        raise UnsupportedModelError(f"{name} is an encoder-decoder model; {advice}.")
    kinds = set(getattr(config, "layer_types", None) or ())
    # The flag is that of transformers before 5.25; since then recurrent layers have a type.
    if getattr(model, "_is_stateful", False) or "linear_attention" in kinds:
        raise UnsupportedModelError(
            f"{name} keeps a recurrent state, which cannot be rolled back to the last token that "
            f"stands; {advice}."
        )
    if any("local" in str(kind) for kind in getattr(config, "attention_layers", None) or ()):
        raise UnsupportedModelError(
            f"{name} has layers of local attention that keep masks of their own; {advice}."
        )
    if unknown := kinds - _LAYER_TYPES:
        raise UnsupportedModelError(
            f"{name} has layers of type {', '.join(sorted(unknown))}; "
            f"allowed are {', '.join(sorted(_LAYER_TYPES))}: {advice}."
        )


def warn_of_mixed_rows(target: PreTrainedModel) -> None:
    """Warn, once per name, of a target whose logits for a token depend on the tokens beside it.

    bitsandbytes multiplies inputs that are large for any token of a forward in 16 bits, and all
    others in 8.
    """
    if getattr(target, "is_loaded_in_8bit", False):
        _warn(
            f"the target {target.name_or_path} has 8-bit weights of bitsandbytes, with which its "
            "logits for a token depend on the tokens that are read with it: lossless output can "
            "differ from that of the target alone; load it without load_in_8bit to avoid that"
        )


@cache
def _warn(text: str) -> None:
    """Log a warning once."""
    _log.warning("note: %s", text)


def context_length(config: PretrainedConfig) -> int:
    """Most positions that a model of this configuration can take.

    Rotary scalings that change all positions once a length is passed (dynamic, longrope) would
    spoil what is cached, so the length before the change counts.
    """
    length: int = getattr(config, "max_position_embeddings", 2**31 - 1)
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    for one in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        if one.get("rope_type", one.get("type")) in _SWITCHING_ROPES:
            original = one.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            length = min(length, original or length)
    return length


def attention_windows(config: PretrainedConfig) -> dict[str, int | None]:
    """By layer type, the number of last tokens that a token sees; None for all."""
    sliding = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    if not kinds:
        kinds = {"sliding_attention" if sliding else "full_attention"}
    return {kind: sliding if kind == "sliding_attention" else None for kind in sorted(kinds)}


def mask_strips(
    windows: dict[str, int | None], num_slots: int, dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    """Return by layer type the additive mask by distance, from `num_slots` down, (2 num_slots,).

    The mask of a token at place p begins at num_slots - p: there stands that of place 0.

    Args:
        windows: As `attention_windows` returns them.
        num_slots: Slots of a row.
        dtype: Data type of the model.
        device: Its device.
    """
    distance = torch.arange(num_slots, -num_slots, -1, device=device)
    strips = {}
    for kind, width in windows.items():
        is_hidden = distance < 0 if width is None else (distance < 0) | (distance >= width)
        strip = torch.zeros(2 * num_slots, dtype=dtype, device=device)
        strips[kind] = strip.masked_fill(is_hidden, torch.finfo(dtype).min)
    return strips
