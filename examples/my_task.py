"""A task of your own, from its problems to the score of a bundled pair.

The problems are generated. What matters: a problem has one split, and the first n problems of a
seed are the same for every n.

Usage: ``python examples/my_task.py``
"""

from __future__ import annotations

import functools
import itertools
import random
import re

from cospec import Engine, ModelPair, SamplingConfig, load_arbiter
from cospec.errors import TaskError
from cospec.tasks import Example, Score, Split, Task

REMAINDER: dict[Split, int] = {"train": 0, "tune": 1, "test": 2}
"""The sum of a problem's numbers, modulo 3, tells its split: no problem is in two of them."""


def problems(split: Split, num_problems: int | None, seed: int, *, largest: int) -> list[Example]:
    """Return word problems of a split, by default all.

    Raises:
        TaskError: There are fewer.
    """
    numbers = range(2, largest + 1)
    every = [p for p in itertools.product(numbers, numbers) if sum(p) % 3 == REMAINDER[split]]
    if num_problems is not None and num_problems > len(every):
        raise TaskError(
            f"asked for {num_problems} {split} problems, and there are {len(every)} with numbers "
            f"up to {largest}; ask for fewer, or raise largest."
        )
    random.Random(seed).shuffle(every)
    return [
        Example(
            f"apples/{boxes}x{apples}",
            f"There are {boxes} boxes with {apples} apples each. How many apples?",
            str(boxes * apples),
        )
        for boxes, apples in every[:num_problems]
    ]


def last_number(example: Example, text: str) -> Score:
    """Score 1 if the last number of the text is the answer."""
    numbers = re.findall(r"\d+", text)
    found = numbers[-1] if numbers else None
    return Score(float(found == example.answer), found)


def apples(largest: str = "20") -> Task:
    """Return the task; an entry point of the group ``cospec.tasks`` would name this function.

    Args:
        largest: Number in a problem, as a text: so options of a spec come, ``apples,largest=50``.
    """
    source = functools.partial(problems, largest=int(largest))
    return Task("apples", source, last_number, max_new_tokens=60)


def main() -> None:
    """Let a bundled pair solve some problems and print the score."""
    task, pair = apples(), ModelPair.from_pretrained("bundled:family")
    assert pair.tokenizer is not None, "bundled pairs have one"
    examples = task.examples("test", 8, seed=3)
    prompts = [task.prompt(example, pair.tokenizer) for example in examples]
    stop = task.stop_strings(pair.tokenizer)
    engine = Engine(pair, load_arbiter("lossless"), num_speculative_tokens=8)
    done = engine.generate(prompts, SamplingConfig(max_new_tokens=task.max_new_tokens, stop=stop))
    scores = [task.score(*both) for both in zip(examples, (c.text for c in done), strict=True)]
    print(f"{examples[0].question}{done[0].text}")
    print(f"{sum(score.correct for score in scores)} of {len(scores)} right")


if __name__ == "__main__":
    main()
