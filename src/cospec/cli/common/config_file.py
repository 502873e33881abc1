"""``--config FILE``: options from a JSON file. Those on the command line override them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from cospec import settings
from cospec.errors import ConfigError
from cospec.results import parse_json, read_text

T = TypeVar("T")


def named_file(args: Sequence[str]) -> Path | None:
    """Return the file that the last ``--config`` of some arguments names; None without one."""
    words = [word.removeprefix("--config=") for word in args if word.startswith("--config=")]
    words += [path for word, path in pairwise(args) if word == "--config"]
    return Path(words[-1]).expanduser() if words else None


def read_config(path: Path) -> Any:  # Any: whatever JSON holds
    """Read a config file.

    Raises:
        ConfigError: It cannot be read, or is no JSON.
    """
    try:
        return parse_json(read_text(path))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read as settings: {error}; pass JSON, such as train.json of a "
            "training run, or for other commands a result file."
        ) from None


def options_from(path: Path, verb: str, command: type[T]) -> T:
    """Return a command with the options of a file.

    The file is a result of the same command, or has some options in the groups of ``--help``:
    ``{"pair": {"target": "T", "draft": "D"}, "decode": {"batch_size": 16}}``.

    Raises:
        ConfigError: The file cannot be read, is a result of another command, or has an option that
            is unknown or not allowed.
    """
    values = read_config(path)
    if isinstance(values, dict) and {"schema", "command", "config"} <= values.keys():
        if values["command"] != verb:
            raise ConfigError(
                f"{path} is a result of {values['command']}, which has other options than {verb}; "
                f"pass a result of {verb}, or a file of its options."
            )
        own = {field.name for field in fields(command)}  # type: ignore[arg-type]
        values = {key: value for key, value in values["config"].items() if key in own}
    return settings.from_dict(command, values)
