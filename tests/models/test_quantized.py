"""Quantized weights of a draft: close to the plain ones, and the target keeps its bits."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from cospec import ModelPair
from cospec.errors import ConfigError
from cospec.models.packed import LEAST_WEIGHTS, PackedLinear, can_pack
from cospec.models.pair import weight_bytes
from cospec.models.quantized import (
    Int4Linear,
    Int8Linear,
    can_quantize,
    int4_layers,
    quantization,
    quantize_weights,
)
from tests.conftest import random_model

pytestmark = pytest.mark.skipif(not can_quantize(), reason="no 8-bit product here")
needs_int4 = pytest.mark.skipif(not can_quantize("int4"), reason="no 4-bit product here")
KINDS = ["int8", pytest.param("int4", marks=needs_int4)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(96,), (1, 96), (2, 7, 96), (0, 96), (33, 96), (3, 40, 96)])
def test_a_layer_computes_almost_the_same(bias, dtype, shape):
    linear = nn.Linear(96, 61, bias=bias).to(dtype)
    x = torch.randn(shape).to(dtype)
    with torch.inference_mode():
        found, expected = Int8Linear(linear)(x), linear(x)
    assert found.shape == expected.shape and found.dtype == dtype
    assert (found - expected).float().norm() <= 0.02 * expected.float().norm()


@needs_int4
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(96,), (2, 7, 96), (0, 96), (24, 96)])
def test_a_4_bit_layer_computes_the_nearest_levels_of_each_group(bias, dtype, shape):
    """The reference rounds the weights of each group to 16 levels between its least and most."""
    torch.manual_seed(0)
    linear = nn.Linear(96, 64, bias=bias).to(dtype)
    weight = linear.weight.detach().float().unflatten(1, (3, 32))
    least, most = weight.aminmax(dim=2, keepdim=True)
    step = (most - least) / 15
    rounded = nn.Linear(96, 64, bias=bias)
    rounded.weight.data = (least + ((weight - least) / step).round() * step).flatten(1)
    rounded.bias = nn.Parameter(linear.bias.detach().float()) if bias else None
    x = torch.randn(shape).to(dtype)
    with torch.inference_mode():
        found, expected = Int4Linear(linear)(x), rounded(x.float())
    assert found.shape == expected.shape and found.dtype == dtype
    assert (found - expected).norm() <= 0.03 * expected.norm()


@needs_int4
def test_many_rows_are_read_with_8_bit_weights():
    linear = nn.Linear(96, 64, bias=False)
    x = torch.randn(60, 96)
    with torch.inference_mode():
        assert torch.equal(Int4Linear(linear)(x), Int8Linear(linear)(x))


@pytest.mark.parametrize("layer", [Int8Linear, pytest.param(Int4Linear, marks=needs_int4)])
def test_a_row_of_zeros_and_large_weights_stay_finite(layer):
    linear = nn.Linear(32, 16, bias=False)
    linear.weight.data[0], linear.weight.data[1] = 0.0, 1e30
    with torch.inference_mode():
        found = layer(linear)(torch.ones(1, 32))
    assert found[0, 0].abs() < 1e-12 and found.isfinite().all()
    torch.testing.assert_close(found[0, 1].item(), 32e30, rtol=0.01, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_every_linear_layer_is_replaced_and_tied_embeddings_stay_plain(kind):
    model = random_model("llama", tie_word_embeddings=True)
    embeddings = model.get_input_embeddings().weight.clone()
    assert quantization(model) == "none"
    quantize_weights(model, kind)
    assert quantization(model) == kind
    assert not any(type(m) is nn.Linear for m in model.modules())
    assert isinstance(model.get_output_embeddings(), Int8Linear)
    assert torch.equal(model.get_input_embeddings().weight, embeddings)


@needs_int4
def test_a_model_without_a_layer_of_a_fitting_height_is_refused_in_4_bits():
    """Found: GPT-2, whose only linear layer is its output matrix, had 8 bits by that name."""
    model = random_model("gpt2", vocab_size=97)
    with pytest.raises(ConfigError, match="outputs 16 divides; take int8"):
        quantize_weights(model, "int4")


@needs_int4
def test_a_layer_of_an_odd_height_has_8_bits_beside_4_bit_ones():
    model = random_model("llama", vocab_size=100)
    quantize_weights(model, "int4")
    assert type(model.get_output_embeddings()) is Int8Linear
    assert type(model.model.layers[0].down) is Int4Linear


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_without_such_layers_is_refused(kind):
    model = random_model("llama", hidden_size=40, intermediate_size=40, head_dim=10)
    match = f"is {kind}, and .* no linear layer of a width that 32 divides"
    with pytest.raises(ConfigError, match=match):
        quantize_weights(model, kind)


@pytest.fixture
def saved(tmp_path, tokenizer):
    for name, seed in (("target", 0), ("draft", 1)):
        model = random_model("llama", seed=seed, hidden_size=256, intermediate_size=512)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
def test_the_target_of_a_loaded_pair_keeps_its_bits_and_the_fingerprint_tells(
    saved, monkeypatch, kind
):
    monkeypatch.setitem(LEAST_WEIGHTS, torch.float32, 1 << 16)
    plain, changed = (
        ModelPair.from_pretrained(saved / "target", saved / "draft", draft_quantization=one)
        for one in ("none", kind)
    )
    ids = torch.arange(6, 26)[None]
    with torch.inference_mode():
        logits = [(pair.target(ids).logits, pair.draft(ids).logits) for pair in (plain, changed)]
    assert torch.equal(logits[0][0], logits[1][0])
    assert not torch.equal(logits[0][1], logits[1][1])
    assert changed.fingerprint == f"{plain.fingerprint}-{kind}"
    again = ModelPair(changed.target, changed.draft, changed.tokenizer)
    assert (again.fingerprint, again.draft_quantization) == (changed.fingerprint, kind)
    assert changed.draft_size < plain.draft_size / 2
    if can_pack(torch.float32):
        assert any(isinstance(m, PackedLinear) for m in changed.target.modules())


@needs_int4
def test_the_size_of_a_4_bit_draft_is_of_what_a_step_reads_and_its_weights_are_all_counted(saved):
    sizes = {}
    for kind in ("int8", "int4"):
        pair = ModelPair.from_pretrained(
            saved / "target", saved / "draft", draft_quantization=kind, pack_weights=False
        )
        sizes[kind] = weight_bytes(pair.draft), pair.draft_size
    number = sum(layer.weight.numel() for layer in int4_layers(pair.draft))
    assert sizes["int4"][0] == sizes["int8"][0] + number * 5 / 8
    fewer = number * 3 / 8 / weight_bytes(pair.target)
    assert sizes["int4"][1] == pytest.approx(sizes["int8"][1] - fewer)


@pytest.mark.skipif(not can_pack(torch.float32), reason="no oneDNN packing here")
def test_packing_does_not_change_the_size_of_a_draft(saved, monkeypatch):
    """Packed weights are no parameters, and were once left out of the draft's cost."""
    monkeypatch.setitem(LEAST_WEIGHTS, torch.float32, 1 << 16)
    plain, packed = (
        ModelPair.from_pretrained(saved / "target", saved / "draft", pack_weights=pack)
        for pack in (False, True)
    )
    assert any(isinstance(m, PackedLinear) for m in packed.draft.modules())
    assert weight_bytes(packed.draft) == weight_bytes(plain.draft)
    assert packed.draft_size == plain.draft_size == 1.0


def test_an_unknown_kind_is_refused_before_anything_is_loaded():
    with pytest.raises(ConfigError, match="draft quantization"):
        ModelPair.from_pretrained("nowhere", "nowhere", draft_quantization="int9")


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantized_model_can_be_copied(kind):
    model = random_model("llama")
    quantize_weights(model, kind)
    ids = torch.arange(6, 26)[None]
    with torch.inference_mode():
        assert torch.equal(copy.deepcopy(model)(ids).logits, model(ids).logits)
