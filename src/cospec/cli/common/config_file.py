"""``--config``: options as JSON, in a file or as typed. Flags on the command line override them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import tyro

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


def given_config(args: Sequence[str]) -> str | None:
    """Return the value of the last ``--config`` of some arguments; None without one."""
    words = [word.removeprefix("--config=") for word in args if word.startswith("--config=")]
    words += [value for word, value in pairwise(args) if word == "--config"]
    return words[-1] if words else None


def read_config(config: str) -> Any:  # Any: whatever JSON holds
    """Read a value of ``--config``: a file, or a JSON object.

    Raises:
        ConfigError: It cannot be read, or is no JSON.
    """
    try:
        is_object = config.lstrip().startswith("{")
        return parse_json(config if is_object else read_text(Path(config).expanduser()))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{config} cannot be read as settings: {error}; pass a JSON object, or a file of one, "
            "such as train.json of a training run, or for other commands a result."
        ) from None


def without_flag(command: type) -> list[str]:
    """Return the settings of a command's groups that have no flag, by name."""
    found: list[str] = []
    for group in get_type_hints(command).values():
        if is_dataclass(group):
            hints = get_type_hints(group, include_extras=True)
            marks = {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}
            found += [name for name, mark in marks.items() if tyro.conf.Suppress in mark]
    return sorted(found)


def flag_of(name: str) -> str:
    """Return the flag of an option."""
    return f"--{name.replace('_', '-')}"


def _flags(args: Sequence[str]) -> set[str]:
    """Return the flags of some arguments, which may be written with underscores."""
    return {word.partition("=")[0].replace("_", "-") for word in args}


def check_flags(args: Sequence[str], names: Sequence[str]) -> None:
    """Refuse a flag of a setting that has none.

    Raises:
        ConfigError: There is one; the message tells how to set it.
    """
    given = _flags(args)
    for name in names:
        if flag_of(name) in given:
            raise ConfigError(f"{name} has no flag; pass --config '{{\"{name}\": VALUE}}'.")


def options_from(config: str, verb: str, command: type[T], args: Sequence[str] = ()) -> T:
    """Return a command with the options of ``--config``.

    It is a file or an object of some options, ``{"target": "T", "draft": "D", "top_k": 40}``, or a
    file with a result of the same command. A result may be somebody else's: options of it that can
    run code have to be given in `args` as well.

    Raises:
        ConfigError: The file cannot be read, is a result of another command or would run code, or
            has an option that is unknown or not allowed.
    """
    values = read_config(config)
    if isinstance(values, dict) and {"schema", "command", "config"} <= values.keys():
        if values["command"] != verb:
            raise ConfigError(
                f"{config} is a result of {values['command']}, with other options than {verb}; "
                f"pass a result of {verb}, or a file of its options."
            )
        own = {field.name for field in fields(command)}  # type: ignore[arg-type]
        values = {key: value for key, value in values["config"].items() if key in own}
        _check_code(config, settings.flat(values), args)
    return settings.from_dict(command, values)


def _check_code(path: str, values: Json, args: Sequence[str]) -> None:
    """Refuse a result whose options can run code, unless `args` have the same options.

    Raises:
        ConfigError: There is such an option.
    """
    found = [name for name, value in HARMLESS.items() if values.get(name, value) != value]
    if OWN_SCORER.search(str(values.get("task"))):
        found.append("task")
    given = _flags(args)
    for name in found:
        if (flag := flag_of(name)) not in given:
            raise ConfigError(
                f"{path} has {name} {values[name]!r}, with which it can run any code; pass {flag} "
                "as well if you trust it."
            )
