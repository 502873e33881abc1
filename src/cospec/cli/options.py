"""Options that several commands share; their docstrings are the help texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

import cospec
from cospec.config import DecodeConfig
from cospec.errors import ConfigError, unknown_name
from cospec.tasks import Example, Split, Task, load_task

if TYPE_CHECKING:
    from cospec.models import ModelPair


BUNDLED_PAIRS = {"family": ("target", "family"), "specialist": ("generalist", "specialist")}
"""By name: folders of the target and of the draft."""
BUNDLED_ARBITERS = ("bundled", "bundled-hidden")
"""Names of the trained arbiters that ship with each of them; the second sees hidden states."""


def bundled_home() -> Path:
    """Folder of the weights that ship with the package."""
    return Path(cospec.__file__).parent / "bundled"


def bundled_models(name: str) -> tuple[Path, Path]:
    """Folders of the target and the draft of a pair that ships with the package.

    Args:
        name: ``bundled:`` and a pair.

    Raises:
        ConfigError: There is no such pair.
    """
    home = bundled_home()
    pairs = {
        f"bundled:{pair}": (home / target, home / draft)
        for pair, (target, draft) in BUNDLED_PAIRS.items()
        if (home / target).is_dir() and (home / draft).is_dir()
    }
    if name not in pairs:
        raise ConfigError(unknown_name("pair", name, pairs or ["none, this build ships no pair"]))
    return pairs[name]


@dataclass(frozen=True)
class PairOptions:
    """Which models."""

    pair: str | None = None
    """A pair that ships with the package, such as bundled:family."""
    target: str | None = None
    """Hub id, folder or .gguf file of the target."""
    draft: str | None = None
    """Hub id, folder or .gguf file of the draft."""
    dtype: str = "auto"
    """Of the weights: auto (as in the checkpoint), float32, bfloat16 or float16."""
    device: str = "auto"
    """Where the models run: auto, cpu, cuda, cuda:1, ..."""
    allow_pickle: bool = False
    """Load pickled checkpoints, which can run any code they hold."""

    def find_arbiter(self, spec: str) -> str:
        """The spec that `load_arbiter` takes, checked before any model is loaded.

        Args:
            spec: As given; ``bundled`` is the trained arbiter that ships with the bundled pair,
                ``bundled-hidden`` the one that sees the models' states as well.

        Raises:
            CospecError: There is no such arbiter.
        """
        from cospec.arbiters import load_arbiter

        name, colon, knobs = spec.partition(":")
        if name in BUNDLED_ARBITERS:
            pair = str(self.pair).partition(":")[2]
            folder = bundled_home() / "arbiters" / f"{pair}{name.removeprefix('bundled')}"
            if self.pair is None or not folder.is_dir():
                raise ConfigError(
                    f"--arbiter {name} needs a bundled pair that ships with a trained arbiter; "
                    f"this is {self.pair or 'a pair of your own'}. Name a rule or a folder."
                )
            spec = f"{folder}{colon}{knobs}"
        load_arbiter(spec)
        return spec

    def load(self) -> ModelPair:
        """Load the pair.

        Raises:
            ConfigError: A model is not named.
        """
        from cospec.models import ModelPair

        target, draft, dtype = self.target, self.draft, self.dtype
        if self.pair is not None:
            if target is not None or draft is not None:
                raise ConfigError("--pair names both models; leave out --target and --draft.")
            target, draft = map(str, bundled_models(self.pair))
            dtype = "float32" if dtype == "auto" else dtype  # shipped in half the bytes
        if target is None or draft is None:
            missing = "--target" if target is None else "--draft"
            raise ConfigError(f"{missing} is missing; pass --pair, or --target T and --draft D.")
        return ModelPair.from_pretrained(
            target, draft, dtype=dtype, device=self.device, allow_pickle=self.allow_pickle
        )


@dataclass(frozen=True)
class TaskOptions:
    """Which problems."""

    task: str
    """gsm8k, svamp, asdiv, math500, aqua, humaneval, mbpp, reasoning_gym:NAME (and
    reasoning_gym:NAME,reasoning=off for the answer alone; gsm_symbolic takes
    templates=3/7/20-29, without_templates=... and twins=apart), jsonl:FILE,scorer=numeric, or
    several of them in turns: mix:gsm8k@4+svamp@1."""
    split: Split = "test"
    """train, tune or test; no problem is in two of them."""
    num_problems: int | None = None
    """How many; by default all of the split. A generated task needs the number."""
    seed: int = 0
    """Picks the problems and their order."""
    data_dir: Path | None = None
    """Folder of the data sets; by default $COSPEC_DATA, or data."""
    allow_code_execution: bool = False
    """Run programs that the models write, in a sandbox."""

    def load(self) -> tuple[Task, list[Example]]:
        """The task and its problems.

        Raises:
            CospecError: The task is unknown or its data cannot be used.
        """
        task = load_task(
            self.task, data_dir=self.data_dir, allow_code_execution=self.allow_code_execution
        )
        return task, task.examples(self.split, self.num_problems, self.seed)


@dataclass(frozen=True)
class DecodeOptions(DecodeConfig):
    """How to decode."""

    arbiter: str = "lossless"
    """Who rules at mismatches: lossless, a rule such as gap:max_gap=1 or fly, the folder or hub id
    of a trained arbiter, bundled or bundled-hidden."""


@dataclass(frozen=True)
class ArmOptions(DecodeConfig):
    """What to compare."""

    arbiter: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """An arbiter to compare with target, draft and lossless: a rule such as gap:max_gap=1, the
    folder or hub id of a trained arbiter, bundled or bundled-hidden; may be given several times."""


@dataclass(frozen=True)
class OutputOptions:
    """Where results go."""

    json: Path | None = None
    """Write one result document: configuration, provenance, totals and rows."""
    overwrite: bool = False
    """Replace result files that exist."""


def set_threads(threads: int | None) -> None:
    """Let torch use so many CPU threads; None leaves it as it is.

    Raises:
        ConfigError: The number is below 1.
    """
    import torch

    if threads is None:
        return
    if threads < 1:
        raise ConfigError(f"threads is {threads}; it must be at least 1.")
    torch.set_num_threads(threads)
