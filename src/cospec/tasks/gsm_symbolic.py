"""The 85 templates of reasoning-gym's gsm_symbolic, and which of them a task uses.

Each problem is one of 85 word problems (`TEMPLATES`) with other names and numbers. A task that is
restricted to some templates makes it possible to test on word problems that nothing was trained on.
"""

from __future__ import annotations

import re
from functools import cache

from cospec.errors import TaskError
from cospec.tasks.extras import import_extra

NAME = "gsm_symbolic"
SUFFIX = " Give the result as your final answer. Do not include units."
"""End of every question, which is hashed with it and shown without."""
TEMPLATE = "gsm_template"
"""Key of the template in an example's metadata. A user's row may have a ``template`` of its own."""
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


@cache
def all_templates() -> tuple[int, ...]:
    """Numbers of all templates, as reasoning-gym counts them: 85 of those from 0 to 99."""
    module = import_extra(
        "reasoning_gym.arithmetic.gsm_symbolic.gsm_symbolic", "reasoning-gym", "tasks"
    )
    return tuple(module.tasks_ok)


def parse_templates(text: str, *, excluded: bool = False) -> frozenset[int]:
    """Return the templates that a list such as ``3/7/20-29`` names, or all others.

    Args:
        text: Numbers and ranges, separated by slashes; a range takes those of its numbers that
            are templates.
        excluded: Whether the list names the templates to leave out.

    Raises:
        TaskError: The list is no such list, names no template, or leaves none.
    """
    known = set(all_templates())
    named: set[int] = set()
    for part in text.split("/"):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        first, last = (int(g or match[1]) for g in match.groups()) if match else (0, -1)
        found = known & set(range(first, last + 1))
        if not found:
            raise TaskError(
                f"{part!r} in the list of templates {text!r} names no template of {NAME}; "
                f"write numbers and ranges such as 3/7/20-29, of {_shown(known)}."
            )
        named |= found
    chosen = known - named if excluded else named
    if not chosen:
        raise TaskError(f"without the templates {text!r} there are none left of {NAME}.")
    return frozenset(chosen)


def twin_key(template: int, question: str) -> str:
    """Return a key that problems share if only names differ: the template and all numbers."""
    return f"{template} {' '.join(_NUMBER.findall(question))}"


def _shown(numbers: set[int]) -> str:
    """Return numbers as a list with ranges."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return "/".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)
