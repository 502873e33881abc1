"""Decoder layers of a quantized draft in fewer operations.

A step of a small draft over one token has a hundred operations a layer, and most of them take less
time than calling them. Here queries, keys and values come from one product, the two halves of the
MLP from another, and both rotations from one. Sums are those of the layer that is replaced, but not
always in its order: this is for drafts, whose last bits do not matter to lossless decoding.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import nn

from cospec.models.attention import grouped_attention

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from transformers import PreTrainedModel

Layer: TypeAlias = Any  # a decoder layer of transformers, or a part of one
_LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")
_MASKS = ("sdpa", "eager", "cospec_sdpa", "cospec_sdpa_padded")
"""Attention that is given masks to add, as `grouped_attention` takes them."""


class FusedLayer(nn.Module):
    """A decoder layer as Llama, Mistral and Qwen2 have it.

    Args:
        layer: The layer that it replaces; its attention loses its projections.
        make: Makes the linear layers, from plain ones.
    """

    def __init__(self, layer: Layer, make: Callable[[nn.Linear], nn.Module]) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.self_attn: Layer = attention  # its settings
        self.head_dim: int = attention.head_dim
        heads = (one.out_features // self.head_dim for one in _children(attention, _ATTENTION[:3]))
        self.num_heads, self.num_key_heads, _ = heads
        self.qkv = make(_stacked(_children(attention, _ATTENTION[:3])))
        self.out = make(attention.o_proj)
        self.gate_and_up = make(_stacked(_children(mlp, _MLP[:2])))
        self.down, self.act_fn = make(mlp.down_proj), mlp.act_fn
        self.input_layernorm: Layer = layer.input_layernorm
        self.post_attention_layernorm: Layer = layer.post_attention_layernorm
        self.attention_type = getattr(layer, "attention_type", None)  # read by older transformers

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None,
        position_embeddings: tuple[Tensor, Tensor],
        **others: Any,  # Any: whatever else the model passes to its layers
    ) -> Tensor:
        """Return the hidden states after this layer, (B, n, H), from those before it."""
        shape, attention = hidden_states.shape[:2], self.self_attn
        num_rotated = self.num_heads + self.num_key_heads
        states = self.qkv(_normed(hidden_states, self.input_layernorm))
        states = states.view(*shape, -1, self.head_dim)
        rotated = _rotated(states[:, :, :num_rotated], *position_embeddings).transpose(1, 2)
        query, key = rotated[:, : self.num_heads], rotated[:, self.num_heads :]
        value = states[:, :, num_rotated:].transpose(1, 2)
        cache = others.get("cache", others.get("past_key_values"))
        if cache is not None:
            key, value = cache.update(key, value, attention.layer_idx)
        found, _ = grouped_attention(
            attention, query, key, value, attention_mask, scaling=attention.scaling
        )
        hidden_states = hidden_states + self.out(found.reshape(*shape, -1))
        normed = _normed(hidden_states, self.post_attention_layernorm)
        gate, up = self.gate_and_up(normed).chunk(2, dim=-1)
        added: Tensor = self.down(self.act_fn(gate) * up)
        return hidden_states + added


def fuse_layers(model: PreTrainedModel, make: Callable[[nn.Linear], nn.Module]) -> None:
    """Replace the decoder layers of a model by fused ones, in place, if they are of that kind.

    Args:
        model: The model.
        make: Makes the linear layers of a fused one, from plain ones.
    """
    if model.config._attn_implementation not in _MASKS:
        return
    made: dict[int, FusedLayer] = {}  # a layer can be in several places
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            layer: Layer = child
            if id(layer) not in made and _is_fusible(layer):
                made[id(layer)] = FusedLayer(layer, make)
                for projection in _ATTENTION:
                    delattr(layer.self_attn, projection)
            if id(layer) in made:
                setattr(parent, name, made[id(layer)])


def _is_fusible(layer: Layer) -> bool:
    """Tell whether a fused layer with the same weights computes the same."""
    if layer is None or {name for name, _ in layer.named_children()} != _LAYER:
        return False
    attention, mlp = layer.self_attn, layer.mlp
    names = [{name for name, _ in one.named_children()} for one in (attention, mlp)]
    if names[0] != {*_ATTENTION} or names[1] - {"act_fn"} != {*_MLP}:
        return False
    linears = _children(attention, _ATTENTION) + _children(mlp, _MLP)
    norms = layer.input_layernorm, layer.post_attention_layernorm
    if any(type(one) is not nn.Linear for one in linears) or any(
        not hasattr(norm, "variance_epsilon") for norm in norms
    ):
        return False
    return _agrees(layer)


def _agrees(layer: Layer) -> bool:
    """Run a layer and its fused form in float32 on random numbers, and compare what they add."""
    try:
        plain = deepcopy(layer).float()
        width, head_dim, length = plain.mlp.down_proj.out_features, plain.self_attn.head_dim, 3
        device = plain.mlp.down_proj.weight.device
        generator = torch.Generator().manual_seed(0)
        given = torch.randn(1, length, width, generator=generator).to(device)
        angles = torch.randn(1, length, head_dim // 2, generator=generator).repeat(1, 1, 2)
        arguments = {
            "attention_mask": torch.zeros(1, 1, length, length, device=device),
            "position_embeddings": (angles.cos().to(device), angles.sin().to(device)),
        }
        with torch.inference_mode():
            expected = plain(given, **arguments)
            found = FusedLayer(plain, lambda linear: linear)(given, **arguments)
    except (RuntimeError, TypeError, AttributeError, ValueError, LookupError, AssertionError):
        return False
    if not isinstance(expected, torch.Tensor):  # whoever calls it takes its first output
        return False
    return bool((found - expected).norm() <= 1e-4 * (expected - given).norm())


def _children(parent: Layer, names: tuple[str, ...]) -> list[nn.Linear]:
    return [getattr(parent, name) for name in names]


def _stacked(linears: list[nn.Linear]) -> nn.Linear:
    """One linear layer with the outputs of several, which have one input."""
    weight = torch.cat([one.weight.detach() for one in linears])
    stack = nn.Linear(weight.shape[1], len(weight), bias=False, device="meta")
    stack.weight = nn.Parameter(weight, requires_grad=False)
    if any(one.bias is not None for one in linears):
        biases = [
            one.weight.new_zeros(one.out_features) if one.bias is None else one.bias.detach()
            for one in linears
        ]
        stack.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
    return stack


def _normed(hidden_states: Tensor, norm: Layer) -> Tensor:
    """Root mean square normalization, computed in float32 as the models do."""
    x = hidden_states.float()
    scale = torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + norm.variance_epsilon)
    weight: Tensor = norm.weight
    return (x * scale).to(hidden_states.dtype) * weight


def _rotated(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate (B, n, heads, D) by the angles of its positions, (B, n, D) each."""
    first, second = states.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    found = torch.addcmul(states * cos[:, :, None], turned, sin[:, :, None])
    return found.to(states.dtype)  # some models rotate in float32
