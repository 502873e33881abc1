"""Linear layers whose weights are kept in the layout that the CPU's matrix kernels want.

A plain ``torch.nn.Linear`` on a CPU rearranges its weight on every call, which at the few rows of a
decode step costs more than the product itself. oneDNN can do that once. The two operators are those
that torch's own compiler inserts (``torch._inductor``, "mkldnn weight packing"); they are not part
of torch's public interface, so that they are probed, and where the probe fails nothing is packed.

A packed product gives each row the same bits whatever rows are beside it. On some processors that
does not hold for a single row (`_needs_company`), which then gets a second one. Small matrices and
an output matrix that is tied to the embedding stay plain, and without that promise.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

LEAST_WEIGHTS = 1 << 20
"""Smaller matrices stay as they are: the processor caches them, and there is little to gain."""
_NUM_ROWS = 8
"""Rows that the layout is made for; others are as exact, and hardly slower."""


class PackedLinear(nn.Module):
    """A linear layer with a packed weight, for inference on a CPU.

    Args:
        linear: The layer that it replaces; its weight is not kept.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.weight = _pack(linear.weight.detach())  # opaque but for shape, dtype and to_dense()

    def __deepcopy__(self, memo: object) -> PackedLinear:
        """Return the layer itself: it never changes, and torch cannot copy a packed weight."""
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output, (..., out_features), from (..., in_features)."""
        rows = x.reshape(-1, self.in_features)
        if len(rows) == 1 and _needs_company(self.weight.dtype):
            rows = rows.expand(2, -1).contiguous()
        out = _product(rows, self.weight, self.bias)
        return out[: x.numel() // self.in_features].view(*x.shape[:-1], self.out_features)


def pack_weights(model: PreTrainedModel) -> int:
    """Replace the linear layers of a model on a CPU by packed ones, in place.

    A layer whose weight is shared with the embeddings stays as it is, since these are needed plain.
    A packed model cannot be saved or trained: its state dict has no packed weights.

    Returns:
        How many layers were packed: 0 where this build of torch or this processor cannot.
    """
    tied = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    num_packed = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if (
                isinstance(child, nn.Linear)
                and _is_packable(child)
                and id(child.weight) not in tied
            ):
                setattr(parent, name, PackedLinear(child))
                num_packed += 1
    return num_packed


def _is_packable(module: nn.Linear) -> bool:
    """Tell whether a layer is a plain one, large enough, that this machine can pack."""
    return (
        type(module) is nn.Linear
        and module.weight.device.type == "cpu"
        and module.weight.numel() >= LEAST_WEIGHTS
        and can_pack(module.weight.dtype)
    )


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Tell whether packed products of this type work here, and are right."""
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    weight, rows = _samples(dtype)
    try:
        found = _product(rows, _pack(weight), None)
        same = _pack(weight).to_dense()
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    expected = nn.functional.linear(rows.double(), weight.double())
    error = (found.double() - expected).norm() / expected.norm()
    return bool(error < (1e-5 if dtype == torch.float32 else 1e-2)) and torch.equal(same, weight)


@cache
def _needs_company(dtype: torch.dtype) -> bool:
    """Tell whether a single row differs in its last bits from the same row among others."""
    weight, rows = _samples(dtype)
    packed = _pack(weight)
    return not torch.equal(_product(rows[:1], packed, None), _product(rows, packed, None)[:1])


def _samples(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Make a weight (96, 1024) and rows (5, 1024)."""
    generator = torch.Generator().manual_seed(0)
    weight, rows = (torch.randn(n, 1024, generator=generator).to(dtype) for n in (96, 5))
    return weight, rows


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _NUM_ROWS)
    return packed


def _product(rows: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
    return out
