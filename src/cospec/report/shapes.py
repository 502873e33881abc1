"""Shapes of the parts of result files that the report shows, checked before anything is drawn."""

from __future__ import annotations

import math
from typing import Any

_NUMBER = (int, float)
_NULL = type(None)
_MISMATCH = {
    "position": int,
    "draft_text": str,
    "target_text": str,
    "keep_draft": bool,
    "veto": (str, _NULL),
    **dict.fromkeys(
        ("score", "p_draft_id", "p_target_id", "q_draft_id", "q_target_id"), (int, float, _NULL)
    ),
}
TRACE_ROW = {
    **dict.fromkeys(("id", "arm", "question", "answer"), str),
    "extracted": (str, _NULL),
    **dict.fromkeys(("correct", "target_correct"), bool),
    "num_overrides": int,
    "tokens": [[str]],
    "mismatches": [_MISMATCH],
}
"""Row of `cospec trace`."""
ARM = {
    "name": str,
    "arbiter": (str, _NULL),
    **dict.fromkeys(("accuracy", "tokens_per_s", "speedup_vs_target", "mcnemar_p"), _NUMBER),
    **dict.fromkeys(("wins", "losses"), int),
    "accuracy_ci95": [_NUMBER],
}
"""Arm of `cospec eval`, `demo` and `bench`, as far as every view needs it."""
_OPTIONAL = {
    **dict.fromkeys(("num_overrides", "num_problems", "num_groups"), int),
    **dict.fromkeys(("num_texts_unlike_target", "num_turns", "k"), int),
    **dict.fromkeys(("group_p", "speedup_vs_lossless", "mean_acceptance_length"), _NUMBER),
    **dict.fromkeys(
        ("target_forwards_per_token", "target_forwards_per_solved", "seconds_per_solved"), _NUMBER
    ),
    "speedup_vs_target_ci95": [_NUMBER],
    "speedup_vs_lossless_ci95": [_NUMBER],
}


def check_trace(row: Any) -> None:  # Any: JSON
    """Raise ValueError if a recorded problem cannot be shown."""
    check(row, TRACE_ROW, "row")
    for i, token in enumerate(row["tokens"]):
        if len(token) != 2:
            raise ValueError(f"row.tokens[{i}] is {token!r}; it must be a text and an origin")


def check_arm(arm: Any) -> None:  # Any: JSON
    """Raise ValueError if an arm cannot be shown."""
    check(arm, ARM, "arm")
    for name, shape in _OPTIONAL.items():
        if arm.get(name) is not None:
            check(arm[name], shape, f"arm.{name}")
    for name in ("accuracy_ci95", "speedup_vs_target_ci95", "speedup_vs_lossless_ci95"):
        if arm.get(name) is not None and len(arm[name]) != 2:
            raise ValueError(f"arm.{name} is {arm[name]!r}; it must be two numbers")


def check(value: Any, shape: Any, where: str) -> None:  # Any: JSON, and nested shapes
    """Compare JSON with a shape.

    Args:
        value: Value from a file.
        shape: A type, several types, ``[shape]`` for a list, or a mapping for an object that has
            at least these keys.
        where: Place of the value in the file, for the error.

    Raises:
        ValueError: The value has another shape, or a number is not finite.
    """
    kind = type(shape) if isinstance(shape, dict | list) else shape
    kinds = kind if isinstance(kind, tuple) else (kind,)
    is_number = isinstance(value, float | int) and not isinstance(value, bool)
    if (
        not isinstance(value, kinds)
        or (isinstance(value, bool) and bool not in kinds)
        or (is_number and not math.isfinite(value))
    ):
        names = " or ".join("null" if kind is _NULL else kind.__name__ for kind in kinds)
        raise ValueError(f"{where} is {value!r:.80}; it must be {names}, and numbers finite")
    if isinstance(shape, list):
        for i, part in enumerate(value):
            check(part, shape[0], f"{where}[{i}]")
    elif isinstance(shape, dict):
        for key, part in shape.items():
            if key not in value:
                raise ValueError(f"{where} has no {key!r}")
            check(value[key], part, f"{where}.{key}")
