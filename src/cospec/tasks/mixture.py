"""Several tasks as one: an arbiter that will rule on many kinds of text learns from all of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import TYPE_CHECKING

from cospec.errors import TaskError
from cospec.tasks.base import Task

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

    from cospec.tasks.base import Example, Score, Split

_PART = "part_of_mixture"  # in an example's metadata


@dataclass(frozen=True)
class Mixture(Task):
    """A task whose examples are those of its parts, each asked and scored as there: `mixture`."""

    parts: Mapping[str, Task] | None = None
    """By name."""

    def part_of(self, example: Example) -> Task:
        """The task that one of its examples is from."""
        assert self.parts is not None
        return self.parts[example.metadata[_PART]]

    def prompt(self, example: Example, tokenizer: PreTrainedTokenizerBase) -> str | list[int]:
        """The prompt of the task that the example is from."""
        return self.part_of(example).prompt(example, tokenizer)


def mixture(parts: Sequence[tuple[Task, int]]) -> Mixture:
    """Put tasks together.

    Args:
        parts: Tasks, and how many problems of each there are in a cycle of the mixture.

    Raises:
        TaskError: A task is there twice, or has no weight.
    """
    tasks = {task.name: task for task, _ in parts}
    if len(tasks) < len(parts) or any(weight < 1 for _, weight in parts):
        named = ", ".join(f"{task.name}@{weight}" for task, weight in parts)
        raise TaskError(f"a mixture names each task once, with a weight of 1 or more; got {named}.")

    def score(example: Example, text: str) -> Score:
        return tasks[example.metadata[_PART]].score(example, text)

    def draw(split: Split, num_problems: int | None, seed: int) -> list[Example]:
        names = [task.name for task, weight in parts for _ in range(weight)]
        turns = None if num_problems is None else list(islice(cycle(names), num_problems))
        counts = dict.fromkeys(tasks) if turns is None else Counter(turns)
        drawn = {
            name: [
                replace(example, metadata={**example.metadata, _PART: name})
                for example in tasks[name].examples(split, number, seed)
            ]
            for name, number in counts.items()
        }
        if turns is None:
            found = [example for examples in drawn.values() for example in examples]
        else:
            left = {name: iter(examples) for name, examples in drawn.items()}
            found = [next(left[name]) for name in turns]
        ((identity, number),) = Counter(example.id for example in found).most_common(1)
        if number > 1:
            raise TaskError(
                f"{identity!r} is a problem of two parts of the mixture; rename a file."
            )
        return found

    return Mixture(
        name="mix:" + "+".join(f"{task.name}@{weight}" for task, weight in parts),
        source=draw,
        scorer=score,
        max_new_tokens=max(task.max_new_tokens for task in tasks.values()),
        parts=tasks,
    )
