"""Grouped attention is transformers' own, without its copies."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from cospec.models import ModelPair, attention
from tests.conftest import random_model


def inputs(num_shared: int, length: int, num_masks: int = 1):
    """Of 2 rows with 2 key-value heads, 7 slots, some of them hidden."""
    generator = torch.Generator().manual_seed(num_shared + length)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    mask = torch.where(random(2, num_masks, length, 7) > 0.8, -1e9, 0.0).double()
    mask[..., 0] = 0
    module = SimpleNamespace(num_key_value_groups=num_shared, is_causal=True)
    return (
        module,
        random(2, 2 * num_shared, length, 8),
        random(2, 2, 7, 8),
        random(2, 2, 7, 8),
        mask,
    )


@pytest.mark.parametrize("num_shared", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_it_gives_what_transformers_gives(num_shared, length, scaling):
    given = inputs(num_shared, length)
    found, _ = attention.grouped_attention(*given, scaling=scaling)
    expected, _ = sdpa_attention_forward(*given, scaling=scaling)
    assert found.shape == expected.shape == (2, length, 2 * num_shared, 8)
    torch.testing.assert_close(found, expected)


def test_a_mask_of_each_head_is_left_to_transformers(monkeypatch):
    given = inputs(2, 3, num_masks=4)
    asked = []
    monkeypatch.setattr(
        attention, "sdpa_attention_forward", lambda *a, **k: asked.append(a) or ("theirs", None)
    )
    assert attention.grouped_attention(*given) == ("theirs", None)
    assert len(asked) == 1


def test_the_models_of_a_pair_use_it_where_they_used_sdpa():
    target, draft = random_model("qwen2"), random_model("qwen2")
    draft.set_attn_implementation("eager")
    pair = ModelPair(target, draft)
    assert pair.target.config._attn_implementation == "cospec_sdpa"
    assert pair.draft.config._attn_implementation == "eager"
