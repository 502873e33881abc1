"""The pairs and arbiters that ship with the package, by name; knows nothing of models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import cospec
from cospec.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Sequence

BUNDLED = "bundled:"
"""Prefix of the names of bundled pairs."""
BUNDLED_PAIRS = {"family": ("target", "family"), "specialist": ("generalist", "specialist")}
"""Folders of the target and of the draft, by name."""
BUNDLED_ARBITERS = ("bundled", "bundled-scalar")
"""Names of the trained arbiters that ship with each pair; the first sees hidden states."""


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


def bundled_name(folders: Sequence[str | None]) -> str | None:
    """Name of the pair that ships with the package in these folders; None if there is none.

    Args:
        folders: Folders of the target and of the draft.
    """
    for name, pair in BUNDLED_PAIRS.items():
        if list(folders) == [str(bundled_home() / folder) for folder in pair]:
            return f"{BUNDLED}{name}"
    return None


def bundled_arbiter_folder(pair: str, name: str) -> Path:
    """Folder of a trained arbiter that ships with a pair; it need not exist.

    Args:
        pair: ``bundled:`` and a pair, or the pair alone.
        name: One of `BUNDLED_ARBITERS`.
    """
    suffix = name.removeprefix("bundled")
    return bundled_home() / "arbiters" / f"{pair.removeprefix(BUNDLED)}{suffix}"


def bundled_arbiter(spec: str, pair: str | None) -> str:
    """Return the spec of an arbiter with its folder in place of a bundled name.

    Args:
        spec: Spec as given; ``bundled`` is the trained arbiter that ships with the pair,
            ``bundled-scalar`` one that does not see the models' states. Other specs stay.
        pair: Name of the pair; None if it is not a bundled one.

    Raises:
        ConfigError: No such arbiter ships with the pair.
    """
    name, colon, knobs = spec.partition(":")
    if name not in BUNDLED_ARBITERS:
        return spec
    folder = bundled_arbiter_folder(str(pair), name)
    if pair is None or not folder.is_dir():
        raise ConfigError(
            f"arbiter {name} needs a bundled pair that ships with a trained arbiter, and got "
            f"{pair or 'none'}; load one, such as bundled:family, or name a rule or a folder."
        )
    return f"{folder}{colon}{knobs}"
