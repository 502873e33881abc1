"""Compares the results of two queries: rows in order only where it counts, columns in any order."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cospec.tasks.sql.executor import Rows

Row: TypeAlias = "tuple[object, ...]"
Groups: TypeAlias = "list[list[Row]]"
"""A result cut into runs of rows whose order does not count: one run where no order counts."""

DIGITS, DIGITS_OF_LARGE = 9, 13
"""Significant digits in which equal numbers agree; numbers from 10 ** 9 on need more, since whole
numbers keep all digits."""
MAX_ORDERS = 2_000
"""Orders of columns that are tried before two results count as different."""


def canonical(rows: Rows) -> list[Row]:
    """Return rows with equal cells for equal SQL values: 1 and 1.0, and sums in another order."""
    return [tuple(map(_cell, row)) for row in rows]


def _cell(value: object) -> object:
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return str(value)
    if value.is_integer() and abs(value) < 2**53:
        return int(value)
    digits = DIGITS if abs(value) < 10**DIGITS else DIGITS_OF_LARGE
    rounded = float(f"{value:.{digits - 1}e}")
    return int(rounded) if rounded.is_integer() else rounded


def same_results(gold: Sequence[Groups], found: Sequence[list[Row]]) -> bool:
    """Return whether two queries have the same results on every filling, in one order of columns.

    Args:
        gold: The gold query's result on each filling.
        found: The other query's rows on each filling, canonical.
    """
    pairs = []
    for groups, rows in zip(gold, found, strict=True):
        if sum(map(len, groups)) != len(rows):
            return False
        start = 0
        for group in groups:
            pairs.append((group, rows[start : start + len(group)]))
            start += len(group)
    pairs = [pair for pair in pairs if pair[0]]
    if not pairs:
        return True
    width = len(pairs[0][0][0])
    if any(len(rows[0]) != width for _, rows in pairs):
        return False
    if all(Counter(a) == Counter(b) for a, b in pairs):
        return True
    return width > 1 and any(_fits(pairs, order) for order in _orders(pairs, width))


def _fits(pairs: Sequence[tuple[list[Row], list[Row]]], order: Sequence[int]) -> bool:
    """Return whether columns ``order`` of each second result are the first ones of its partner."""
    width = len(order)
    return all(
        Counter(row[:width] for row in a) == Counter(tuple(row[i] for i in order) for row in b)
        for a, b in pairs
    )


def _orders(pairs: Sequence[tuple[list[Row], list[Row]]], width: int) -> Iterator[list[int]]:
    """Yield orders of columns under which each single column agrees, grown column by column."""

    def contents(side: int, column: int) -> list[Counter[object]]:
        return [Counter(row[column] for row in pair[side]) for pair in pairs]

    def cells(column: int) -> list[list[object]]:
        return [[row[column] for row in pair[1]] for pair in pairs]

    theirs = [contents(1, column) for column in range(width)]
    candidates = [
        [j for j in range(width) if theirs[j] == wanted]
        for wanted in (contents(0, i) for i in range(width))
    ]
    budget = MAX_ORDERS
    stack: list[list[int]] = [[]]
    while stack and budget:
        order = stack.pop()
        budget -= 1
        if order and not _fits(pairs, order):
            continue
        if len(order) == width:
            yield order
            continue
        free: list[int] = []
        for j in candidates[len(order)]:
            # One of several columns that are the same cell by cell stands for all.
            if j not in order and all(cells(j) != cells(other) for other in free):
                free.append(j)
        stack += [[*order, j] for j in reversed(free)]
