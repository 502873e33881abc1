"""Values for the columns of a filling: literals of the gold queries, their neighbours, and others.

Columns that a foreign key or a gold query sets equal share one `Domain`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cospec.tasks.sql.dice import Dice
    from cospec.tasks.sql.scan import Condition, Facts, Value
    from cospec.tasks.sql.schema import Schema

Cell: TypeAlias = "int | float | str | None"
Key: TypeAlias = "tuple[str, str]"
"""Table in lower case, and column."""

_WORDS = """
    amber birch cedar delta ember fjord grove haven iris jade karst lilac maple north opal pearl
    quartz river slate tulip umber violet willow xenon yarrow zephyr anchor beacon canyon dune
    echo falcon garnet harbor island jasper kestrel lagoon meadow nectar orchid prairie quill
    raven saffron timber upland valley walnut
"""
WORDS = _WORDS.split()
_DATE = re.compile(r"(\d{4})-(\d\d?)-(\d\d?)(.*)", re.DOTALL)


@dataclass(slots=True)
class Domain:
    """The values of a class of columns."""

    name: str
    kind: str = "number"
    literals: list[Value] = field(default_factory=list)
    """Values that gold queries compare these columns with; patterns are filled out."""
    has_null: bool = False
    """Some gold query asks for NULL."""
    is_summed: bool = False
    """Some gold query adds these columns up, so that they hold numbers, even as text."""


def domains(schema: Schema, facts: Iterable[Facts]) -> dict[Key, Domain]:
    """Return the domain of each column."""
    facts = list(facts)
    kinds = {
        (table.name.lower(), column.name): column.kind
        for table in schema.tables
        for column in table.columns
    }
    parent = {key: key for key in kinds}

    def root(key: Key) -> Key:
        while parent[key] != key:
            key = parent[key]
        return key

    for fk in schema.foreign_keys:
        parent[root((fk.table.lower(), fk.column))] = root((fk.to_table.lower(), fk.to_column))
    for each in facts:
        for a, b in (*each.equalities, *each.exclusions):
            parent[root((a.table, a.column))] = root((b.table, b.column))
    by_root: dict[Key, Domain] = {}
    for key in parent:
        top = root(key)
        domain = by_root.setdefault(top, Domain(top[1].lower(), kinds[top]))
        if kinds[key] == "text" and domain.kind == "number":
            domain.kind = "text"
    found = {key: by_root[root(key)] for key in parent}
    for each in facts:
        for condition in each.conditions:
            _add_literals(found[condition.place.table, condition.place.column], condition)
        for place in each.summed:
            found[place.table, place.column].is_summed = True
    return found


def _add_literals(domain: Domain, condition: Condition) -> None:
    if "NULL" in condition.operator:
        domain.has_null = True
    is_pattern = condition.operator == "LIKE"
    for each in condition.values:
        value = fill_pattern(str(each)) if is_pattern else each
        if value not in domain.literals:
            domain.literals.append(value)


def fill_pattern(pattern: str, filler: str = "an") -> str:
    """Return a text that a LIKE pattern matches."""
    return pattern.replace("%", filler).replace("_", "x")


def neighbours(value: Value) -> list[Value]:
    """Return values next to a literal, so that > differs from >= and = from LIKE."""
    if isinstance(value, int):
        return [value - 1, value + 1]
    if isinstance(value, float):
        return [value - 0.5, value + 0.5]
    if value.isdigit() and len(value) < 15:
        return [str(int(value) + 1).zfill(len(value))]
    if match := _DATE.fullmatch(value):
        year = int(match[1])
        return [f"{year + step:04d}-{match[2]}-{match[3]}{match[4]}" for step in (-1, 1)]
    return []


def fresh(domain: Domain, dice: Dice, spread: int) -> Value:
    """Return a value that no literal asks for; a large spread makes ties rare."""
    name, numbers = domain.name, [v for v in domain.literals if isinstance(v, int | float)]
    if domain.kind == "boolean":
        texts = [v for v in domain.literals if isinstance(v, str)]
        return dice.pick(["T", "F"]) if texts else dice.below(2)
    if domain.is_summed or (domain.kind == "number" and not (domain.literals and not numbers)):
        return _fresh_number(name, numbers, dice, spread)
    texts = [v for v in domain.literals if isinstance(v, str)]
    if domain.kind == "time" or _is_dated(name) or any(_DATE.fullmatch(v) for v in texts):
        return _fresh_time(name, texts, dice, spread)
    if texts and all(v.isdigit() for v in texts):
        width = max(map(len, texts))
        return str(dice.below(10 ** min(width, 12))).zfill(width)
    if "year" in name:
        return str(1990 + dice.below(min(spread, 30)))
    word = WORDS[dice.below(min(spread, len(WORDS)))]
    return word.title() if spread <= len(WORDS) else f"{word.title()} {dice.below(spread)}"


def _is_dated(name: str) -> bool:
    return re.search(r"date|timestamp|birthday|(^|_)dob$", name) is not None


def _fresh_number(
    name: str, numbers: Sequence[int | float], dice: Dice, spread: int
) -> int | float:
    if numbers:
        low, high = min(numbers), max(numbers)
        width = max(high - low, abs(high) / 2, 4)
        value = dice.between(low - width / 2, high + width / 2)
        value = abs(value) if low >= 0 else value
        is_whole = all(isinstance(v, int) for v in numbers)
        if width > 2 * spread or not is_whole:  # few distinct values: on a grid
            step = 2 * width / spread
            value = low + round((value - low) / step) * step
            value = abs(value) if low >= 0 else value
        return round(value) if is_whole else round(value, 2)
    if "year" in name:
        return 1990 + dice.below(min(spread, 34))
    return 1 + dice.below(spread)


def _fresh_time(name: str, texts: Sequence[str], dice: Dice, spread: int) -> str:
    day = dice.below(spread)
    date = f"{2000 + day % 21:04d}-{1 + day % 12:02d}-{1 + day % 28:02d}"
    clock = f"{day % 24:02d}:{day * 7 % 60:02d}:00"
    has_dates = not texts or any(_DATE.match(v) for v in texts)
    has_clock = any(":" in v for v in texts) or "time" in name or "stamp" in name
    if has_dates and ("date" in name or "day" in name or not has_clock or "stamp" in name):
        return f"{date} {clock}" if has_clock else date
    return clock if has_clock else date
