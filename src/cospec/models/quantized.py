"""A draft with 8-bit or 4-bit weights: its proposals need not be exact, the target verifies them.

With one row a CPU spends its time on reading weights, and 8-bit ones are a quarter of float32's.
Each output of a layer has its own scale; activations are bfloat16. The operator is the one that
torch's compiler uses for weight-only int8 (``torch._weight_int8pack_mm``). It was compared with
oneDNN's 8-bit product and torchao (`experiments/speed_real`): both are slower without AVX-512, and
the latter would be one more dependency.

With 4 bits each group of 32 weights of an output has a scale and a zero point. Few rows are
multiplied by ``torch.ops.aten._weight_int4pack_mm_for_cpu``, which torchao uses as well. Prompts
are read with 8-bit weights, which are kept beside the 4-bit ones.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import nn

from cospec.errors import ConfigError
from cospec.models.fused import fuse_layers

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from cospec.config import Quantization

_MOST_ROWS = {torch.bfloat16: 24, torch.float32: 48}
"""Most rows that are multiplied with the quantized weight itself. More rows, as in a prompt, are
faster with a weight that is converted for the call to the float type that the processor multiplies
fast (`_float_type`)."""
_SLICE = 5 << 20
"""Most weights to convert to float at once: larger buffers are requested anew every time."""
_WIDTH_MULTIPLE = 32  # the operators read beyond rows of an odd width, and can crash
_GROUP = 32
"""Weights that share a scale and a zero point in 4 bits."""
_LEVELS = 16
HEIGHT_MULTIPLE = 16  # outputs that the 4-bit operator takes at once


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
            out = self._product(rows.bfloat16().contiguous())
        out = out.to(x.dtype).view(*x.shape[:-1], self.out_features)
        return out if self.bias is None else out + self.bias

    def _product(self, rows: Tensor) -> Tensor:
        """Multiply a few rows, (n, in_features) bfloat16, to (n, out_features) bfloat16."""
        return torch._weight_int8pack_mm(rows, self.weight, self.scales)

    def part(self, outputs: Tensor | slice) -> Int8Linear:
        """Return an 8-bit layer of some of the outputs, by their indices."""
        part = Int8Linear.__new__(Int8Linear)
        nn.Module.__init__(part)
        bias = None if self.bias is None else self.bias.detach()[outputs]
        part.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        part.register_buffer("weight", self.weight[outputs])
        part.register_buffer("scales", self.scales[outputs])
        part.in_features, part.out_features = self.in_features, len(part.weight)
        return part

    def plain(self) -> nn.Linear:
        """Return a float32 layer with the rounded weights."""
        linear = nn.Linear(self.in_features, self.out_features, device="meta")
        weight = self.weight.float() * self.scales.float()[:, None]
        linear.weight, linear.bias = nn.Parameter(weight, requires_grad=False), self.bias
        return linear


class Int4Linear(Int8Linear):
    """A linear layer with a 4-bit weight for a few rows, and an 8-bit one for prompts.

    Args:
        linear: The layer that it replaces; its weight is not kept. The number of its outputs is a
            multiple of 16.
    """

    packed: Tensor
    """4-bit weights in the operator's layout, (out_features, in_features / 2) uint8."""
    groups: Tensor
    """Scale and middle of each group, (in_features / 32, out_features, 2) bfloat16."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        weight = linear.weight.detach().float().reshape(self.out_features, -1, _GROUP)
        least, most = weight.aminmax(dim=2, keepdim=True)
        scales = ((most - least) / (_LEVELS - 1)).clamp(min=1e-20).bfloat16()
        middles = (least + scales * (_LEVELS // 2)).bfloat16()
        levels = ((weight - middles.float()) / scales.float()).round() + _LEVELS // 2
        levels = levels.clamp(0, _LEVELS - 1).int().flatten(1)
        self.register_buffer(
            "packed", torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels, 1)
        )
        groups = torch.cat([scales, middles], dim=2).transpose(0, 1).contiguous()
        self.register_buffer("groups", groups)

    def _product(self, rows: Tensor) -> Tensor:
        out: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            rows, self.packed, _GROUP, self.groups
        )
        return out


def quantize_weights(model: PreTrainedModel, kind: Quantization = "int8") -> None:
    """Replace the linear layers of a draft on a CPU by 8-bit or 4-bit ones, in place.

    Decoder layers of a common kind become `fused.FusedLayer`, with fewer and larger linear layers.
    An output matrix that is tied to the embeddings is copied, since embeddings stay as they are.
    With int4, a layer whose number of outputs is no multiple of 16 has 8 bits.

    Raises:
        ConfigError: The model is not on a CPU or has no layer that can be replaced, or this build
            of torch has no correct product of that kind.
    """
    if model.device.type != "cpu":
        raise ConfigError(
            f"draft_quantization is {kind}, and the draft is on {model.device}; it is for CPUs: "
            "leave it out, or load with device='cpu'."
        )
    if not can_quantize(kind):
        raise ConfigError(
            f"draft_quantization is {kind}, and this build of torch has no correct product of "
            "that kind on this processor; leave it out."
        )
    heights = [child.out_features % HEIGHT_MULTIPLE for _, _, child in _fitting(model)]
    if not heights:
        raise ConfigError(
            f"draft_quantization is {kind}, and {type(model).__name__} has no linear layer of a "
            f"width that {_WIDTH_MULTIPLE} divides; leave it out."
        )
    if kind == "int4" and all(heights):
        raise ConfigError(
            f"draft_quantization is int4, and {type(model).__name__} has no linear layer whose "
            f"number of outputs {HEIGHT_MULTIPLE} divides; take int8."
        )

    def changed(linear: nn.Linear) -> nn.Module:
        if linear.in_features % _WIDTH_MULTIPLE:
            return linear
        has_4_bits = kind == "int4" and not linear.out_features % HEIGHT_MULTIPLE
        return Int4Linear(linear) if has_4_bits else Int8Linear(linear)

    fuse_layers(model, changed)
    for parent, name, child in _fitting(model):
        setattr(parent, name, changed(child))


def _fitting(model: nn.Module) -> list[tuple[nn.Module, str, nn.Linear]]:
    """Return the linear layers that can be quantized, each after its parent and its name."""
    return [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and child.in_features % _WIDTH_MULTIPLE == 0
    ]


def quantization(model: PreTrainedModel) -> Quantization:
    """Return the kind of a model's layers: int4 if any has 4 bits, else int8 if any has 8."""
    kinds = {type(module) for module in model.modules()}
    return "int4" if Int4Linear in kinds else "int8" if Int8Linear in kinds else "none"


def int4_layers(model: PreTrainedModel) -> list[Int4Linear]:
    """Return the 4-bit layers of a model."""
    return [module for module in model.modules() if isinstance(module, Int4Linear)]


@cache
def _float_type() -> torch.dtype:
    """Return bfloat16 where the processor multiplies it itself, else float32."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # absent from old torch
    has = any(getattr(torch.cpu, probe, bool)() for probe in probes)
    return torch.bfloat16 if has else torch.float32


@cache
def can_quantize(kind: Quantization = "int8") -> bool:
    """Tell whether products of this kind work here, and are right."""
    layer, most_error = (Int4Linear, 0.1) if kind == "int4" else (Int8Linear, 0.03)
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(1024, 96, bias=False)
    linear.weight.data = torch.randn(96, 1024, generator=generator)
    rows = torch.randn(max(_MOST_ROWS.values()) + 1, 1024, generator=generator)
    try:
        with torch.inference_mode():
            found = [layer(linear)(rows[:n]) for n in (1, 5, len(rows))]
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    expected = rows @ linear.weight.detach().T
    errors = [(one - expected[: len(one)]).norm() / expected.norm() for one in found]
    return max(map(float, errors)) < most_error
