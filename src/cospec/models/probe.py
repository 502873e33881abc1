"""Check of a loaded model: its logits must be the same with the ragged cache as without a cache."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch

from cospec.errors import UnsupportedModelError
from cospec.models.cache import CachedModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_PASSED: WeakKeyDictionary[PreTrainedModel, tuple[str, int]] = WeakKeyDictionary()
"""Models that passed, each with the attention and the forward that it had then."""


@torch.inference_mode()
def probe(model: PreTrainedModel) -> None:
    """Check on a few tokens that ragged reading and rolling back change nothing.

    Two rows of different length are read, rolled back, and read on, one further than the other;
    their last logits have to be those of a forward without a cache. A model that passed is not
    checked again: `custom_generate` makes a pair in each call.

    Raises:
        UnsupportedModelError: The logits differ, so that output would silently be wrong.
    """
    forward = getattr(model.forward, "__func__", model.forward)
    state = str(model.config._attn_implementation), id(forward)
    if _PASSED.get(model) == state:
        return
    cached = CachedModel(model)
    ids = (torch.arange(12, device=model.device).view(2, 6) * 7 + 3) % cached.vocab_size
    is_read = torch.tensor([[True, True, False], [True, True, True]], device=model.device)
    try:
        cached.reserve(2, 8)
        cached.prefill([ids[0, :4].tolist(), [*ids[1, :2].tolist(), 1]], 0)
        window = cached.window([3, 2], 3).only(is_read)
        logits = cached.read(ids[:, 3:], window, 3).logits[[0, 1], [1, 2]]
        one = torch.stack([ids[0], torch.cat([ids[1, :2], ids[1, 3:], ids[1, :1]])])
        plain = model(input_ids=one, use_cache=False).logits
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot read through CoSpec's cache: {error}. Load it with "
            "attn_implementation='sdpa' or 'eager', or use another architecture."
        ) from error
    expected = plain[:, 4]
    distance = float((logits - expected).norm() / expected.norm())
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.05
    if not distance <= tolerance and bool(expected.isfinite().all()):
        raise UnsupportedModelError(
            f"{type(model).__name__} gives other logits through CoSpec's cache (relative distance "
            f"{distance:.2g}, allowed {tolerance}); its attention does not honour position ids or "
            "masks. Use another architecture."
        )
    _PASSED[model] = state
