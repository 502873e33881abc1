"""Wrapping functions of vLLM in place."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_MARK = "__cospec__"
"""Attribute set on every wrapped function."""


def wrap_once(
    owner: Any,  # Any: a class or a module of vLLM
    name: str,
    wrapper: Callable[[Any], Any],  # Any: a function of any signature
) -> None:
    """Replace a function by a wrapper around it; a second call does nothing.

    Args:
        owner: Class or module that has the function as an attribute.
        name: Its name there.
        wrapper: Takes the function, and returns the one to put in its place.

    Raises:
        AttributeError: There is no such function.
    """
    stock = getattr(owner, name)
    if not hasattr(stock, _MARK):
        wrapped = functools.wraps(stock)(wrapper(stock))
        setattr(wrapped, _MARK, True)
        setattr(owner, name, wrapped)
