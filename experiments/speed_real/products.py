"""CPU time of one matrix product of the 0.5B draft, by every 8-bit product at hand.

Usage: python experiments/speed_real/products.py --json OUT

One thread, medians of nine calls. What quantizes activations by the call is timed with it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from cospec.models.packed import PackedLinear
from cospec.models.quantized import Int8Linear
from cospec.results import Provenance, check_writable, document, write_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

SHAPES = {"896 x 4864": (896, 4864), "4864 x 896": (4864, 896), "896 x 151936": (896, 151936)}
ROWS = (1, 5)


def main() -> None:
    """Time every product on every shape, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--overwrite", action="store_true")
    options = parser.parse_args()
    check_writable(options.json, options.overwrite)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    provenance = Provenance()
    times = {name: measure(*shape) for name, shape in SHAPES.items()}
    where = provenance.to_dict("cpu", "torch.float32")
    write_json(options.json, document("products", {"rows": list(ROWS)}, where, products=times))


@torch.inference_mode()
def measure(width: int, num_outputs: int) -> dict[str, dict[str, object]]:
    """Return milliseconds of each product at each number of rows, and how far off it is."""
    linear = nn.Linear(width, num_outputs, bias=False)
    products: dict[str, Callable[[Tensor], Tensor]] = {
        "packed float32": PackedLinear(linear),
        "torch int8, bfloat16 activations": Int8Linear(linear),
        "oneDNN int8, unsigned activations": one_dnn(linear, torch.uint8),
        "oneDNN int8, signed activations": one_dnn(linear, torch.int8),
    }
    found: dict[str, dict[str, object]] = {}
    for name, product in products.items():
        rows = [torch.randn(num_rows, width) for num_rows in ROWS]
        error = (product(rows[-1]) - linear(rows[-1])).norm() / linear(rows[-1]).norm()
        times = [round(cpu_ms(lambda x=x, f=product: f(x)), 2) for x in rows]
        found[name] = {"cpu_ms": times, "relative_error": round(float(error), 4)}
        print(width, num_outputs, name, found[name], flush=True)
    return found


def one_dnn(linear: nn.Linear, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Return oneDNN's 8-bit product of a layer, with one scale for all activations of a call."""
    scales = linear.weight.abs().amax(dim=1) / 127
    weight = (linear.weight / scales[:, None]).round().to(torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(weight, None)
    zeros = torch.zeros(linear.out_features, dtype=torch.int32)
    info = torch.iinfo(dtype)

    def product(x: Tensor) -> Tensor:
        if dtype == torch.uint8:
            lowest = x.min()
            scale = (x.max() - lowest) / 255
            zero = int((-lowest / scale).round())
        else:
            scale, zero = x.abs().amax() / 127, 0
        rounded = (x / scale + zero).round().clamp(info.min, info.max).to(dtype)
        return torch.ops.onednn.qlinear_pointwise(
            rounded, float(scale), zero, packed, scales, zeros,
            None, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip

    return product


def cpu_ms(call: Callable[[], object], repeats: int = 9) -> float:
    """Return the median CPU time of a call in milliseconds, after two to warm up."""
    times = []
    for _ in range(repeats + 2):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return 1e3 * statistics.median(times[2:])


if __name__ == "__main__":
    main()
