"""Turns a spec such as ``gsm8k`` or ``reasoning_gym:chain_sum`` into a task."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from cospec.errors import TaskError, unknown_name
from cospec.registered import load_registered, missing_settings, registered_names, settings_of
from cospec.tasks import jsonl, math_sets, programs
from cospec.tasks.base import ShotSampler, Task
from cospec.tasks.mixture import mixture
from cospec.tasks.reasoning_gym import OPTIONS as GENERATED_OPTIONS
from cospec.tasks.reasoning_gym import reasoning_gym_task
from cospec.tasks.sql.own import own
from cospec.tasks.sql.spider import spider

if TYPE_CHECKING:
    from collections.abc import Callable

SPLIT_BY_FILE: dict[str, Callable[[Path | None], Task]] = {
    "gsm8k": math_sets.gsm8k,
    "aqua": math_sets.aqua,
    "mbpp": programs.mbpp,
}
"""Sets with splits by their authors."""
SPLIT_BY_HASH: dict[str, Callable[[Path | None, str | None], Task]] = {
    "svamp": math_sets.svamp,
    "asdiv": math_sets.asdiv,
    "math500": math_sets.math500,
    "humaneval": programs.humaneval,
}
"""Sets of one file."""
SHOTS = ("shots", "draft_shots", "shot_sampler")
"""Options of every task but a mixture, whose parts have them."""
RUNS_PROGRAMS = ("humaneval", "mbpp")
NAMED = (*SPLIT_BY_FILE, *SPLIT_BY_HASH, "spider")
TASK_NAMES = (
    *NAMED,
    "reasoning_gym:NAME",
    "sql:FOLDER",
    "jsonl:FILE",
    "mix:TASK@WEIGHT+TASK@WEIGHT",
)


def load_task(
    spec: str, *, data_dir: str | Path | None = None, allow_code_execution: bool = False
) -> Task:
    """Load the task that a spec names.

    Args:
        spec: One of ``TASK_NAMES``, and options after commas (``key=value``). The sets of one file
            and ``jsonl:FILE`` take ``split=test``: the whole set is that split, and no part of it
            may be trained or tuned on. Without it, a tenth of the problems is the test split.
            `cospec.tasks.jsonl` has the other options of ``jsonl:FILE``.
            ``spider,part=dev`` tests on the development file alone, ``part=train`` on the databases
            held back from the train file. ``sql:FOLDER`` has a user's own databases
            (`cospec.tasks.sql.own`).
            ``reasoning_gym:NAME,reasoning=off`` asks for the answer alone.
            ``reasoning_gym:gsm_symbolic,templates=3/7/20-29`` takes only these of its templates,
            ``without_templates=`` all others; with ``twins=apart`` (in training and in the test
            alike) no two splits have problems that differ by names alone. A mixture such as
            ``mix:gsm8k@4+svamp@1`` has four problems of the first for one of the second. A spec may
            also be a name that an installed package registers in the entry point group
            ``cospec.tasks``.
            ``shots=8`` shows eight worked examples of the train split before each question; for
            SQL tasks those of the same database, if there are any. ``draft_shots=0`` gives the
            draft model a prompt of its own, with that many. ``shot_sampler=nearest`` shows those
            that share most words with the question.
        data_dir: The data folder; else ``$COSPEC_DATA``, ``./data``, or the hub.
        allow_code_execution: Whether scoring may run the model's programs, in a sandbox.

    Raises:
        TaskError: The task is unknown, or its data cannot be used.
        CodeExecutionRefusedError: It runs generated code, and that was not allowed or is not safe.
        MissingExtraError: An optional package is missing.
    """
    if spec.startswith("mix:"):
        parts = [_weighed(part) for part in spec.removeprefix("mix:").split("+")]
        if any(part.startswith("mix:") for part, _ in parts):
            raise TaskError(f"{spec}: a part of a mixture cannot be a mixture; name its tasks.")
        return mixture(
            [
                (
                    load_task(part, data_dir=data_dir, allow_code_execution=allow_code_execution),
                    weight,
                )
                for part, weight in parts
            ]
        )
    head, *pairs = spec.split(",")
    shown = [pair for pair in pairs if pair.partition("=")[0] in SHOTS]
    others = [pair for pair in pairs if pair not in shown]
    task = _load(head, others, Path(data_dir) if data_dir else None, allow_code_execution)
    return _shown(task, _options(head, shown, SHOTS))


def _load(head: str, pairs: list[str], data_dir: Path | None, allow_code_execution: bool) -> Task:
    """Load a task that is no mixture."""
    kind, _, argument = head.partition(":")
    if kind == "jsonl":
        return jsonl.jsonl(argument, _options(kind, pairs, jsonl.OPTIONS))
    if kind == "reasoning_gym":
        options = _options(head, pairs, GENERATED_OPTIONS)
        return reasoning_gym_task(argument, options, allow_code_execution=allow_code_execution)
    if kind == "sql":
        return own(argument, _options(kind, pairs, ("split",)).get("split"))
    if head in RUNS_PROGRAMS:
        programs.require_permission(allow_code_execution, head)
    if head in NAMED:
        return _named(head, pairs, data_dir)
    if factory := load_registered("cospec.tasks", head, TaskError):
        return _from_factory(head, factory, pairs)
    raise TaskError(unknown_name("task", head, [*TASK_NAMES, *registered_names("cospec.tasks")]))


def _shown(task: Task, options: dict[str, str]) -> Task:
    """Return the task with worked examples in its prompts."""
    numbers: dict[str, int] = {}
    for name, value in options.items():
        if name == "shot_sampler":
            task = _sampled(task, value)
            continue
        if not value.isdecimal():
            raise TaskError(
                f"{name} is {value!r}; it must be a number, such as {task.name},{name}=8."
            )
        numbers[name] = int(value)
        task = replace(task, name=f"{task.name},{name}={numbers[name]}")
    if options and not numbers:
        raise TaskError(
            f"{task.name} does not say how many worked examples to show; add a number: shots=8."
        )
    both = numbers.get("shots")
    if both is not None:
        task = replace(task, num_shots=both, chat_shots=both)
    return replace(task, draft_shots=numbers.get("draft_shots"))


def _sampled(task: Task, sampler: str) -> Task:
    """Return the task with another choice of worked examples."""
    if sampler not in get_args(ShotSampler):
        raise TaskError(unknown_name("shot_sampler", sampler, get_args(ShotSampler)))
    name = f"{task.name},shot_sampler={sampler}"
    return replace(task, name=name, shot_sampler=cast("ShotSampler", sampler))


def _named(head: str, pairs: list[str], data_dir: Path | None) -> Task:
    """Build a set of the data folder."""
    if head == "spider":
        return spider(data_dir, _options(head, pairs, ("part",)).get("part", "all"))
    if head in SPLIT_BY_HASH:
        return SPLIT_BY_HASH[head](data_dir, _options(head, pairs, ("split",)).get("split"))
    _options(head, pairs, ())
    return SPLIT_BY_FILE[head](data_dir)


def _from_factory(name: str, factory: Callable[..., object], pairs: list[str]) -> Task:
    """Build a task that another package registered; its options are strings."""
    options = _options(name, pairs, tuple(settings_of(factory)))
    if missing := missing_settings(factory, options):
        raise TaskError(
            f"the option {missing[0]!r} of {name} is missing and has no default; write "
            f"{name},{missing[0]}=VALUE."
        )
    task = factory(**options)
    if not isinstance(task, Task):
        raise TaskError(
            f"task {name} is a {type(task).__name__}; what is registered in cospec.tasks must "
            "return a cospec.tasks.Task."
        )
    return task


def _weighed(part: str) -> tuple[str, int]:
    """Return a part of a mixture and its weight: 1 where none is given."""
    spec, at, weight = part.rpartition("@")
    return (spec, int(weight)) if at and weight.isdecimal() else (part, 1)


def _options(task: str, pairs: list[str], allowed: tuple[str, ...]) -> dict[str, str]:
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if key not in allowed:
            raise TaskError(unknown_name(f"option of {task}", key, allowed or ["none"]))
        if not equals:
            raise TaskError(f"the option {key!r} of {task} has no value; write {key}=VALUE.")
        if key in options:
            raise TaskError(f"the option {key!r} of {task} is given twice; give it once.")
        options[key] = value
    return options
