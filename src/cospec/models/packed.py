"""Linear layers whose weights are kept in the layout of the CPU's matrix kernels.

A plain ``torch.nn.Linear`` on a CPU rearranges its weight on every call, which at the few rows of a
decode step costs more than the product itself. oneDNN can do that once. The two operators are those
that torch's own compiler inserts (``torch._inductor``, "mkldnn weight packing"). They are not part
of torch's public interface, so they are probed; if the probe fails, nothing is packed.

A packed product gives each row the same bits whatever rows are beside it. On some processors that
does not hold for a single row, which is then padded (`_least_rows`). Plain products do not promise
it. In bfloat16 this shows in texts, so every layer is packed; in float32 small ones stay plain.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

LEAST_WEIGHTS = {torch.float32: 1 << 20, torch.bfloat16: 1}
"""Smaller matrices stay as they are: the processor caches them, and there is little to gain."""
_NUM_ROWS = 8
"""Number of rows that the layout is made for; others are as exact and hardly slower."""


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
        if (missing := _least_rows(self.weight.dtype) - len(rows)) > 0:
            rows = nn.functional.pad(rows, (0, 0, 0, missing))
        out = _product(rows, self.weight, self.bias)
        return out[: x.numel() // self.in_features].view(*x.shape[:-1], self.out_features)


def pack_weights(model: PreTrainedModel) -> int:
    """Replace the linear layers of a model on a CPU by packed ones, in place.

    An output matrix that is tied to the embeddings is copied, since embeddings must stay plain. A
    packed model cannot be saved or trained: its state dict has no packed weights.

    Returns:
        Number of packed layers: 0 if this build of torch or this processor cannot pack.
    """
    num_packed = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and _is_packable(child.weight):
                setattr(parent, name, PackedLinear(child))
                num_packed += 1
    return num_packed


def notes_on(models: Sequence[PreTrainedModel]) -> list[str]:
    """Return a note if weights on the CPU cannot be packed here."""
    dtypes = {model.dtype for model in models if model.device.type == "cpu"}
    return [
        f"this processor or build of torch has no packed products for {dtype}: decoding is slower, "
        "and the last bits of a row can depend on its batch."
        for dtype in sorted(dtypes, key=str)
        if not can_pack(dtype)
    ]


def _is_packable(weight: Tensor) -> bool:
    """Tell whether a weight is large enough, and this machine can pack it."""
    return (
        weight.device.type == "cpu"
        and can_pack(weight.dtype)
        and weight.numel() >= LEAST_WEIGHTS[weight.dtype]
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
def _least_rows(dtype: torch.dtype) -> int:
    """Return the least number of rows of a product; fewer are padded with zeros.

    With AVX-512 (EPYC, Zen 5), four rows take three quarters of the time of one.
    Elsewhere it is two if a single row has other bits than the same row among others, else one.
    """
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        return 4
    weight, rows = _samples(dtype)
    packed = _pack(weight)
    alone, among = _product(rows[:1], packed, None), _product(rows, packed, None)[:1]
    return 1 if torch.equal(alone, among) else 2


def _samples(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Make a weight (1536, 1536) and rows (5, 1536): narrower ones can hide differences."""
    generator = torch.Generator().manual_seed(0)
    weight, rows = (torch.randn(n, 1536, generator=generator).to(dtype) for n in (1536, 5))
    return weight, rows


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _NUM_ROWS)
    return packed


def _product(rows: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
    return out
