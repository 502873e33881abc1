"""A user's own problems: ``jsonl:FILE``, one JSON object a line with a question and an answer.

Options follow after commas: ``jsonl:FILE,scorer=numeric,question=prompt,answer=gold,split=test``.

``scorer``
    ``exact`` (the default: the final answer; blanks, case, full stops at the end and ``*``, ``_``
    and backticks around it aside), ``numeric``, ``choice`` (a letter), ``regex`` (the row's answer
    is a pattern that the text must match somewhere), or ``package.module:function``. The function
    gets the example and the text and returns a `Score`, or a number in [0, 1]. With ``exact`` a
    gold answer of several lines stands in ``<answer>...</answer>``, as in the models' texts.
``question``, ``answer``
    The names of the fields. A question that is asked again is left out.
``split``
    The split of the whole file; without it, a hash of each question decides (`split_of`).

The example's metadata is the row. A field ``group`` names something that makes problems succeed and
fail together, such as a document. Comparisons then also have a test over groups.
"""

from __future__ import annotations

import importlib
import inspect
import math
import os
import re
import traceback
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cospec.errors import TaskError, unknown_name
from cospec.tasks.base import Example, Score, Task, worked_answer
from cospec.tasks.extract import LETTERS, final_answer, gold_number
from cospec.tasks.files import FileSource, by_hash, read_rows
from cospec.tasks.math_sets import score_choice, score_number
from cospec.tasks.splits import normalize

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cospec.tasks.base import Scorer
    from cospec.tasks.files import Row

OPTIONS = ("scorer", "question", "answer", "split")
_MARKS = "*_` "
"""Characters that Markdown puts around an answer."""


def score_exact(example: Example, text: str) -> Score:
    """Right if the final answer is the same text, apart from blanks, case, marks and full stops."""
    found = final_answer(text)
    return Score(float(_bare(found or "") == _bare(example.answer)), found)


def _bare(text: str) -> str:
    r"""Return the text without all that `final_answer` may take off, unless nothing is left.

    A ``\text{}`` around all of it goes as well.
    """
    text = " ".join(text.split()).casefold()
    if match := re.fullmatch(r"\\(?:text\w*|mathrm)\s*\{(.*)\}", text):
        text = match[1].strip()
    return text.lstrip(_MARKS).rstrip(f"{_MARKS}.") or text


def score_regex(example: Example, text: str) -> Score:
    """Right if the answer, as a pattern, matches somewhere in the text."""
    match = re.search(example.answer, text)
    return Score(float(match is not None), match[0] if match else None)


SCORERS: dict[str, Scorer] = {
    "exact": score_exact,
    "numeric": score_number,
    "choice": score_choice,
    "regex": score_regex,
}


def jsonl(path: str, options: dict[str, str]) -> Task:
    """Return the task for a user's file.

    Raises:
        TaskError: The file, a field or the scorer cannot be used.
    """
    file = Path(os.path.expanduser(path))
    if not file.is_file():
        raise TaskError(f"there is no file {path!r}; the form is jsonl:FILE,scorer=numeric.")
    scorer = _scorer(options.get("scorer", "exact"))
    fields = options.get("question", "question"), options.get("answer", "answer")
    if not (rows := read_rows(file)):
        raise TaskError(f"{path!r} has no rows; give it one JSON object a line.")
    examples = [_example(f"{file.stem}/{i}", row, *fields) for i, row in enumerate(rows)]
    examples = _asked_once(examples)
    _check_groups(examples)
    if scorer in _GOLD:
        examples = [replace(each, answer=_GOLD[scorer](each)) for each in examples]
    name = ",".join([f"jsonl:{path}", *(f"{key}={value}" for key, value in options.items())])
    source = FileSource(name, by_hash(examples, options.get("split")))
    return Task(name, source, scorer, chat="{question}", show=_SHOWN.get(scorer, worked_answer))


def _asked_once(examples: Sequence[Example]) -> list[Example]:
    """Leave out repeated questions: they would count as further evidence.

    Raises:
        TaskError: A question has two answers.
    """
    first: dict[str, Example] = {}
    for example in examples:
        same = first.setdefault(normalize(example.question), example)
        if same.answer != example.answer:
            raise TaskError(
                f"{same.id} and {example.id} ask the same question and have the answers "
                f"{same.answer!r} and {example.answer!r}; keep one of them (ids count from 0)."
            )
    return list(first.values())


def _check_groups(examples: Sequence[Example]) -> None:
    without = [example.id for example in examples if example.group is None]
    if without and len(without) < len(examples):
        raise TaskError(
            f"{without[0]} has no group, and other rows have one; give each row one, or none."
        )


def _example(identity: str, row: Row, question: str, answer: str) -> Example:
    for field in (question, answer):
        if field not in row:
            raise TaskError(
                f"{identity} (the first is 0) has no field {field!r}; its fields are "
                f"{', '.join(map(repr, row))}. Name the right ones by question= and answer=."
            )
        value = row[field]
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise TaskError(
                f"{identity} (the first is 0): the field {field!r} is {value!r}; it must be a text "
                "or a number. Repair the row, or leave it out."
            )
    if not str(row[question]).strip():
        raise TaskError(f"{identity} (the first is 0): the question is empty; leave the row out.")
    gold = row[answer]
    if isinstance(gold, float) and not math.isfinite(gold):  # NaN, as pandas writes none
        raise TaskError(f"{identity}: the answer is {gold}; give one, or leave the row out.")
    if isinstance(gold, float) and gold.is_integer():  # 3.0, as pandas writes a 3
        gold = int(gold)
    return Example(identity, str(row[question]), str(gold), row)


def _final(example: Example) -> str:
    """Return the answer without ``<answer>`` around it; as a model's text it must be right."""
    marked = re.fullmatch(r"\s*<answer>(.*)</answer>\s*", example.answer, re.DOTALL)
    gold = replace(example, answer=marked[1]) if marked else example
    score = score_exact(gold, example.answer)
    if not (gold.answer.strip() and score.correct):
        raise TaskError(
            f"{example.id}: the answer is {example.answer!r}, of which scorer=exact reads "
            f"{score.extracted!r}; give the final answer alone, or another scorer (numeric, "
            "choice, regex). <answer>...</answer> around it keeps what models answer in these "
            "tags, such as several lines."
        )
    return gold.answer


def _pattern(example: Example) -> str:
    if not example.answer.strip():
        raise TaskError(
            f"{example.id}: the answer is {example.answer!r}, a pattern that is in nearly every "
            "text; give one, or leave the row out."
        )
    try:
        re.compile(example.answer)
    except re.error as error:
        raise TaskError(f"{example.id}: {example.answer!r} is no pattern: {error}.") from error
    return example.answer


def _number(example: Example) -> str:
    number = gold_number(example.answer)
    if number is None:
        raise TaskError(
            f"{example.id}: the answer is {example.answer!r}; scorer=numeric needs one number, "
            "without a power (^)."
        )
    return number


def _letter(example: Example) -> str:
    letter = example.answer.strip().strip("()").upper()
    if letter not in LETTERS or len(letter) != 1:
        raise TaskError(
            f"{example.id}: the answer is {example.answer!r}; scorer=choice needs one letter of "
            f"{LETTERS}."
        )
    return letter


_GOLD: dict[Scorer, Callable[[Example], str]] = {
    score_exact: _final,
    score_regex: _pattern,
    score_number: _number,
    score_choice: _letter,
}
"""By scorer, a function that checks an answer and returns it in the form that the scorer takes."""


def _scorer(spec: str) -> Scorer:
    if spec in SCORERS:
        return SCORERS[spec]
    module, _, name = spec.partition(":")
    if not name:
        raise TaskError(unknown_name("scorer", spec, [*SCORERS, "package.module:function"]))
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the user's file raises when it is imported
        raise TaskError(f"the scorer {spec!r} cannot be imported: {error!r}.") from error
    try:
        inspect.signature(function).bind(None, "")
    except ValueError:
        pass  # a builtin that does not tell what it takes
    except TypeError as error:
        raise TaskError(
            f"the scorer {spec!r} is called with an example and a text, and does not take them "
            f"({error}); write it as def {name}(example, text), and return a Score or a number in "
            "[0, 1]."
        ) from error
    return partial(_score_by, spec, function)


def _score_by(spec: str, function: Scorer, example: Example, text: str) -> Score | float:
    try:
        return function(example, text)
    except Exception as error:  # a user's function may raise anything
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise TaskError(
            f"the scorer {spec!r} raised {error!r} for {example.id}, at {place.filename}, line "
            f"{place.lineno}; an answer that it cannot read should get a score of 0."
        ) from error


def _show_final(example: Example, is_chat: bool) -> str:
    """Return the solution or the answer, in tags if it has several lines."""
    shown = worked_answer(example, is_chat)
    has_lines = shown == example.answer and "\n" in shown.strip()
    return f"<answer>{shown}</answer>" if has_lines else shown


def _show_match(example: Example, is_chat: bool) -> str:
    """Return the solution, or a pattern that is itself a right answer, as a plain word is."""
    shown = worked_answer(example, is_chat)
    if not score_regex(example, shown).correct:
        raise TaskError(
            f"{example.id}: {shown!r} would be shown as its answer, which is not right by its "
            f"pattern {example.answer!r}; give each train row a right 'solution', or show no "
            "worked examples."
        )
    return shown


_SHOWN: dict[Scorer, Callable[[Example, bool], str]] = {
    score_exact: _show_final,
    score_regex: _show_match,
}
