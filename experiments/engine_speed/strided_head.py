"""How long the output matrix takes for a strided input, in bfloat16 on a CPU.

``logits_to_keep=1`` makes transformers slice hidden states (B, n, H); for n > 1 the slice is a
strided view, which torch does not take for a matrix even where B is 1. `cospec.models.cache` passes
an index instead, which copies.

Usage: ``python experiments/engine_speed/strided_head.py --json runs/strided_head.json``
"""

from __future__ import annotations

import argparse
import statistics
import time
from itertools import product
from pathlib import Path

import torch

from cospec.results import Provenance, check_writable, document, write_json

HIDDEN_SIZE, ROWS, TRIALS = 896, (1, 10), 3


def main() -> None:
    """Measure both inputs for a middle-sized and an output matrix."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args()
    check_writable(args.json, args.overwrite)
    torch.set_num_threads(args.threads)
    provenance = Provenance()
    milliseconds: dict[str, dict[str, dict[str, float]]] = {}
    for rows, width in product(ROWS, (4_864, 151_936)):
        hidden = torch.randn(rows, 2, HIDDEN_SIZE, dtype=torch.bfloat16)
        view = hidden[:, -1:]
        # Not contiguous(), which gives a view of a single row back as it is.
        copy = view.clone(memory_format=torch.contiguous_format)
        weight = torch.randn(width, HIDDEN_SIZE, dtype=torch.bfloat16)
        for name, states in {"strided": view, "contiguous": copy}.items():
            times = []
            for _ in range(TRIALS + 1):  # the first is the warm-up
                start = time.perf_counter()
                torch.nn.functional.linear(states, weight)
                times.append(1e3 * (time.perf_counter() - start))
            found = milliseconds.setdefault(f"{rows} rows", {}).setdefault(str(width), {})
            found[name] = round(statistics.median(times[1:]), 2)
    config = {"rows": ROWS, "hidden_size": HIDDEN_SIZE, "threads": args.threads}
    where = provenance.to_dict("cpu", "torch.bfloat16")
    result = document("strided_head", config, where, milliseconds=milliseconds)
    result["argv"] = ["python", "experiments/engine_speed/strided_head.py"]
    write_json(args.json, result)
    print(milliseconds)


if __name__ == "__main__":
    main()
