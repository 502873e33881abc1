"""A database schema: tables, keys, the text that a prompt shows and the statements that make it."""

from __future__ import annotations

import re
import sqlite3
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from cospec.tasks.sql.solution import rewrite
from cospec.tasks.sql.tokens import tokenize

if TYPE_CHECKING:
    from collections.abc import Mapping

_BEFORE_NAME = {"FROM", "JOIN", ",", "."}
"""Tokens before the name of a table or view that a query reads."""
AFFINITY = {"number": "NUMERIC", "text": "TEXT", "time": "DATETIME", "boolean": "BOOLEAN"}
"""The type of a column, by Spider's word for it."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column."""

    name: str
    kind: str
    """Spider's word (``number``, ``text``, ``time``, ``boolean``, ``others``) or SQLite's type."""


@dataclass(frozen=True, slots=True)
class Table:
    """One table."""

    name: str
    columns: tuple[Column, ...]
    primary_key: tuple[str, ...] = ()
    """Names of its columns; Spider tells only the first of several."""


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """A column whose values are those of another."""

    table: str
    column: str
    to_table: str
    to_column: str


@dataclass(frozen=True, slots=True)
class View:
    """A query with a name, which is read as a table is and holds no rows of its own."""

    name: str
    columns: tuple[str, ...]
    sql: str
    """The statement that makes it."""


@dataclass(frozen=True)
class Schema:
    """All tables and views of one database."""

    name: str
    tables: tuple[Table, ...]
    foreign_keys: tuple[ForeignKey, ...] = ()
    views: tuple[View, ...] = ()

    @cached_property
    def by_name(self) -> dict[str, Table]:
        """Tables by name in lower case."""
        return {table.name.lower(): table for table in self.tables}

    @cached_property
    def names(self) -> dict[str, str]:
        """The schema's spelling of each name (table, view, column), by the name in lower case.

        Where two are alike, tables come before views, and views before columns.
        """
        columns = {name.lower(): name for view in self.views for name in view.columns}
        columns |= {c.name.lower(): c.name for table in self.tables for c in table.columns}
        views = {view.name.lower(): view.name for view in self.views}
        return columns | views | {name: table.name for name, table in self.by_name.items()}

    def prompt_text(self) -> str:
        """Return one ``CREATE TABLE`` a line, with types and keys, as models know it, and views.

        A generated column is shown like any other.
        """
        views = [f"{rewrite(view.sql, self.names)};" for view in self.views]
        return "\n".join([*map(self._create_statement, self.tables), *views])

    def with_views(self, query: str) -> list[str]:
        """Return the query and the statements of all views that it or one of them reads."""
        texts = [query]
        for text in texts if self.views else []:  # which grow meanwhile
            read = {b.value.lower() for a, b in pairwise(tokenize(text)) if a.upper in _BEFORE_NAME}
            texts += [v.sql for v in self.views if v.name.lower() in read and v.sql not in texts]
        return texts

    def _create_statement(self, table: Table) -> str:
        alone = table.primary_key if len(table.primary_key) == 1 else ()
        parts = [
            f"{quote(c.name)} {_type_of(c)}{' PRIMARY KEY' if c.name in alone else ''}".rstrip()
            for c in table.columns
        ]
        if len(table.primary_key) > 1:
            parts.append(f"PRIMARY KEY ({', '.join(map(quote, table.primary_key))})")
        parts += [
            f"FOREIGN KEY ({quote(key.column)}) "
            f"REFERENCES {quote(key.to_table)}({quote(key.to_column)})"
            for key in self.foreign_keys
            if key.table == table.name
        ]
        return f"CREATE TABLE {quote(table.name)} ({', '.join(parts)});"

    def create_statements(self) -> list[str]:
        """Return one CREATE TABLE a table, for a filling, which has no views.

        Keys are not declared: the rows respect them, and without an index SQLite reads rows in
        the order in which they were inserted. No column is generated: all of them are filled.
        """
        return [
            f"CREATE TABLE {force_quote(table.name)} ("
            + ", ".join(
                f"{force_quote(c.name)} {AFFINITY.get(c.kind, 'BLOB')}" for c in table.columns
            )
            + ")"
            for table in self.tables
        ]


def _type_of(column: Column) -> str:
    """Return a column's type as a prompt shows it; nothing where it is not known."""
    return "" if column.kind == "others" else AFFINITY.get(column.kind, column.kind)


_RESERVED = """
    ADD ALL ALTER AND AS AUTOINCREMENT BETWEEN CASE CAST CHECK COLLATE COMMIT CONSTRAINT CREATE
    CURRENT_DATE CURRENT_TIME CURRENT_TIMESTAMP DEFAULT DEFERRABLE DELETE DISTINCT DROP ELSE ESCAPE
    EXCEPT EXISTS FOREIGN FROM GROUP HAVING IF IN INDEX INSERT INTERSECT INTO IS ISNULL JOIN LIMIT
    NOT NOTHING NOTNULL NULL ON OR ORDER PRIMARY RAISE REFERENCES RETURNING SELECT SET TABLE THEN TO
    TRANSACTION UNION UNIQUE UPDATE USING VALUES WHEN WHERE
"""
RESERVED = frozenset(_RESERVED.split())
"""Words that SQLite takes as names in double quotes only; it takes its other keywords plain."""


def quote(name: str) -> str:
    """Return the name as a query has to write it: in double quotes if it is no plain word."""
    is_plain = re.fullmatch(r"[^\W\d]\w*", name) and name.upper() not in RESERVED
    return name if is_plain else force_quote(name)


def force_quote(name: str) -> str:
    """Return the name in double quotes."""
    return '"' + name.replace('"', '""') + '"'


def from_spider(row: Mapping[str, Any]) -> Schema:  # Any: JSON
    """Return the schema that one row of Spider's ``tables.jsonl`` describes."""
    names = row["table_names_original"]
    columns = row["column_names_original"]
    keys = [columns[i] for each in row["primary_keys"] for i in _as_list(each)]
    tables = tuple(
        Table(
            name,
            tuple(
                Column(column, kind)
                for (owner, column), kind in zip(columns, row["column_types"], strict=True)
                if owner == number
            ),
            tuple(column for owner, column in keys if owner == number),
        )
        for number, name in enumerate(names)
        if not name.lower().startswith("sqlite_")  # SQLite's own, in a few schemas
    )
    foreign = tuple(
        ForeignKey(names[columns[a][0]], columns[a][1], names[columns[b][0]], columns[b][1])
        for a, b in row["foreign_keys"]
    )
    return Schema(row["db_id"], tables, foreign)


def _as_list(value: int | list[int]) -> list[int]:
    return value if isinstance(value, list) else [value]


def from_sqlite(name: str, connection: sqlite3.Connection) -> Schema:
    """Return the schema of a database that exists."""
    sql = (
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' "
        "ESCAPE '\\' ORDER BY rowid"
    )
    tables, foreign = [], []
    for (table,) in connection.execute(sql).fetchall():
        info = connection.execute(
            "SELECT name, type, pk FROM pragma_table_xinfo(?) WHERE hidden <> 1", (table,)
        )
        rows = info.fetchall()  # generated columns too, and no inner ones of virtual tables
        key = tuple(name for name, _, pk in sorted(rows, key=lambda r: r[2]) if pk)
        tables.append(Table(table, tuple(Column(n, t.upper()) for n, t, _ in rows), key))
        links = connection.execute(
            'SELECT "from", "table", "to", seq FROM pragma_foreign_key_list(?) ORDER BY id, seq',
            (table,),
        )
        foreign += [(table, *link) for link in links.fetchall()]
    keys = {table.name.lower(): table.primary_key for table in tables}

    def pointed_at(parent: str, column: str | None, place: int) -> str:
        """Return the parent's column of a foreign key, by default that of its key at this place."""
        return column or dict(enumerate(keys.get(parent.lower(), ()))).get(place, "rowid")

    return Schema(
        name,
        tuple(tables),
        tuple(ForeignKey(a, b, c, pointed_at(c, d, place)) for a, b, c, d, place in foreign),
        _views(connection),
    )


def _views(connection: sqlite3.Connection) -> tuple[View, ...]:
    """Return the views of a database that can be read, unlike those whose table is gone."""
    sql = "SELECT name, sql FROM sqlite_master WHERE type = 'view' ORDER BY rowid"
    views = []
    for name, statement in connection.execute(sql).fetchall():
        info = "SELECT name FROM pragma_table_info(?)"
        try:
            columns = tuple(column for (column,) in connection.execute(info, (name,)))
        except sqlite3.OperationalError:
            continue
        views.append(View(name, columns, statement))
    return tuple(views)
