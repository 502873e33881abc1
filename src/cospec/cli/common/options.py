"""Options that several commands share; their docstrings are the help texts."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from cospec.config import DecodeConfig, SamplingConfig
from cospec.errors import ConfigError
from cospec.models.bundled import bundled_arbiter
from cospec.models.source import PairSource
from cospec.tasks import Example, Split, Task, load_task

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True)
class PairOptions(PairSource):
    """Models."""

    def find_arbiter(self, spec: str, *, has_tune: bool = False) -> str:
        """Return the spec that `load_arbiter` takes, checked before any model is loaded.

        Args:
            spec: Spec as given; ``bundled`` is the trained arbiter that ships with the bundled
                pair, ``bundled-scalar`` one that does not see the models' states.
            has_tune: Whether a benchmark's tune problems may fill the memory of a rule.

        Raises:
            CospecError: There is no such arbiter.
        """
        from cospec.arbiters import CSD, is_folder, load_arbiter, split_spec
        from cospec.arbiters.hub import download

        spec = bundled_arbiter(spec, self.pair)
        name, knobs = split_spec(spec)
        if "/" in name and not is_folder(name):
            # A run loads it twice; the folder holds one revision, even if the hub moves on.
            spec = f"{download(name)}{':' if knobs else ''}{knobs}"
        arbiter = load_arbiter(spec)
        if isinstance(arbiter, CSD) and not has_tune:
            arbiter.pairs  # noqa: B018  # raises where there is no memory
        return spec


def given(options: DataclassInstance, default: DataclassInstance) -> dict[str, object]:
    """Return the options that differ from `default`, by their names on the command line."""
    found: dict[str, object] = {}
    for f in fields(options):
        ours, theirs = getattr(options, f.name), getattr(default, f.name)
        if is_dataclass(ours) and not isinstance(ours, type):
            found |= given(ours, theirs)
        elif ours != theirs:
            found[f"--{f.name.replace('_', '-')}"] = ours
    return found


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """Answers."""

    temperature: float = 0.0
    """Sampling temperature; 0 is greedy."""
    max_new_tokens: int | None = None
    """Most tokens of an answer; by default the task's."""
    threads: int | None = None
    """CPU threads; by default as many as torch takes."""

    def __post_init__(self) -> None:
        check_answers(self.max_new_tokens, self.temperature)


def check_answers(max_new_tokens: int | None, temperature: float) -> None:
    """Refuse a bad length or temperature of answers, before any model is loaded.

    Raises:
        ConfigError: One is out of range.
    """
    SamplingConfig(1 if max_new_tokens is None else max_new_tokens, temperature)


def check_task(task: str) -> None:
    """Refuse a command without a task.

    Raises:
        ConfigError: None is named.
    """
    if not task:
        raise ConfigError("--task is missing; pass one, such as gsm8k or jsonl:FILE.")


@dataclass(frozen=True)
class TaskOptions:
    """Problems."""

    task: str = ""
    """gsm8k, svamp, asdiv, math500, aqua, humaneval, mbpp, spider (text-to-SQL), sql:FOLDER (the
    same on databases of your own), reasoning_gym:NAME (and reasoning_gym:NAME,reasoning=off for the
    answer alone; gsm_symbolic takes templates=3/7/20-29, without_templates=... and twins=apart),
    jsonl:FILE,scorer=numeric, or several of them in turns: mix:gsm8k@4+svamp@1."""
    split: Split = "test"
    """train, tune or test; no problem is in two of them."""
    num_problems: int | None = None
    """Number of problems; by default all of the split. A generated task needs it."""
    seed: int = 0
    """Picks the problems and their order."""
    data_dir: Path | None = None
    """Folder of the data sets; by default $COSPEC_DATA, or data."""
    allow_code_execution: bool = False
    """Run programs that the models write, in a sandbox."""

    def load(self) -> tuple[Task, list[Example]]:
        """The task and its problems.

        Raises:
            CospecError: No task is named, it is unknown, or its data cannot be used.
        """
        check_task(self.task)
        task = load_task(
            self.task, data_dir=self.data_dir, allow_code_execution=self.allow_code_execution
        )
        return task, task.examples(self.split, self.num_problems, self.seed)


@dataclass(frozen=True)
class DecodeOptions(DecodeConfig):
    """Decoding."""

    arbiter: str = "lossless"
    """Arbiter that rules at mismatches: lossless, a rule such as gap:max_gap=1 or fly, the folder
    or hub id (USER/NAME or USER/NAME@REVISION) of a trained arbiter, bundled or bundled-scalar."""


@dataclass(frozen=True)
class ArmOptions(DecodeConfig):
    """Arms."""

    arbiter: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """An arbiter to compare with target, draft and lossless: a rule such as gap:max_gap=1, the
    folder or hub id of a trained arbiter, bundled or bundled-scalar; may be given several times."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_cost()


@dataclass(frozen=True)
class OutputOptions:
    """Files."""

    config: str | None = None
    """JSON file of options, such as a result of this command, or a JSON object as in
    '{"batch_size": 16}'. Flags override it."""
    json: Path | None = None
    """Write one result document: configuration, provenance, totals and rows."""
    overwrite: bool = False
    """Replace result files that exist."""


def set_threads(threads: int | None) -> None:
    """Let torch use this many CPU threads; None changes nothing.

    Raises:
        ConfigError: The number is below 1, or far above what the machine has.
    """
    import torch

    if threads is None:
        return
    most = 8 * (os.cpu_count() or 1)  # OpenMP allocates for each beforehand; a billion would crash
    if not 1 <= threads <= most:
        raise ConfigError(f"threads is {threads}; it must be from 1 to {most} on this machine.")
    torch.set_num_threads(threads)
