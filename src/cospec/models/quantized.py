"""A draft with 8-bit weights: what it proposes need not be exact, since the target verifies it.

At one row a CPU spends its time on reading weights, and these are a quarter of float32's. Each
output of a layer has a scale of its own; activations are bfloat16. The operator is the one that
torch's compiler takes for weight-only int8 (``torch._weight_int8pack_mm``). It was compared with
oneDNN's 8-bit product and torchao (`experiments/speed_real`): both are slower where there is no
AVX-512, and the latter would be one more dependency.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import nn

from cospec.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_MOST_ROWS = {torch.bfloat16: 24, torch.float32: 48}
"""Up to so many rows are multiplied in 8 bits; more, as a prompt has, are faster with a weight that
is made float for the call, of the type that the processor multiplies fast (`_float_type`)."""
_SLICE = 5 << 20
"""Weights that are made float at once: more memory than that is asked of the system every time."""
_WIDTH_MULTIPLE = 32  # the operator reads beyond rows of an odd width, and can crash


class Int8Linear(nn.Module):
    """A linear layer with an 8-bit weight, for inference on a CPU.

    Args:
        linear: The layer that it replaces; its weight is not kept.
    """

    weight: Tensor
    """(out_features, in_features) int8."""
    scales: Tensor
    """(out_features,) bfloat16."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        weight = linear.weight.detach().float()
        scales = (weight.abs().amax(dim=1).clamp(min=1e-20) / 127).bfloat16()
        rounded = (weight / scales.float()[:, None]).round().clamp(-127, 127)
        self.register_buffer("weight", rounded.to(torch.int8))
        self.register_buffer("scales", scales)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output, (..., out_features), from (..., in_features)."""
        rows = x.reshape(-1, self.in_features)
        dtype = _float_type()
        if len(rows) > _MOST_ROWS[dtype]:
            rows, length = rows.to(dtype), max(1, _SLICE // self.in_features)
            weights = (part.to(dtype) for part in torch.split(self.weight, length))
            out = torch.cat([nn.functional.linear(rows, weight) for weight in weights], dim=1)
            out *= self.scales
        else:
            out = torch._weight_int8pack_mm(rows.bfloat16().contiguous(), self.weight, self.scales)
        out = out.to(x.dtype).view(*x.shape[:-1], self.out_features)
        return out if self.bias is None else out + self.bias


def quantize_weights(model: PreTrainedModel) -> None:
    """Replace the linear layers of a draft on a CPU by 8-bit ones, in place.

    An output matrix that is the embeddings as well is copied: these stay as they are.

    Raises:
        ConfigError: The model is not on a CPU, has no layer that can be replaced, or this build of
            torch has no right 8-bit product.
    """
    if model.device.type != "cpu":
        raise ConfigError(
            f"draft_quantization is int8, and the draft is on {model.device}; it is for CPUs: "
            "leave it out, or load with device='cpu'."
        )
    if not can_quantize():
        raise ConfigError(
            "draft_quantization is int8, and this build of torch has no 8-bit product that is "
            "right on this processor; leave it out."
        )
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and child.in_features % _WIDTH_MULTIPLE == 0
    ]
    if not found:
        raise ConfigError(
            f"draft_quantization is int8, and {type(model).__name__} has no linear layer of a "
            f"width that {_WIDTH_MULTIPLE} divides; leave it out."
        )
    for parent, name, child in found:
        setattr(parent, name, Int8Linear(child))


def is_quantized(model: PreTrainedModel) -> bool:
    """Return whether a model has 8-bit layers."""
    return any(isinstance(module, Int8Linear) for module in model.modules())


@cache
def _float_type() -> torch.dtype:
    """Return bfloat16 where the processor multiplies it itself, else float32."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # absent from old torch
    has = any(getattr(torch.cpu, probe, bool)() for probe in probes)
    return torch.bfloat16 if has else torch.float32


@cache
def can_quantize() -> bool:
    """Tell whether 8-bit products work here, and are right."""
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(1024, 97, bias=False)
    linear.weight.data = torch.randn(97, 1024, generator=generator)
    rows = torch.randn(max(_MOST_ROWS.values()) + 1, 1024, generator=generator)
    try:
        with torch.inference_mode():
            found = [Int8Linear(linear)(rows[:n]) for n in (1, 5, len(rows))]
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    expected = rows @ linear.weight.detach().T
    errors = [(one - expected[: len(one)]).norm() / expected.norm() for one in found]
    return max(map(float, errors)) < 0.03
