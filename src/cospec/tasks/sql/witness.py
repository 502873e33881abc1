"""Rows on which one query finds something, or just misses it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cospec.tasks.sql.values import fill_pattern, fresh, neighbours

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from cospec.tasks.sql.dice import Dice
    from cospec.tasks.sql.scan import Condition, Facts, Place, Value
    from cospec.tasks.sql.values import Cell, Domain, Key

MAX_COPIES = 24
WIDE = 100_000
"""Spread of values that should be new."""


def witness_rows(
    facts: Facts, domains: Mapping[Key, Domain], dice: Dice
) -> Iterator[tuple[str, dict[str, Cell]]]:
    """Yield tables and cells of rows that fulfil a query together, parents in any order.

    Every other time, rows that miss one condition follow.
    """
    yield from _rows(facts, None, domains, dice)
    if facts.conditions and dice.chance(0.5):
        yield from _rows(facts, dice.pick(facts.conditions), domains, dice)


def _rows(
    facts: Facts, missed: Condition | None, domains: Mapping[Key, Domain], dice: Dice
) -> Iterator[tuple[str, dict[str, Cell]]]:
    places, mentioned = _classes(facts), _mentioned(facts)
    cells: dict[Place, Cell] = {}
    for condition in facts.conditions:
        scope = facts.scopes[condition.place.scope]
        if scope.has_or and dice.chance(0.5):
            continue
        cells[places(condition.place)] = _value(condition, domains, dice, condition is missed)
    shared = _grouped_classes(facts, places)
    fixed = dict(cells)
    for _ in range(min(MAX_COPIES, max(scope.min_count for scope in facts.scopes) + dice.below(2))):
        cells = fixed | {place: cell for place, cell in cells.items() if place in shared}
        for scope in facts.scopes:
            for alias, table in scope.tables.items():
                row: dict[str, Cell] = {}
                for place in mentioned[scope.number, alias]:
                    top = places(place)
                    if top not in cells:
                        cells[top] = fresh(domains[table, place.column], dice, WIDE)
                    row[place.column] = cells[top]
                yield table, row


def _mentioned(facts: Facts) -> dict[tuple[int, str], list[Place]]:
    """Return the columns in joins and conditions, by scope and alias."""
    found: dict[tuple[int, str], list[Place]] = {
        (scope.number, alias): [] for scope in facts.scopes for alias in scope.tables
    }
    pairs = [place for pair in facts.equalities for place in pair]
    for place in dict.fromkeys([*pairs, *(condition.place for condition in facts.conditions)]):
        found[place.scope, place.alias].append(place)
    return found


def _grouped_classes(facts: Facts, places: Callable[[Place], Place]) -> set[Place]:
    """Return columns that are the same in all rows of a group: those of grouped tables."""
    owners = {(place.scope, place.alias) for scope in facts.scopes for place in scope.grouped}
    mentioned = _mentioned(facts)
    return {places(place) for owner in owners for place in mentioned[owner]}


def _classes(facts: Facts) -> Callable[[Place], Place]:
    """Return a function that gives one of all places that a query sets equal to a place."""
    parent: dict[Place, Place] = {}

    def root(place: Place) -> Place:
        while parent.get(place, place) != place:
            place = parent[place]
        return place

    for a, b in facts.equalities:
        if root(a) != root(b):
            parent[root(a)] = root(b)
    return root


def _value(
    condition: Condition, domains: Mapping[Key, Domain], dice: Dice, is_missed: bool
) -> Cell:
    """Return a value that fulfils a condition, or just misses it."""
    operator, values = condition.operator, condition.values
    domain = domains[condition.place.table, condition.place.column]
    if "NULL" in operator:
        wants_null = (operator == "IS NULL") != is_missed
        return None if wants_null else fresh(domain, dice, WIDE)
    is_wanted = is_missed == (condition.is_negated or operator in ("!=", "<>"))
    value: Value = dice.pick(values)
    if operator == "LIKE":
        value = fill_pattern(str(value), dice.pick(["an", "", "o b"]))
    elif operator == "BETWEEN" and is_wanted:
        low, high = values[0], values[-1]
        value = dice.pick([low, high])
        if isinstance(low, int) and isinstance(high, int) and low < high:
            value = low + dice.below(high - low + 1)
    elif operator in ("<", ">", "<=", ">="):
        return _beyond(value, operator, is_wanted, dice)
    if is_wanted:
        return value
    near = neighbours(value)
    return dice.pick(near) if near and dice.chance(0.5) else fresh(domain, dice, WIDE)


def _beyond(value: Value, operator: str, is_wanted: bool, dice: Dice) -> Value:
    """Return a value above or below a bound, or the bound itself where that decides."""
    if operator.endswith("=") == is_wanted and dice.chance(0.3):
        return value
    is_above = (operator[0] == ">") == is_wanted
    if isinstance(value, str):
        near = neighbours(value)
        return (near[-1] if is_above else near[0]) if near else value + ("z" if is_above else "")
    step = dice.pick([1, 2, 5]) if isinstance(value, int) else dice.pick([0.5, 1.5])
    return value + step if is_above else value - step
