"""Several tasks as one: an arbiter that will rule on many kinds of text learns from all of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from cospec.errors import TaskError
from cospec.tasks.base import Task

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

    from cospec.tasks.base import Example, Score, Split

_PART = "part_of_mixture"  # in an example's metadata


@dataclass(frozen=True)
class Mixture(Task):
    """A task with the examples of its parts, each asked and scored as in its part: `mixture`."""

    parts: Mapping[str, Task] | None = None
    """Tasks by name."""

    def part_of(self, example: Example) -> Task:
        """Return the task that an example comes from."""
        assert self.parts is not None
        return self.parts[example.metadata[_PART]]

    def prompt(self, example: Example, tokenizer: PreTrainedTokenizerBase) -> str | list[int]:
        """Return the prompt of the task that the example comes from."""
        return self.part_of(example).prompt(example, tokenizer)

    def draft_prompt(
        self, example: Example, tokenizer: PreTrainedTokenizerBase
    ) -> str | list[int] | None:
        """Return the draft's prompt of the task that the example comes from."""
        return self.part_of(example).draft_prompt(example, tokenizer)


def mixture(parts: Sequence[tuple[Task, int]]) -> Mixture:
    """Put tasks together.

    Args:
        parts: Tasks, each with the number of its problems in a cycle of the mixture.

    Raises:
        TaskError: A task is there twice, or has no weight.
    """
    name = "mix:" + "+".join(f"{task.name}@{weight}" for task, weight in parts)
    both = _Parts({task.name: task for task, _ in parts}, {t.name: weight for t, weight in parts})
    if len(both.tasks) < len(parts) or min(both.weights.values()) < 1:
        raise TaskError(f"{name}: a mixture names each task once, with a weight of 1 or more.")
    limit = max(task.max_new_tokens for task, _ in parts)
    return Mixture(name, both.draw, both.score, max_new_tokens=limit, parts=both.tasks)


@dataclass(frozen=True)
class _Parts:
    """The source and the scorer of a mixture."""

    tasks: dict[str, Task]
    weights: dict[str, int]

    def draw(self, split: Split, num_problems: int | None, seed: int) -> list[Example]:
        """Return problems of all parts: in turns if there is a number, or else part after part."""
        if num_problems is None:
            drawn = [self._draw(name, split, None, seed) for name in self.tasks]
            found = [example for examples in drawn for example in examples]
        else:
            turns = list(islice(self.turns(), num_problems))
            counts = Counter(turns).items()
            left = {name: iter(self._draw(name, split, number, seed)) for name, number in counts}
            found = [next(left[name]) for name in turns]
        identity, number = Counter(example.id for example in found).most_common(1)[0]
        if number > 1:
            raise TaskError(
                f"{identity!r} is a problem of two parts of the mixture; rename a file."
            )
        return found

    def turns(self) -> Iterator[str]:
        """Yield the names of the parts without end, each as often per cycle as its weight."""
        while True:  # not `cycle`, which keeps what it has read: a weight may be huge
            for name, weight in self.weights.items():
                for _ in range(weight):
                    yield name

    def _draw(self, name: str, split: Split, number: int | None, seed: int) -> list[Example]:
        return [
            replace(example, metadata={**example.metadata, _PART: name} | _group_of(name, example))
            for example in self.tasks[name].examples(split, number, seed)
        ]

    def score(self, example: Example, text: str) -> Score:
        """Score a text by the task that the example comes from."""
        return self.tasks[example.metadata[_PART]].score(example, text)


def _group_of(part: str, example: Example) -> dict[str, str]:
    """Return the group of an example with its part, since two parts may have groups of one name."""
    return {} if example.group is None else {"group": f"{part}: {example.group}"}
