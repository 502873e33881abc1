"""A task: problems by split, a prompt for each, and a score for a model's text.

This file knows nothing about data sets. A `Task` is put together from a source of examples and a
scorer; `cospec.tasks.load` does so for the tasks that have a name.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, get_args

from cospec.errors import ConfigError, TaskError, check_least, unknown_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from transformers import PreTrainedTokenizerBase

Split: TypeAlias = Literal["train", "tune", "test"]
ShotSampler: TypeAlias = Literal["first", "nearest"]
SPLITS: tuple[Split, ...] = get_args(Split)

BOXED = "{question}\nPlease reason step by step, and put your final answer within \\boxed{}."
"""The message that Qwen2.5-Math's and many other evaluations send to chat models."""


def answered(prompt: str, answer: str) -> str:
    """Return a plain prompt with its answer: after a space, or on the line that it opens."""
    return prompt + answer if prompt.endswith("\n") else f"{prompt} {answer}"


@dataclass(frozen=True, slots=True)
class Example:
    """One problem."""

    id: str
    """Unique in its task, and the same in every run."""
    question: str
    """Text that the model is shown."""
    answer: str
    """The right answer, as the scorer wants it."""
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Other data from the origin, of any type; ``solution`` is a worked answer, ``group`` names
    something that makes problems succeed and fail together, such as a database."""

    def __post_init__(self) -> None:
        for name in ("id", "question", "answer"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise TaskError(
                    f"the {name} of example {self.id!r} is {value!r}; it must be a string."
                )

    @property
    def group(self) -> str | None:
        """Name of its group; None if there are no groups."""
        found = self.metadata.get("group")
        return None if found is None else str(found)


@dataclass(frozen=True, slots=True)
class Score:
    """The score of one answer."""

    reward: float
    """Reward in [0, 1]."""
    extracted: str | None = None
    """The final answer found in the text; None if there is none."""
    strict: bool | None = None
    """Right by the stricter rule that some tasks also report; None if there is no such rule."""

    def __post_init__(self) -> None:
        # Scorers give numbers of numpy or torch as well, which results cannot hold.
        object.__setattr__(self, "reward", float(self.reward))
        if not 0 <= self.reward <= 1:
            raise TaskError(f"a scorer gave the reward {self.reward}; it must be in [0, 1].")
        if self.strict is not None:
            object.__setattr__(self, "strict", bool(self.strict))
        if self.extracted is not None:
            object.__setattr__(self, "extracted", str(self.extracted))

    @property
    def correct(self) -> bool:
        """Only the full reward counts as right."""
        return self.reward == 1

    def value(self, partial: float) -> float:
        """Return 1 for a right answer, and `partial` times its reward for another."""
        return 1.0 if self.correct else partial * self.reward


Scorer: TypeAlias = "Callable[[Example, str], Score | float]"
"""Function that scores a text; a number is the reward."""


class Source(Protocol):
    """Function that returns examples."""

    def __call__(self, split: Split, num_problems: int | None, seed: int) -> list[Example]:
        """Return the problems that ``seed`` picks from a split, all if no number is given."""


def worked_answer(example: Example, is_chat: bool) -> str:
    """Return an answer as it is shown to a model: its worked solution, if there is one."""
    return str(example.metadata.get("solution") or example.answer)


@lru_cache(maxsize=2**16)
def words_of(text: str) -> frozenset[str]:
    """Return the words of a text in lower case; kept, as each question is compared with many."""
    return frozenset(re.findall(r"\w+", text.casefold()))


@dataclass(frozen=True)
class Task:
    """Problems whose answers can be checked."""

    name: str
    """The spec that `load_task` takes."""
    source: Source
    """Function that returns its examples."""
    scorer: Scorer
    """Function that scores an answer."""
    chat: str = BOXED
    """The user message for a chat model; ``{question}`` stands for the question."""
    plain: str = "Question: {question}\nAnswer:"
    """The prompt for a model without a chat template."""
    num_shots: int = 0
    """Worked examples, from the train split, before a plain prompt."""
    chat_shots: int = 0
    """Worked examples, from the train split, as earlier turns of a chat."""
    draft_shots: int | None = None
    """Worked examples in a prompt of the draft model's own; None for the target's prompt."""
    shot_sampler: ShotSampler = "first"
    """Worked examples that are shown: the first of the train split, or those nearest to the
    problem, which share most words with it, the nearest last."""
    beginning: Callable[[Example], str] | None = None
    """Function that returns the part of a question that comes first and that others share, such as
    a schema. Worked examples then have the same beginning, if possible, and it is not repeated."""
    show: Callable[[Example, bool], str] = worked_answer
    """Function that writes a worked example's answer, in a form that the scorer reads; the second
    argument is True for a chat."""
    max_new_tokens: int = 512
    """Room for an answer with its reasoning."""
    stop: tuple[str, ...] = ("\nQuestion:",)
    """Strings that end the answer to a plain prompt, besides the end-of-sequence token."""

    def examples(
        self, split: Split, num_problems: int | None = None, seed: int = 0
    ) -> list[Example]:
        """Return problems of a split; no problem is in two splits.

        Args:
            split: ``train``, ``tune`` or ``test``.
            num_problems: Number of problems; all of them if None, which a generated task refuses.
            seed: Picks the problems and their order. The first n are the same for every number.

        Raises:
            ConfigError: The split is unknown, or a number is out of range.
            TaskError: There are not that many problems, or two of them have one id.
        """
        if split not in SPLITS:
            raise ConfigError(unknown_name("split", split, SPLITS))
        check_least(1, num_problems=num_problems)
        check_least(0, seed=seed)
        found = list(self.source(split, num_problems, int(seed)))
        if len({example.id for example in found}) < len(found):
            twice = Counter(example.id for example in found).most_common(1)[0][0]
            raise TaskError(
                f"{self.name} has more than one {split} problem with the id {twice!r}; give each "
                "an id of its own."
            )
        return found

    def prompt(self, example: Example, tokenizer: PreTrainedTokenizerBase) -> str | list[int]:
        """Return the prompt for a pair with this tokenizer; the target's, if the draft has its own.

        With a chat template it is token ids (a string would get a second begin-of-sequence token):
        worked examples as turns, a user message, and the start of the answer. Without one it is a
        string.

        Raises:
            TaskError: There are not enough worked examples.
        """
        number = self.chat_shots if tokenizer.chat_template else self.num_shots
        return self._prompt(example, tokenizer, number)

    def draft_prompt(
        self, example: Example, tokenizer: PreTrainedTokenizerBase
    ) -> str | list[int] | None:
        """Return the prompt for the draft model; None if it reads the target's."""
        if self.draft_shots is None:
            return None
        return self._prompt(example, tokenizer, self.draft_shots)

    def _prompt(
        self, example: Example, tokenizer: PreTrainedTokenizerBase, number: int
    ) -> str | list[int]:
        """Return the prompt with a number of worked examples."""
        is_chat = bool(tokenizer.chat_template)
        shots = self._shots(example, number)
        asked = self._asked([*shots, example], self.chat if is_chat else self.plain)
        worked = [self.show(shot, is_chat) for shot in shots]
        if not is_chat:
            pairs = [answered(*each) for each in zip(asked, worked, strict=False)]
            return "\n\n".join([*pairs, asked[-1]])
        turns = []
        for text, answer in zip(asked, [*worked, ""], strict=True):
            turns += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
        return list(
            tokenizer.apply_chat_template(
                turns[:-1], add_generation_prompt=True, tokenize=True, return_dict=False
            )
        )

    def stop_strings(self, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
        """Return the strings that end an answer: those of a plain prompt, none for a chat model."""
        return () if tokenizer.chat_template else self.stop

    def part_of(self, example: Example) -> Task:
        """Return the task that an example is asked by: this one, unless it is a mixture."""
        return self

    def score(self, example: Example, text: str) -> Score:
        """Score ``text``, which was generated for ``example``.

        Raises:
            TaskError: The scorer gave neither a `Score` nor a number in [0, 1].
        """
        found = self.scorer(example, text)
        if isinstance(found, Score):
            return found
        try:
            reward = float(found)
        except (TypeError, ValueError, OverflowError) as error:
            raise TaskError(
                f"the scorer of {self.name} gave {found!r} for {example.id}; it must return a "
                "Score or a number in [0, 1]."
            ) from error
        return Score(reward)

    def _shots(self, example: Example, number: int) -> list[Example]:
        """Return worked examples for a problem, never the problem itself."""
        if not number:
            return []
        if self.beginning is not None:
            # An example with the same answer is left out too.
            alike = self._by_beginning.get(self.beginning(example), [])
            if alike := [shot for shot in alike if shot.answer != example.answer]:
                return self._sampled(example, alike, number)
        others = [shot for shot in self._pool if shot.id != example.id]
        found = self._sampled(example, others, number)
        if len(found) < number:
            raise TaskError(
                f"{self.name} has {number} train problems, and {example.id}, which is one of them, "
                "cannot be shown its own answer; show fewer worked examples."
            )
        return found

    def _sampled(self, example: Example, shots: list[Example], number: int) -> list[Example]:
        """Return some of the worked examples that may be shown for a problem."""
        if self.shot_sampler == "first":
            return shots[:number]
        words = words_of(self._own_part(example))

        def likeness(shot: Example) -> float:  # Jaccard's
            theirs = words_of(self._own_part(shot))
            return len(words & theirs) / max(1, len(words | theirs))

        ranked = sorted(shots, key=likeness)
        if self.beginning is not None:  # one answer, as a query, in its likest wording
            ranked = sorted({shot.answer: shot for shot in ranked}.values(), key=likeness)
        return ranked[-number:]

    def _own_part(self, example: Example) -> str:
        """Return a question without the beginning that others share."""
        beginning = self.beginning(example) if self.beginning else ""
        return example.question.removeprefix(beginning)

    @cached_property
    def _pool(self) -> list[Example]:
        """All worked examples, or one more than is shown: no problem is shown its own answer."""
        if self.shot_sampler == "nearest":
            try:
                return list(self.source("train", None, 0))
            except TaskError as error:
                why = str(error).partition(";")[0]
                raise TaskError(
                    f"{why}, and shot_sampler=nearest searches a whole train split; leave it out."
                ) from error
        number = max(self.num_shots, self.chat_shots, self.draft_shots or 0)
        try:
            return list(self.source("train", number + 1, 0))
        except TaskError:
            pass
        try:
            return list(self.source("train", number, 0))
        except TaskError as error:
            why = str(error).partition(";")[0]
            raise TaskError(f"{self.name}: {why}; show fewer worked examples.") from error

    @cached_property
    def _by_beginning(self) -> dict[str, list[Example]]:
        """The train problems by their beginning."""
        found: dict[str, list[Example]] = {}
        assert self.beginning is not None
        for example in self.source("train", None, 0):
            found.setdefault(self.beginning(example), []).append(example)
        return found

    def _asked(self, examples: list[Example], frame: str) -> list[str]:
        """Return the message of each problem, without a beginning that the last message had."""
        said, found = "", []
        for example in examples:
            beginning = self.beginning(example) if self.beginning else ""
            question = example.question
            if beginning == said:
                question = question.removeprefix(said)
            said = beginning
            found.append(frame.replace("{question}", question))
        return found
