"""Random contents of a schema: rows that respect its keys and give gold queries something to find.

A filling is made in two steps. First every column of every table gets values of its domain: primary
keys unique, foreign keys among the values they refer to, some of them often and some never. Then
*witnesses* are planted: for every other gold query, rows that fulfil the query's conditions
together and are linked by its joins, or miss them in one place. Both steps depend on nothing but
schema, queries and the number of the filling.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, TypeAlias

from cospec.tasks.sql.dice import Dice
from cospec.tasks.sql.scan import scan
from cospec.tasks.sql.values import domains, fresh, neighbours
from cospec.tasks.sql.witness import witness_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cospec.tasks.sql.scan import Facts
    from cospec.tasks.sql.schema import ForeignKey, Schema, Table
    from cospec.tasks.sql.values import Cell, Domain, Key

Contents: TypeAlias = "dict[str, list[list[Cell]]]"
"""Rows by table name in lower case."""

SIZES = (8, 14, 20, 28, 36, 12, 24, 44)
"""Rows of a table before witnesses, by filling."""
STEPPED = (2, 6)
"""Fillings in which the values of a column come once, twice, three times and so on, so that neither
the most nor the least frequent one has a tie. They get no witnesses."""


class Filler:
    """Fills one schema, as often as asked."""

    def __init__(self, schema: Schema, queries: Sequence[str]) -> None:
        self.schema = schema
        self.facts: list[Facts] = [scan(query, schema) for query in dict.fromkeys(queries)]
        self.domains: dict[Key, Domain] = domains(schema, self.facts)
        self.foreign: dict[Key, ForeignKey] = {}
        for key in schema.foreign_keys:
            own, other = (key.table.lower(), key.column), (key.to_table.lower(), key.to_column)
            if own != other:
                self.foreign.setdefault(own, key)
        self.unique = {name: self._unique_columns(table) for name, table in schema.by_name.items()}

    def fill(self, number: int) -> Contents:
        """Return the contents of one filling."""
        return _Filling(self, number).contents()

    def _unique_columns(self, table: Table) -> list[tuple[str, ...]]:
        """Return the sets of columns in which no two rows agree.

        Spider tells one column of a primary key even where it has several. Where that column is one
        of several foreign keys, the table links other tables, and all its links are the key. Where
        it is the only foreign key and gold queries group this table by it, it is not unique.
        """
        name, key = table.name.lower(), table.primary_key
        links = [c.name for c in table.columns if (name, c.name) in self.foreign]
        if len(key) != 1 or key[0] not in links:
            return [key] if key else []
        if len(links) > 1:
            return [tuple(links)]
        return [] if self.domains[name, key[0]].name in self._grouped(name) else [key]

    def _grouped(self, table: str) -> set[str]:
        """Return the domains by which gold queries group a table."""
        return {
            self.domains[place.table, place.column].name
            for facts in self.facts
            for scope in facts.scopes
            if table in scope.tables.values()
            for place in scope.grouped
        }


class _Filling:
    def __init__(self, filler: Filler, number: int) -> None:
        self.filler = filler
        self.number = number
        self.dice = Dice("filling", filler.schema.name, number)
        self.size = SIZES[number % len(SIZES)]
        self.spread = (6, 1000)[number % 2]
        self.is_stepped = number % len(SIZES) in STEPPED
        self.tables = filler.schema.by_name
        self.columns: dict[Key, list[Cell]] = {}
        self.num_rows: dict[str, int] = {}
        self.in_work: set[Key] = set()
        self.rows: Contents = {}
        self.places = {
            name: {c.name: i for i, c in enumerate(table.columns)}
            for name, table in self.tables.items()
        }

    def contents(self) -> Contents:
        for name in self.tables:
            self.num_rows[name] = max(3, round(self.size * self.dice.between(0.6, 1.3)))
        for name, table in self.tables.items():
            columns = [self._column(name, column.name) for column in table.columns]
            self.rows[name] = self._without_doubles(
                table, [list(row) for row in zip(*columns, strict=True)]
            )
        self._plant()
        return self.rows

    def _column(self, table: str, column: str) -> list[Cell]:
        key = table, column
        if key not in self.columns:
            self.in_work.add(key)
            self.columns[key] = self._make_column(key)
            self.in_work.discard(key)
        return self.columns[key]

    def _make_column(self, key: Key) -> list[Cell]:
        table, column = key
        num_rows = self.num_rows[table]
        is_key = (column,) in self.filler.unique[table]
        link = self.filler.foreign.get(key)
        if link is not None and (link.to_table.lower(), link.to_column) not in self.in_work:
            parents = self.dice.shuffled(self._column(link.to_table.lower(), link.to_column))
            if is_key:
                missing: list[Cell] = [None] * (num_rows - len(parents))  # drops these rows
                return parents[:num_rows] + missing
            used = parents[: max(1, round(len(parents) * 0.8))]
            if self.is_stepped:
                return self._steps(list(dict.fromkeys(used)), num_rows)
            return [self.dice.skewed(used) for _ in range(num_rows)]
        if is_key:
            found: list[Cell] = []
            for _ in range(num_rows):
                found.append(self._unused(key, found))
            return found
        if self.is_stepped and not self.filler.domains[key].has_null:
            values = dict.fromkeys(self.value(key) for _ in range(num_rows))
            return self._steps(list(values), num_rows)
        return [self.value(key) for _ in range(num_rows)]

    def _steps(self, values: Sequence[Cell], num_rows: int) -> list[Cell]:
        """Return the first value once, the second twice and so on, shuffled, one for each row."""
        found: list[Cell] = []
        for i, value in enumerate(values):
            rest = num_rows - len(found)
            is_last = rest < 2 * i + 3 or i == len(values) - 1
            found += [value] * (rest if is_last else i + 1)
            if is_last:
                break
        return self.dice.shuffled(found)

    def _unused(self, key: Key, used: Sequence[Cell]) -> Cell:
        domain, taken = self.filler.domains[key], set(used)
        spread = 4 * self.num_rows[key[0]]
        for _ in range(20):
            if (value := self._draw(domain, spread, 0.3)) not in taken:
                return value
        if isinstance(value, str):
            return next(f"{value}{i}" for i in itertools.count() if f"{value}{i}" not in taken)
        return max(each for each in taken if isinstance(each, int | float)) + 1

    def value(self, key: Key) -> Cell:
        """Return a value for a column that is no key."""
        domain = self.filler.domains[key]
        if domain.has_null and self.dice.chance(0.15):
            return None
        return self._draw(domain, self.spread, 0.5)

    def _draw(self, domain: Domain, spread: int, literal_share: float) -> Cell:
        if domain.literals and self.dice.chance(literal_share):
            value = self.dice.pick(domain.literals)
            near = neighbours(value)
            return self.dice.pick(near) if near and self.dice.chance(0.5) else value
        return fresh(domain, self.dice, spread)

    def _without_doubles(self, table: Table, rows: list[list[Cell]]) -> list[list[Cell]]:
        kept, seen = [], set()
        places = self.places[table.name.lower()]
        for row in rows:
            keys = [
                (columns, tuple(row[places[c]] for c in columns))
                for columns in self.filler.unique[table.name.lower()]
            ]
            if not any(key in seen or None in key[1] for key in keys):
                seen.update(keys)
                kept.append(row)
        return kept

    def _plant(self) -> None:
        if self.is_stepped:
            return
        for facts in self.filler.facts[self.number % 2 :: 2]:
            for table, cells in witness_rows(facts, self.filler.domains, self.dice):
                self._upsert(table, cells)

    def _upsert(self, table: str, cells: dict[str, Cell]) -> None:
        """Adds a row with these cells, or changes the one that has its key; parents are added."""
        for column, value in cells.items():
            link = self.filler.foreign.get((table, column))
            if link is not None and value is not None:
                self._need_parent(link, value)
        places = self.places[table]
        row: list[Cell] = [self._other_cell(table, c, cells) for c in places]
        for columns in self.filler.unique[table]:
            key = [row[places[c]] for c in columns]
            for old in self.rows[table]:
                if [old[places[c]] for c in columns] == key:
                    for column, value in cells.items():
                        old[places[column]] = value
                    return
        self.rows[table].append(row)

    def _other_cell(self, table: str, column: str, cells: dict[str, Cell]) -> Cell:
        if column in cells:
            return cells[column]
        key = table, column
        if (link := self.filler.foreign.get(key)) is not None:
            place = self.places[link.to_table.lower()][link.to_column]
            parents = [row[place] for row in self.rows[link.to_table.lower()]]
            if parents:
                return self.dice.pick(parents)
        if (column,) in self.filler.unique[table]:
            place = self.places[table][column]
            return self._unused(key, [row[place] for row in self.rows[table]])
        return self.value(key)

    def _need_parent(self, link: ForeignKey, value: Cell) -> None:
        table = link.to_table.lower()
        place = self.places[table][link.to_column]
        if all(row[place] != value for row in self.rows[table]):
            self._upsert(table, {link.to_column: value})
