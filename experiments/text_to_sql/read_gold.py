"""Read Spider's gold queries with both models, and keep the decisions that they settle.

Usage: python experiments/text_to_sql/read_gold.py TARGET DRAFT DATA OUT [--threads 2]

One forward of each model over a gold query finds where their tokens differ, and the query tells
whose is right (`cospec.rl.solutions`). Then the target goes on from both tokens, and the judge says
which of the two answers are right (`cospec.rl.forks`). Questions are those of the train databases
that no draft was tuned on, 16 of each database before the next 16 of any. OUT/NAME.0.safetensors
has the features of the first 16 in half precision, and the worth of the draft's token: 1 or -1
where the tokens decide the answer, else 0. A file that is there is skipped: a killed run resumes.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from halves import half, parts
from safetensors.torch import save_file

from cospec import Engine, ModelPair
from cospec.evaluation.problems import encode_problems
from cospec.features import make_features
from cospec.rl.forks import ForkPlayer
from cospec.rl.solutions import encode_solutions, solution_decisions
from cospec.tasks import load_task


def main() -> None:
    """Read part by part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("target", "draft", "data", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    task = load_task("spider", data_dir=options.data)
    pair = ModelPair.from_pretrained(options.target, options.draft, dtype="float32")
    features = make_features("hidden", pair)
    engine = Engine.target_only(pair, batch_size=64)
    options.out.mkdir(parents=True, exist_ok=True)
    train = parts(half(task.examples("train"), "arbiter"))
    for place, (name, examples) in enumerate(train.items(), start=1):
        path = options.out / f"{name}.safetensors"
        if path.exists():
            continue
        started = time.perf_counter()
        _, settings = encode_problems(pair, task, examples)
        play = ForkPlayer(engine, task, examples, settings)
        solutions = encode_solutions(pair, task, examples)
        x, worth = solution_decisions(pair, features, solutions, worth_of=play)
        save_file({"features": x.half(), "worth": worth}, path)
        draft, target = (int((sign * worth > 0).sum()) for sign in (1, -1))
        seconds = (time.perf_counter() - started) / len(examples)
        print(
            f"{place}/{len(train)} {name}: {len(examples)} questions, {len(worth)} decisions, "
            f"draft's token needed in {draft}, target's in {target}; {seconds:.1f} s a question",
            flush=True,
        )


if __name__ == "__main__":
    main()
