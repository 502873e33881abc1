"""Texts of exact decoding in half precision that differ from the target's own, by batch size.

The target alone decodes all prompts at one batch size, then lossless speculation does at each of
several, and for the first prompts of each task both do one by one. Times are not comparable: arms
do not take turns.

Usage::

    python experiments/speed_real/bits.py --target T --draft D --data-dir DATA --json OUT
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from cospec import Engine, ModelPair
from cospec.arbiters import AlwaysTarget
from cospec.evaluation.problems import encode_problems
from cospec.results import Provenance, check_writable, document, write_json
from cospec.tasks import load_task


def main() -> None:
    """Decode, compare, print and write."""
    options = parse()
    check_writable(options.json, options.overwrite)
    logging.set_verbosity_error()
    torch.set_num_threads(options.threads)
    provenance = Provenance()
    packs = not options.plain
    pair = ModelPair.from_pretrained(
        options.target, options.draft, dtype=options.dtype, pack_weights=packs
    )
    found = [row for name in options.tasks for row in compare(pair, name, options)]
    config = {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items()}
    where = provenance.to_dict("cpu", str(pair.target.dtype))
    where["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    write_json(options.json, document("speed_real_bits", config, where, rows=found))


def compare(pair: ModelPair, name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row an arm and batch size, with the ids of unlike texts."""
    task = load_task(name, data_dir=options.data_dir)
    examples = task.examples("tune", options.count, options.seed)
    prompts, samplings = encode_problems(pair, task, examples, options.max_new_tokens)
    largest, *others = sorted(options.batch_sizes, reverse=True)
    first = slice(0, options.one_by_one)
    reference: list[Any] = []
    found = []
    for arm, batch_size, some in (
        ("target", largest, slice(None)),
        ("lossless", largest, slice(None)),
        *(("lossless", size, slice(None)) for size in others),
        ("target", 1, first),
        ("lossless", 1, first),
    ):
        engine = (
            Engine.target_only(pair, batch_size=batch_size)
            if arm == "target"
            else Engine(
                pair,
                AlwaysTarget(),
                num_speculative_tokens=options.k,
                draft_confidence_threshold=options.threshold,
                batch_size=batch_size,
            )
        )
        texts = [one.token_ids for one in engine.generate(prompts[some], samplings[some])]
        reference = reference or texts
        asked = zip(examples[some], texts, reference[some], strict=True)
        unlike = [example.id for example, ours, theirs in asked if ours != theirs]
        row = {"task": name, "arm": arm, "batch_size": batch_size, "num_texts": len(texts)}
        found.append(row | {"num_tokens": sum(map(len, texts)), "unlike": unlike})
        print(f"{name}, {arm} at {batch_size}: {len(unlike)} of {len(texts)} unlike", flush=True)
    return found


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--draft", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=["spider", "gsm8k"])
    parser.add_argument("--count", type=int, default=100, help="prompts of each task")
    parser.add_argument("--one-by-one", type=int, default=16, help="of these, at batch 1 as well")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[16, 4])
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("-k", type=int, default=4, help="block length")
    parser.add_argument("--threshold", type=float, default=0.0, help="of the draft's confidence")
    parser.add_argument("--seed", type=int, default=73)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--plain", action="store_true", help="do not pack the weights")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--overwrite", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
