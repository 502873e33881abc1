"""Fused decoder layers of a draft: the same sums in fewer operations."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers

from cospec.models.attention import use_grouped_attention
from cospec.models.cache import CachedModel
from cospec.models.fused import FusedLayer, fuse_layers
from tests.conftest import FAMILIES, random_model

OF_THAT_KIND = ("llama", "qwen2", "mistral")


def logits(model, *, with_padding):
    """Logits of two rows of different length, in two steps."""
    cached = CachedModel(model)
    is_read = torch.tensor([[True, True, False], [True, True, True]])
    window = cached.window([4, 2], 3)
    with torch.inference_mode():
        cached.reserve(2, 8)
        cached.prefill([[7, 8, 9, 10], [11, 12]], 0)
        ids = torch.tensor([[13, 14, 15], [16, 17, 18]])
        window = cached.window([4, 2], 3)
        window = window if with_padding else window.only(is_read)
        return cached.read(ids, window, 3).logits[is_read]


@pytest.mark.parametrize("with_padding", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_fused_model_computes_the_same(family, dtype, with_padding):
    model = random_model(family).to(dtype)
    use_grouped_attention(model)
    fused = copy.deepcopy(model)
    fuse_layers(fused, lambda linear: linear)
    num_fused = sum(isinstance(module, FusedLayer) for module in fused.modules())
    assert num_fused == (model.config.num_hidden_layers if family in OF_THAT_KIND else 0)
    found, expected = (logits(one, with_padding=with_padding) for one in (fused, model))
    error = (found - expected).float().norm() / expected.float().norm()
    assert error < (1e-5 if dtype == torch.float32 else 0.03)


def test_the_layers_that_are_replaced_keep_no_weights():
    model = random_model("llama")
    weights = sum(weight.numel() for weight in model.parameters())
    fuse_layers(model, lambda linear: linear)
    assert sum(weight.numel() for weight in model.parameters()) == weights


def test_a_layer_that_computes_something_else_is_left_as_it_is():
    """It has the names of a fusible one, but scales what it adds."""
    model = random_model("llama")
    layer = model.model.layers[0]
    plain = layer.mlp.forward
    layer.mlp.forward = lambda x: 2 * plain(x)
    fuse_layers(model, lambda linear: linear)
    assert type(layer) is type(model.model.layers[0])
    assert isinstance(model.model.layers[1], FusedLayer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["SmolLM3", "Helium", "Granite", "Qwen3", "Phi3", "Olmo2"])
def test_layers_with_these_names_that_compute_something_else_are_left(name, dtype):
    """Found: in half precision layers without rotation, or with another one, were fused."""
    config = getattr(transformers, f"{name}Config")(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        pad_token_id=0,
        **({"residual_multiplier": 0.5} if name == "Granite" else {}),
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype).eval()
    ids = torch.arange(1, 13)[None]
    with torch.inference_mode():
        expected = model(ids, use_cache=False).logits
        fuse_layers(model, lambda linear: linear)
        found = model(ids, use_cache=False).logits
    error = (found - expected).float().norm() / expected.float().norm()
    assert error < (1e-4 if dtype == torch.float32 else 0.03)
    fused = [isinstance(module, FusedLayer) for module in model.model.layers]
    assert fused == [name == "SmolLM3" and bool(use) for use in _rotates(config)]


def _rotates(config):
    return getattr(config, "no_rope_layers", [0] * config.num_hidden_layers)


def test_a_layer_in_two_places_is_fused_once():
    model = random_model("llama")
    model.model.layers[1] = model.model.layers[0]
    expected = model(torch.arange(9)[None], use_cache=False).logits
    fuse_layers(model, lambda linear: linear)
    assert model.model.layers[1] is model.model.layers[0]
    assert isinstance(model.model.layers[0], FusedLayer)
    found = model(torch.arange(9)[None], use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_layer_that_returns_a_tuple_is_left_as_it_is():
    model = random_model("llama")
    layer = model.model.layers[0]
    plain = layer.forward
    layer.forward = lambda *args, **kwargs: (plain(*args, **kwargs),)
    fuse_layers(model, lambda linear: linear)
    assert model.model.layers[0] is layer


def test_other_attention_is_left_as_it_is():
    model = random_model("llama")
    model.set_attn_implementation("flex_attention")
    fuse_layers(model, lambda linear: linear)
    assert not any(isinstance(module, FusedLayer) for module in model.modules())
