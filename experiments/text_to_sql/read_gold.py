"""Read Spider's gold queries with both models, and keep the decisions that they settle.

Usage: python experiments/text_to_sql/read_gold.py TARGET DRAFT DATA OUT [--count 1024]

One forward of each model over a gold query finds where their tokens differ, and the query tells
whose is right (`cospec.rl.solutions`). Questions are those of the train databases that no draft was
tuned on. OUT/gold-00000.safetensors has the features of a chunk in half precision, the worth of the
draft's token, and the number of its database; a chunk that is there is skipped.
"""

from __future__ import annotations

import argparse
import time
from itertools import groupby
from pathlib import Path

import torch
from halves import half
from safetensors.torch import save_file

from cospec import ModelPair
from cospec.features import make_features
from cospec.rl.solutions import encode_solutions, solution_decisions
from cospec.tasks import load_task


def database(example) -> str:
    """Return the name of a question's database."""
    return example.metadata["db_id"]


def main() -> None:
    """Read chunk by chunk."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("target", "draft", "data", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--count", type=int, default=1024, help="questions")
    parser.add_argument("--chunk", type=int, default=64, help="questions of a file")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    task = load_task("spider", data_dir=options.data)
    examples = half(task.examples("train"), "arbiter")
    databases = sorted(set(map(database, examples)))
    examples = examples[: options.count]
    pair = ModelPair.from_pretrained(options.target, options.draft)
    features = make_features("hidden", pair)
    options.out.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(examples), options.chunk):
        path = options.out / f"gold-{start:05d}.safetensors"
        if path.exists():
            continue
        started, parts = time.perf_counter(), []
        # Questions of one database follow one another, and its schema is read once for them.
        for name, run in groupby(examples[start : start + options.chunk], key=database):
            found = solution_decisions(pair, features, encode_solutions(pair, task, list(run)))
            number = torch.full((len(found.delta),), databases.index(name))
            parts.append((found.features.half(), found.delta, number))
        x, worth, number = map(torch.cat, zip(*parts, strict=True))
        save_file({"features": x, "worth": worth, "database": number}, path)
        share = float((worth > 0).float().mean())
        seconds = time.perf_counter() - started
        told = f"{len(worth)} decisions, draft right in {share:.2f}"
        print(f"{start}: {told}; {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
