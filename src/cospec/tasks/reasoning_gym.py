"""Endless problems from the generators of reasoning-gym, ``reasoning_gym:NAME``.

Item i+1 under seed s is item i under seed s+1 for most generators, so two nearby seeds are nearly
the same problems. Here a seed picks a window of the generator's seeds. Windows of the seeds 0 to
998 have nothing in common; that of a larger seed may overlap with another. The splits do not depend
on this: a problem's split follows from its text alone (`split_of`). Repeated questions are dropped.

Scores are 1 or 0: the generators' scorers give part credit to an answer that merely contains the
right one, so only their full credit counts, and they see the extracted final answer only. Where a
scorer gives full credit for more than the right answer, the size of the answer is checked here.
gsm_symbolic is scored here by its final number, sign included, which its own scorer ignores; it
can be restricted to some of its templates (`cospec.tasks.gsm_symbolic`).

list_functions draws from Python's global random numbers, which are seeded for each item here. The
items of isomorphic_strings, knight_swap, polynomial_multiplication, ransom_note and word_ladder
also depend on ``PYTHONHASHSEED`` (reasoning-gym 0.1.25): set it to draw the same ones again.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import random
import re
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cospec.errors import ConfigError, TaskError, unknown_name
from cospec.tasks.base import Example, Score, Split, Task
from cospec.tasks.extract import final_answer
from cospec.tasks.extras import import_extra
from cospec.tasks.gsm_symbolic import NAME as GSM_SYMBOLIC
from cospec.tasks.gsm_symbolic import SUFFIX, TEMPLATE, parse_templates, twin_key
from cospec.tasks.math_sets import score_number
from cospec.tasks.programs import require_permission
from cospec.tasks.sandbox import Limits, run_program
from cospec.tasks.splits import BUNDLED_TRAINING_SEEDS, normalize, split_of

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator, Mapping
    from types import ModuleType

TAGGED = (
    "{question}\nPlease reason step by step, and put your final answer within <answer> </answer>."
)
DIRECT = "{question}\nAnswer with the result alone, within <answer> </answer>, and nothing else."
_DIRECT_TOKENS = 64
"""Room for an answer without reasoning."""
EVALUATES = (
    "binary_matrix",
    "countdown",
    "intermediate_integration",
    "n_queens",
    "polynomial_multiplication",
    "simple_integration",
    "spiral_matrix",
    "string_insertion",
)
"""Generators whose scorers evaluate the answer as Python: it goes through the sandbox."""
UNUSABLE = {
    "codeio": "it runs programs from its data file in this process to make its problems",
    "coin_flip": "its scorer calls the beginning of the right number right, 0 for 0.375",
    "composite": "it has no problems of its own",
    "game_of_life_halting": "its scorer calls every answer right",
    "puzzle24": "its scorer does not ask whether an answer uses the given numbers",
}
_KEYS: dict[str, Callable[[str], object]] = {
    "game_of_life": lambda grid: [len(row) for row in json.loads(grid)],
    "letter_jumble": lambda words: len(words.split()),
    "number_sorting": lambda numbers: [float(one) for one in ast.literal_eval(numbers)],
    "polynomial_equations": lambda roots: len([float(one) for one in roots.split(",") if roots]),
    "time_intervals": lambda text: (re.findall("[a-z]+", text.lower()) or ["days"])[0].rstrip("s"),
    "word_sorting": lambda words: words.count(","),
}
"""By generator, a property that right answers share with the gold one and its scorer overlooks."""
_RIGHT_ANSWERS = ("example_answer", "example_correct_answer", "possible_answer")
"""Metadata with one right answer, where a generator gives none because many are right."""
_MOST_MOVES = 1000
_ALLOWED: dict[str, Callable[[str], bool]] = {
    "complex_arithmetic": lambda text: "nan" not in text.casefold(),
    "propositional_logic": lambda text: re.search(r"[^P-Z\s()¬∧∨→↔]", text) is None,  # noqa: RUF001
    "rubiks_cube": lambda moves: _num_moves(moves) <= _MOST_MOVES,
    "rush_hour": lambda moves: _num_moves(moves) <= _MOST_MOVES,
}
"""By generator, tells whether its scorer, which runs in this process, can judge an answer. NaN is
right for one; others make all moves of the answer, or try all values of its names, without end."""
_CHUNK = 1000
"""Items made by one data set object, whose size the generator wants to know beforehand."""
_STRIDE = 1_000_003
"""Generator seeds between two seeds, more than any number of items drawn from one."""
_WINDOWS = 998_244_353
"""A prime below ``BUNDLED_TRAINING_SEEDS``: no two seeds below the prime have the same window."""
_PATIENCE = 2000
"""Items in a row without a new problem, after which the generator has run dry."""


OPTIONS = ("reasoning", "templates", "without_templates", "twins")


def reasoning_gym_task(
    name: str, options: Mapping[str, str], *, allow_code_execution: bool = False
) -> Task:
    """Return the task ``reasoning_gym:NAME``, with the generator's default settings.

    Args:
        name: Name of the generator.
        options: Values by name. With ``reasoning`` ``off``, a chat model is asked for the answer
            alone, in at most 64 tokens. ``templates`` and ``without_templates`` restrict
            gsm_symbolic; with ``twins`` ``apart`` no two of its splits differ by names alone.
        allow_code_execution: Whether a scorer may evaluate the answer, in a sandbox.

    Raises:
        TaskError: There is no such generator, it cannot be used, or an option is wrong.
        CodeExecutionRefusedError: Its scorer evaluates the answer, which was not allowed.
    """
    spec = f"reasoning_gym:{name}"
    if name in UNUSABLE:
        raise TaskError(f"{spec} cannot be used: {UNUSABLE[name]}.")
    known = set(_library().factory.DATASETS) - set(UNUSABLE)
    if name not in known:
        raise TaskError(unknown_name("reasoning-gym generator", name, known))
    if name in EVALUATES:
        require_permission(allow_code_execution, f"{spec} (its scorer evaluates the answer)")
    reasoning = options.get("reasoning", "on")
    if reasoning not in ("on", "off"):
        raise TaskError(unknown_name(f"value of reasoning of {spec}", reasoning, ("on", "off")))
    source = partial(_draw, name, _templates(spec, options), _keeps_twins_apart(spec, options))
    is_number = name == GSM_SYMBOLIC
    scorer = score_number if is_number else partial(score_generated, name)
    show = partial(_show_tagged, name)
    spec += "".join(f",{key}={value}" for key, value in options.items() if value != "on")
    if reasoning == "off":
        return Task(spec, source, scorer, chat=DIRECT, show=show, max_new_tokens=_DIRECT_TOKENS)
    if is_number:
        return Task(spec, source, scorer)
    return Task(spec, source, scorer, chat=TAGGED, show=show)


def _show_tagged(name: str, example: Example, is_chat: bool) -> str:
    """Write a right answer; some generators keep one among the metadata, two have none."""
    if example.answer:
        return f"<answer>{example.answer}</answer>"
    found = next(filter(None, map(example.metadata.get, _RIGHT_ANSWERS)), None)
    text = f"<answer>{found if isinstance(found, str) else json.dumps(found)}</answer>"
    if found is None or not score_generated(name, example, text).correct:  # some are wrong
        raise TaskError(
            f"{example.id} has no right answer that could be shown as a worked example; show fewer "
            "(shots), or none."
        )
    return text


def _templates(spec: str, options: Mapping[str, str]) -> frozenset[int] | None:
    """Return the templates that the options choose; None for all."""
    given = [key for key in ("templates", "without_templates") if key in options]
    if not given:
        return None
    if spec != f"reasoning_gym:{GSM_SYMBOLIC}":
        raise TaskError(
            f"{spec} has no templates; leave {given[0]} out, or take reasoning_gym:{GSM_SYMBOLIC}."
        )
    if len(given) > 1:
        raise TaskError(f"templates and without_templates of {spec} are both given; give one.")
    return parse_templates(options[given[0]], excluded=given == ["without_templates"])


def _keeps_twins_apart(spec: str, options: Mapping[str, str]) -> bool:
    """Return whether problems that differ by names alone are kept in one split."""
    value = options.get("twins")
    if value is not None and spec != f"reasoning_gym:{GSM_SYMBOLIC}":
        raise TaskError(f"{spec} has no twins; leave twins out.")
    if value not in (None, "apart"):
        raise TaskError(unknown_name(f"value of twins of {spec}", value, ("apart",)))
    return value == "apart"


def score_generated(name: str, example: Example, text: str) -> Score:
    """Right if the generator's own scorer gives the final answer in ``text`` full credit."""
    answer = final_answer(text)
    if answer is None:
        return Score(0.0)
    answer = re.sub(r"[ \t]+\n", "\n", answer)  # grids are compared with their blanks
    entry = {
        "question": example.question,
        "answer": example.answer or None,
        "metadata": example.metadata,
    }
    if name in EVALUATES:
        return Score(float(_is_right_in_sandbox(name, answer, entry)), answer)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # one prints what it thinks of an answer
            is_right = (
                _can_be_right(name, answer, example.answer)
                and _score_answer(name)(answer, entry) == 1
            )
    except Exception:  # some scorers fail on what they cannot parse
        is_right = False
    return Score(float(is_right), answer)


def _can_be_right(name: str, answer: str, gold: str) -> bool:
    """Return whether an answer may be shown to the generator's own scorer."""
    if name in _ALLOWED and not _ALLOWED[name](answer):
        return False
    key = _KEYS.get(name)
    return key is None or key(answer) == key(gold)


def _num_moves(text: str) -> int:
    """Return the number of moves that are written with a number, such as R2 or A+3."""
    return sum(map(int, re.findall(r"\d+", text)))


def _is_right_in_sandbox(name: str, answer: str, entry: dict[str, Any]) -> bool:
    program = f"""
import json, os
os.environ["OPENBLAS_NUM_THREADS"] = "1"
import reasoning_gym
data = reasoning_gym.create_dataset({name!r}, seed=0, size=1)
assert data.score_answer({answer!r}, json.loads({json.dumps(entry)!r})) == 1
"""
    packages = Path(str(_library().__file__)).parents[1]
    limits = Limits(cpu_s=10, wall_s=30, memory_bytes=2 * 2**30)
    return run_program(program, limits, extra_trees=[packages]).passed


def _draw(
    name: str,
    templates: Container[int] | None,
    is_apart: bool,
    split: Split,
    num_problems: int | None,
    seed: int,
) -> list[Example]:
    """Return the first problems of a split in the seed's window of generator seeds."""
    if num_problems is None:
        raise TaskError(f"reasoning_gym:{name} has no end; say how many problems (num_problems).")
    if seed >= BUNDLED_TRAINING_SEEDS and split != "train":
        raise ConfigError(
            f"seed {seed} is reserved for training the bundled models; {split} problems take seeds "
            f"below {BUNDLED_TRAINING_SEEDS}."
        )
    start = seed * _STRIDE % _WINDOWS
    start += BUNDLED_TRAINING_SEEDS if seed >= BUNDLED_TRAINING_SEEDS else 0
    found: dict[str, Example] = {}
    num_idle, fault = 0, None
    for generator_seed, item in _items(name, start, templates):
        num_idle += 1
        if isinstance(item, Exception):
            fault = item
        elif (
            item["answer"] != ""  # no text, which cannot be told from no answer
            and (key := normalize(item["question"])) not in found
            and split_of(key) == split
            and (not is_apart or split_of(twin_key(item["metadata"]["template"], key)) == split)
        ):
            found[key] = _example(name, generator_seed, item)
            num_idle = 0
        if len(found) == num_problems:
            return list(found.values())
        if num_idle == _PATIENCE:
            break
    raise TaskError(
        f"reasoning_gym:{name} ran dry: seed {seed} gave {len(found)} different {split} problems, "
        f"{num_problems} asked for."
    ) from fault


def _items(
    name: str, start: int, templates: Container[int] | None
) -> Iterator[tuple[int, dict[str, Any] | Exception]]:
    """Yield generator seeds and their items; some generators give up on some seeds."""
    for chunk in range(start, start + _STRIDE - _CHUNK, _CHUNK):
        data = _library().create_dataset(name, seed=chunk, size=_CHUNK)
        for i in range(_CHUNK):
            if templates is not None and data.task_indices[i] not in templates:
                continue
            state = random.getstate()
            random.seed(chunk + i)
            try:
                item = data[i]
                if name == GSM_SYMBOLIC:
                    item["metadata"]["template"] = data.task_indices[i]
            except Exception as error:
                item = error
            finally:
                random.setstate(state)
            yield chunk + i, item


def _example(name: str, generator_seed: int, item: dict[str, Any]) -> Example:
    question, metadata = item["question"], dict(item["metadata"])
    if name == GSM_SYMBOLIC:
        question = question.removesuffix(SUFFIX)
        metadata["solution"] = metadata["answer_cot"].strip()
        metadata["group"] = f"template {metadata['template']}"
        metadata[TEMPLATE] = metadata["template"]
    if name == "time_intervals":  # where an item has no date they hold today's, which nobody reads
        del metadata["start_time"], metadata["end_time"]
    return Example(f"{name}/{generator_seed}", question, item["answer"] or "", metadata)


def _library() -> ModuleType:
    return import_extra("reasoning_gym", "reasoning-gym", "tasks")


@cache
def _score_answer(name: str) -> Callable[[str, dict[str, Any]], float]:
    scorer: Callable[[str, dict[str, Any]], float] = (
        _library().create_dataset(name, seed=0, size=1).score_answer
    )
    return scorer
