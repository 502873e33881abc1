"""Arbiters: who rules at a mismatch, and how to name one on the command line."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

from cospec.arbiters.rules import AlwaysDraft, AlwaysTarget, FLy, LogProbGap, RandomOverride
from cospec.errors import ArbiterError, unknown_name

if TYPE_CHECKING:
    from cospec.types import Arbiter

__all__ = [
    "RULES",
    "AlwaysDraft",
    "AlwaysTarget",
    "FLy",
    "LogProbGap",
    "RandomOverride",
    "load_arbiter",
]

RULES = {rule.kind: rule for rule in (AlwaysTarget, AlwaysDraft, RandomOverride, LogProbGap, FLy)}
"""By name, the arbiters that need no weights."""


def load_arbiter(spec: str) -> Arbiter:
    """An arbiter from its spec.

    Args:
        spec: The name of a rule with its knobs, ``NAME`` or ``NAME:key=value,key=value``, such as
            ``lossless``, ``gap:max_gap=1.5`` or ``fly:window=6``.

    Raises:
        ArbiterError: The name or a knob is unknown.
        ConfigError: A value is not allowed.
    """
    kind, _, rest = spec.partition(":")
    if kind not in RULES:
        raise ArbiterError(unknown_name("arbiter", kind, RULES))
    knobs = {f.name: f for f in fields(RULES[kind])}
    values: dict[str, float] = {}
    for part in filter(None, rest.split(",")):
        key, _, text = part.partition("=")
        if key not in knobs:
            allowed = knobs or ["none, this rule has no settings"]
            raise ArbiterError(unknown_name(f"setting of arbiter {kind}:", key, allowed))
        try:
            values[key] = int(text) if knobs[key].type == "int" else float(text)
        except ValueError:
            raise ArbiterError(
                f"{key} of arbiter {kind} is {text!r}; it must be a number "
                f"({knobs[key].type}), as in {RULES[kind]().name!r}."
            ) from None
    return RULES[kind](**values)  # type: ignore[arg-type]
