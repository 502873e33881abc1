"""The train databases in two halves: one tunes drafts, the other trains arbiters.

An arbiter learns nothing true about a draft from questions that the draft was tuned on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cospec.tasks.sql.dice import stable_hash

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cospec.tasks import Example

PART_SIZE = 16
LONGEST_PREFIX = 400
"""Most tokens that the prompts of a database share. Databases with longer schemas are left out of
training because they cost most."""


def half(examples: Sequence[Example], name: str) -> list[Example]:
    """The questions of one half, ``draft`` or ``arbiter``, in their order.

    Raises:
        ValueError: There is no such half.
    """
    if name not in ("draft", "arbiter"):
        raise ValueError(f"unknown half {name!r}; it is draft or arbiter.")
    is_draft = {e.id: stable_hash(f"half/{e.metadata['db_id']}") % 2 == 0 for e in examples}
    return [example for example in examples if is_draft[example.id] == (name == "draft")]


def one_wording(examples: Sequence[Example]) -> list[Example]:
    """The first question of each gold query: Spider asks most of them in two wordings."""
    first = {(example.metadata["db_id"], example.answer): example for example in reversed(examples)}
    return [e for e in examples if first[e.metadata["db_id"], e.answer] is e]


def parts(examples: Sequence[Example]) -> dict[str, list[Example]]:
    """Questions of one database each, 16 of every database before the next 16 of any.

    The names are DATABASE.0, DATABASE.1 and so on.
    """
    databases: dict[str, list[Example]] = {}
    for example in examples:
        databases.setdefault(example.metadata["db_id"], []).append(example)
    found = [
        (start // PART_SIZE, name, some[start : start + PART_SIZE])
        for name, some in databases.items()
        for start in range(0, len(some), PART_SIZE)
    ]
    found.sort(key=lambda part: part[0])
    return {f"{name}.{number}": some for number, name, some in found}
