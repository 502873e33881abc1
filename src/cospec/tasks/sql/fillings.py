"""Fillings as SQLite files in a temporary folder, made when a schema is first asked for."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import weakref
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from cospec.tasks.sql.filling import Filler
from cospec.tasks.sql.schema import force_quote

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cospec.tasks.sql.filling import Contents
    from cospec.tasks.sql.schema import Schema

NUM_FILLINGS = 8


class Fillings:
    """The databases of schemas that come without contents."""

    def __init__(self, schemas: Mapping[str, Schema], queries: Mapping[str, Sequence[str]]) -> None:
        self.schemas = schemas
        self.queries = queries
        self._folder = Path(tempfile.mkdtemp(prefix="cospec-sql-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._paths: dict[str, list[str]] = {}

    def schema(self, db_id: str) -> Schema:
        """The schema of that name."""
        return self.schemas[db_id]

    def paths(self, db_id: str) -> Sequence[str]:
        """Its fillings."""
        if db_id not in self._paths:
            schema = self.schemas[db_id]
            filler = Filler(schema, self.queries[db_id])
            paths = []
            for number in range(NUM_FILLINGS):
                path = self._folder / f"{db_id}-{number}.sqlite"
                write(path, schema, filler.fill(number))
                paths.append(str(path))
            self._paths[db_id] = paths
        return self._paths[db_id]


def write(path: Path, schema: Schema, contents: Contents) -> None:
    """Makes a SQLite file of a filling."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA synchronous = OFF")
        for statement in schema.create_statements():
            connection.execute(statement)
        for table in schema.tables:
            marks = ", ".join("?" * len(table.columns))
            connection.executemany(
                f"INSERT INTO {force_quote(table.name)} VALUES ({marks})",
                contents[table.name.lower()],
            )
