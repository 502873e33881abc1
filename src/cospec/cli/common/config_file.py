"""``--config FILE``: options from a JSON file. Those on the command line override them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from cospec import settings
from cospec.errors import ConfigError
from cospec.results import Json, parse_json, read_text

T = TypeVar("T")
OWN_SCORER = re.compile(r"scorer=[^,+@]*:")
"""A scorer that is a function of somebody's module."""
HARMLESS: Json = {
    "allow_pickle": False,
    "allow_code_execution": False,
    "vllm_options": "{}",
    "ray_address": None,
}
"""Options that can run foreign code, with the value that does not. A Ray cluster answers with
pickles."""


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


def flag_of(name: str) -> str:
    """Return the flag of an option."""
    return f"--{name.replace('_', '-')}"


def options_from(path: Path, verb: str, command: type[T], args: Sequence[str] = ()) -> T:
    """Return a command with the options of a file.

    The file is a result of the same command, or has some options in the groups of ``--help``:
    ``{"pair": {"target": "T", "draft": "D"}, "decode": {"batch_size": 16}}``. A result may be
    somebody else's: options of it that can run code have to be given in `args` as well.

    Raises:
        ConfigError: The file cannot be read, is a result of another command or would run code, or
            has an option that is unknown or not allowed.
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
        _check_code(path, settings.flat(values), args)
    return settings.from_dict(command, values)


def _check_code(path: Path, values: Json, args: Sequence[str]) -> None:
    """Refuse a result whose options can run code, unless `args` have the same options.

    Raises:
        ConfigError: There is such an option.
    """
    found = [name for name, value in HARMLESS.items() if values.get(name, value) != value]
    if OWN_SCORER.search(str(values.get("task"))):
        found.append("task")
    given = {word.partition("=")[0].replace("_", "-") for word in args}  # tyro takes both
    for name in found:
        if (flag := flag_of(name)) not in given:
            raise ConfigError(
                f"{path} has {name} {values[name]!r}, with which it can run any code; pass {flag} "
                "as well if you trust it."
            )
