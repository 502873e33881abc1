"""Every error that CoSpec raises on purpose.

Each class also subclasses the builtin that a caller without knowledge of CoSpec would catch::

    CospecError
    ├── ConfigError (ValueError)            a setting that cannot be
    ├── PromptError (ValueError)            an empty or too long prompt
    ├── PairError (ValueError)              two models that cannot work together
    │   ├── TokenizerMismatchError          ... because they tokenize differently
    │   └── UnsupportedModelError           ... because one of them cannot roll back
    ├── CheckpointError (OSError)           weights that are missing, corrupt or unsafe to load
    ├── ArbiterError (ValueError)           an arbiter that is unknown or broke its protocol
    ├── NonFiniteError (FloatingPointError) a target model that returned NaN or infinity
    ├── TaskError (ValueError)              a task that is unknown or whose data is unusable
    ├── BackendError (RuntimeError)         a rollout that keeps failing on every replica
    ├── CodeExecutionRefusedError (PermissionError)  generated code, and no permission to run it
    └── MissingExtraError (ImportError)     an optional part that is not installed

``GenerationInterrupted`` stands apart: it is a ``KeyboardInterrupt``, so that ``except Exception``
does not swallow Ctrl-C, and it carries the finished completions.

A message says what was wrong, the value got, what is allowed, and what to do.
"""

from __future__ import annotations

import difflib
import errno
import json
from importlib import metadata
from numbers import Integral
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cospec.types import Completion

_NO_MEMORY = ("can't allocate memory", "Cannot allocate memory", "std::bad_alloc")
"""Messages from torch's allocator, torch's file reader, and C++."""


class CospecError(Exception):
    """Base of all errors that CoSpec raises on purpose.

    Attributes:
        completions: Finished completions by prompt index, if the error arose during a generation;
            empty otherwise.
    """

    completions: dict[int, Completion]

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.completions = {}


class ConfigError(CospecError, ValueError):
    """A setting has a value or a name that is not allowed."""


class PromptError(CospecError, ValueError):
    """A prompt is empty, too long for the pair, or not of a known kind."""


class PairError(CospecError, ValueError):
    """The draft and the target cannot work together."""


class TokenizerMismatchError(PairError):
    """The draft and the target give one id to different strings."""


class UnsupportedModelError(PairError):
    """A model keeps state that cannot be rolled back, or is no causal language model."""


class CheckpointError(CospecError, OSError):
    """A checkpoint is missing, corrupt, or of a kind that is unsafe to load."""


class ArbiterError(CospecError, ValueError):
    """An arbiter is unknown, or its ruling does not fit the mismatches it was given."""


class NonFiniteError(CospecError, FloatingPointError):
    """The target's logits hold NaN or positive infinity, so that no token is right."""


class TaskError(CospecError, ValueError):
    """A task is unknown, or its data cannot be used."""


class BackendError(CospecError, RuntimeError):
    """A rollout failed on every replica that tried it."""


class CodeExecutionRefusedError(CospecError, PermissionError):
    """Scoring needs to run generated code, and the user did not allow it."""


def pip_line(extra: str) -> str:
    """Return the command that installs an extra from the source of this installation."""
    try:
        told = metadata.distribution("cospec").read_text("direct_url.json")
    except metadata.PackageNotFoundError:  # run from its sources without installation
        told = None
    origin = json.loads(told or "{}")
    if (url := origin.get("url")) is None:  # from an index
        return f"pip install 'cospec[{extra}]'"
    if origin.get("dir_info", {}).get("editable"):
        return f"pip install -e '{url2pathname(urlsplit(url).path)}[{extra}]'"
    return f"pip install 'cospec[{extra}] @ {url}'"


class MissingExtraError(CospecError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} is not installed; run: {pip_line(extra)}")
        self._given = what, extra

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:
        """Pickle the arguments: this class builds its message from them."""
        return type(self), self._given


class GenerationInterrupted(KeyboardInterrupt):
    """A generation was interrupted (Ctrl-C).

    Attributes:
        completions: Finished completions by prompt index.
    """

    def __init__(self, completions: dict[int, Completion]) -> None:
        super().__init__(f"interrupted; {len(completions)} prompts had finished")
        self.completions = completions


def check_least(lowest: int, **values: float | None) -> None:
    """Refuse values that are below the lowest one or not finite; None is allowed.

    Raises:
        ConfigError: A value is refused; the message names it.
    """
    for name, value in values.items():
        if value is not None and not lowest <= value < float("inf"):
            raise ConfigError(f"{name} is {value}; it must be at least {lowest}.")


def whole_number(name: str, value: object) -> int:
    """Return a whole number as an int, also one of NumPy's.

    Raises:
        ConfigError: It is no whole number.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ConfigError(f"{name} is {value!r}; it must be a whole number.")
    return int(value)


def unknown_name(kind: str, name: object, allowed: Iterable[str]) -> str:
    """Error message for an unknown name, with the nearest known one."""
    names = sorted(allowed)
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"unknown {kind} {name!r}{hint} Allowed: {', '.join(names)}."


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory ran out, on a CPU or a GPU, without loading torch."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _NO_MEMORY)
