"""Find arbiters and tasks that other packages register by entry point.

A package registers a factory in its ``pyproject.toml``::

    [project.entry-points."cospec.arbiters"]
    coin = "my_package:Coin"

The factory takes its settings as keyword arguments; they come from the spec, such as
``coin:rate=0.5``. CoSpec's own names cannot be taken over.
"""

from __future__ import annotations

import inspect
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from cospec.errors import CospecError

Group = Literal["cospec.arbiters", "cospec.tasks"]


def registered_names(group: Group) -> list[str]:
    """Names that installed packages register in a group, sorted."""
    return sorted({entry.name for entry in entry_points(group=group)})


def load_registered(
    group: Group, name: str, error: type[CospecError]
) -> Callable[..., Any] | None:  # Any: checked by the caller
    """Load the factory that is registered under a name; None if there is none.

    Raises:
        CospecError: An error of class ``error``: two packages register the name, or the factory
            cannot be imported or is not callable.
    """
    entries = list(entry_points(group=group, name=name))
    if not entries:
        return None
    if len({entry.value for entry in entries}) > 1:
        owners = ", ".join(sorted(_owner(entry) for entry in entries))
        raise error(f"{name!r} is registered in {group} more than once, by {owners}; remove one.")
    try:
        factory = entries[0].load()
    except Exception as cause:  # whatever the package raises when it is imported
        raise error(
            f"{name!r} of {group} ({_owner(entries[0])}) cannot be imported: {cause!r}; "
            "update or remove that package."
        ) from cause
    if not callable(factory):
        raise error(
            f"{name!r} of {group} ({_owner(entries[0])}) is {factory!r}; it must be a class or "
            "function that takes its settings as keyword arguments."
        )
    return factory  # type: ignore[no-any-return]  # an entry point can be anything


def settings_of(factory: Callable[..., Any]) -> dict[str, str]:
    """Settings that a factory takes, each with the name of its annotated type."""
    found = {}
    for name, parameter in inspect.signature(factory).parameters.items():
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            kind = parameter.annotation
            found[name] = kind if isinstance(kind, str) else getattr(kind, "__name__", "str")
    return found


def missing_settings(factory: Callable[..., Any], given: Collection[str]) -> list[str]:
    """Return the settings without a default that are not among those given."""
    parameters = inspect.signature(factory).parameters
    is_required = {name: each.default is each.empty for name, each in parameters.items()}
    return [name for name in settings_of(factory) if is_required[name] and name not in given]


def _owner(entry: Any) -> str:  # Any: its class differs between Python versions
    """The distribution and object of an entry point."""
    package = entry.dist.name if entry.dist else "an unknown package"
    return f"{package}: {entry.value}"
