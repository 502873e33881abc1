"""Grouped attention is transformers' own, without its copies."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from cospec.models import ModelPair, attention
from tests.conftest import random_model


def inputs(num_shared: int, length: int, num_masks: int = 1):
    """Attention inputs of 2 rows with 2 key-value heads, 7 slots, some of them hidden."""
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


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512", reason="bits were seen to hold there"
)
@pytest.mark.parametrize(("num_shared", "size"), [(1, 80), (1, 96), (6, 96), (6, 128), (7, 64)])
@pytest.mark.parametrize("num_slots", [512, 1024])
def test_a_token_in_bfloat16_has_the_same_bits_whatever_is_read_with_it(
    num_shared, size, num_slots
):
    """Found: the last two or three query rows, after each 32, had others (a block of 11 tokens)."""
    generator = torch.Generator().manual_seed(1)
    query, key, value = (
        torch.randn(1, num_heads, length, size, generator=generator).bfloat16()
        for num_heads, length in ((2 * num_shared, 40), (2, num_slots), (2, num_slots))
    )
    mask = torch.zeros(1, 1, 40, num_slots, dtype=torch.bfloat16)
    mask[..., num_slots - 100 :] = torch.finfo(mask.dtype).min
    module = SimpleNamespace(num_key_value_groups=num_shared, is_causal=True)

    def read(start: int, end: int) -> torch.Tensor:
        part = slice(start, end)
        given = module, query[:, :, part], key, value, mask[:, :, part]
        return attention.grouped_attention(*given)[0][0]

    alone = torch.cat([read(i, i + 1) for i in range(40)])
    for length in range(2, 41):
        assert torch.equal(read(0, length), alone[:length]), length


@pytest.mark.parametrize("counts", [(16, 16), (16, 4), (4, 0), (16, 5)])
def test_tokens_without_padding_get_what_they_get_with_it(counts, monkeypatch):
    """Rows of very different lengths are computed apart."""
    given = module, query, key, value, mask = inputs(2, 16)
    places = torch.tensor([16 * row + i for row, n in enumerate(counts) for i in range(n)])
    lengths = []
    monkeypatch.setattr(
        attention, "_attend", lambda *a, __was=attention._attend, **k: (
            lengths.append(a[1].shape[2]), __was(*a, **k)
        )[1],
    )  # fmt: skip
    expected, _ = sdpa_attention_forward(*given)
    tokens = query.transpose(1, 2).flatten(0, 1)[places].transpose(0, 1)[None]
    with attention.without_padding(places, 2, 16):
        found, _ = attention.grouped_attention(module, tokens, key, value, mask)
    torch.testing.assert_close(found[0], expected.flatten(0, 1)[places])
    assert lengths == ([4, 16] if counts == (16, 4) else [16])


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
