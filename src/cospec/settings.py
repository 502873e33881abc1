"""Nested settings as JSON: dataclasses to objects and back, with every key and kind checked.

A settings class is a frozen dataclass whose fields are numbers, strings, choices, paths, or further
settings. It checks its own values; this file checks names and kinds, so that a config file with a
typing error is refused by name before anything is loaded.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from cospec.errors import ConfigError, unknown_name

T = TypeVar("T")
_KINDS: dict[type, tuple[Any, str]] = {  # Any: what isinstance takes
    int: (int, "a whole number"),
    float: (int | float, "a number"),
    bool: (bool, "true or false"),
    str: (str, "a string"),
    Path: (str, "a path"),
}
"""By kind of field, the JSON types that it takes and their name in messages."""


def to_dict(settings: Any) -> dict[str, Any]:  # Any: a dataclass, and a JSON object
    """Return settings as a JSON object that `from_dict` reads."""
    return dataclasses.asdict(settings, dict_factory=_plain)


def from_dict(kind: type[T], values: object, where: str = "") -> T:
    """Build settings from a JSON object.

    Args:
        kind: Class of the settings.
        values: The object; keys that are left out get their defaults. Settings of a group may also
            stand beside the groups: each has a name of its own.
        where: Name of the object inside a larger one, for errors.

    Raises:
        ConfigError: A key is unknown, or a value is of another kind or not allowed.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or 'settings'} is {values!r}; it must be an object of settings.")
    hints = get_type_hints(kind)
    values = _grouped(hints, values)
    for key in values.keys() - hints.keys():
        groups = [get_type_hints(hint) for hint in hints.values() if dataclasses.is_dataclass(hint)]
        known = {*hints, *(name for group in groups for name in group)}
        raise ConfigError(unknown_name(f"setting{where and f' of {where}'}", str(key), known))
    prefix = f"{where}." if where else ""
    return kind(**{key: _read(hints[key], value, prefix + key) for key, value in values.items()})


def flat(values: Mapping[str, Any]) -> dict[str, Any]:  # Any: JSON
    """Return a JSON object with the values of its groups beside its own.

    Names of settings are unique, so records of older versions without groups read like those of
    this version.
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value) if isinstance(value, Mapping) else {key: value}
    return found


def _grouped(hints: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:  # Any: JSON
    """Return settings with those that stand beside their group put into it.

    Raises:
        ConfigError: A setting stands in both places.
    """
    found = dict(values)
    for group, hint in hints.items():
        names = get_type_hints(hint) if dataclasses.is_dataclass(hint) else {}
        outside = {name: found.pop(name) for name in names if name in found and name not in hints}
        inside = found.get(group, {})
        if outside and isinstance(inside, Mapping):
            for name in outside.keys() & inside.keys():
                raise ConfigError(f"{name} stands inside {group!r} and beside it; leave out one.")
            found[group] = outside | dict(inside)
    return found


def _plain(items: list[tuple[str, Any]]) -> dict[str, Any]:  # Any: values of fields
    def plain(value: Any) -> Any:  # Any: JSON
        if isinstance(value, tuple):
            return list(value)
        return value.item() if hasattr(value, "item") else value  # NumPy's numbers

    return {key: str(value) if isinstance(value, Path) else plain(value) for key, value in items}


def _read(kind: Any, value: Any, where: str) -> Any:  # Any: a type, and JSON
    """Convert one value to the kind that its field takes."""
    if get_origin(kind) in (Union, types.UnionType):
        if value is None:
            return None
        (kind,) = (one for one in get_args(kind) if one is not types.NoneType)
    if dataclasses.is_dataclass(kind):
        assert isinstance(kind, type)
        return from_dict(kind, value, where)
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ConfigError(unknown_name(where, str(value), get_args(kind)))
        return value
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} is {value!r}; it must be a list.")
        return tuple(_read(get_args(kind)[0], one, f"{where}[{i}]") for i, one in enumerate(value))
    allowed, name = _KINDS[kind]
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{where} is {value!r}; it must be {name}.")
    if kind is float:
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(f"{where} has hundreds of digits; no number is so large.") from None
    return Path(value) if kind is Path else value
