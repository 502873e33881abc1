"""Imports an optional package only when it is needed."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from cospec.errors import MissingExtraError

if TYPE_CHECKING:
    from types import ModuleType


def import_extra(module: str, what: str, extra: str) -> ModuleType:
    """Return the module, or raise an error that has the command to install it.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise MissingExtraError(what, extra) from None
