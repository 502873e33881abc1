"""8-bit weights of a draft: close to the plain ones, and the target keeps its bits."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from cospec import ModelPair
from cospec.errors import ConfigError
from cospec.models.packed import LEAST_WEIGHTS, PackedLinear, can_pack
from cospec.models.pair import weight_bytes
from cospec.models.quantized import Int8Linear, can_quantize, quantize_weights
from tests.conftest import random_model

pytestmark = pytest.mark.skipif(not can_quantize(), reason="no 8-bit product here")


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


def test_a_row_of_zeros_and_large_weights_stay_finite():
    linear = nn.Linear(32, 3, bias=False)
    linear.weight.data[0], linear.weight.data[1] = 0.0, 1e30
    with torch.inference_mode():
        found = Int8Linear(linear)(torch.ones(1, 32))
    assert found[0, 0] == 0 and found.isfinite().all()


def test_every_linear_layer_is_replaced_and_tied_embeddings_stay_plain():
    model = random_model("llama", tie_word_embeddings=True)
    embeddings = model.get_input_embeddings().weight.clone()
    quantize_weights(model)
    assert not any(type(m) is nn.Linear for m in model.modules())
    assert isinstance(model.get_output_embeddings(), Int8Linear)
    assert torch.equal(model.get_input_embeddings().weight, embeddings)


def test_a_model_without_such_layers_is_refused():
    model = random_model("llama", hidden_size=40, intermediate_size=40, head_dim=10)
    with pytest.raises(ConfigError, match="no linear layer of a width that 32 divides"):
        quantize_weights(model)


@pytest.fixture
def saved(tmp_path, tokenizer):
    for name, seed in (("target", 0), ("draft", 1)):
        model = random_model("llama", seed=seed, hidden_size=256, intermediate_size=512)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    return tmp_path


def test_the_target_of_a_loaded_pair_keeps_its_bits_and_the_fingerprint_tells(saved, monkeypatch):
    monkeypatch.setitem(LEAST_WEIGHTS, torch.float32, 1 << 16)
    plain, int8 = (
        ModelPair.from_pretrained(saved / "target", saved / "draft", draft_quantization=kind)
        for kind in ("none", "int8")
    )
    ids = torch.arange(6, 26)[None]
    with torch.inference_mode():
        logits = [(pair.target(ids).logits, pair.draft(ids).logits) for pair in (plain, int8)]
    assert torch.equal(logits[0][0], logits[1][0])
    assert not torch.equal(logits[0][1], logits[1][1])
    assert int8.fingerprint == f"{plain.fingerprint}-int8"
    again = ModelPair(int8.target, int8.draft, int8.tokenizer)
    assert (again.fingerprint, again.draft_quantization) == (int8.fingerprint, "int8")
    assert int8.draft_size < plain.draft_size / 2
    if can_pack(torch.float32):
        assert any(isinstance(m, PackedLinear) for m in int8.target.modules())


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


def test_a_quantized_model_can_be_copied():
    model = random_model("llama")
    quantize_weights(model)
    ids = torch.arange(6, 26)[None]
    with torch.inference_mode():
        assert torch.equal(copy.deepcopy(model)(ids).logits, model(ids).logits)
