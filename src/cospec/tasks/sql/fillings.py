"""Fillings as SQLite files in a temporary folder, made when a schema is first asked for.

The folder is locked as long as it is used, and removed afterwards. A process that is killed cannot
do so: the kernel takes its lock away, and whoever makes the next folder removes that one as well.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
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
_PREFIX = "cospec-fillings-"
_UNLOCKED_S = 60.0
"""Age of a folder in seconds up to which its process may not have locked it yet."""


class Fillings:
    """The databases of schemas that come without contents."""

    def __init__(self, schemas: Mapping[str, Schema], queries: Mapping[str, Sequence[str]]) -> None:
        self.schemas = schemas
        self.queries = queries
        self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        now = self._folder.stat().st_mtime
        for path in self._folder.parent.glob(f"{_PREFIX}*"):
            _remove_if_left(path, now)
        held = os.open(self._folder, os.O_RDONLY)
        with contextlib.suppress(OSError):  # no locks on this file system: nobody can take one
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        weakref.finalize(self, _remove, self._folder, held)
        self._paths: dict[str, list[str]] = {}

    def schema(self, db_id: str) -> Schema:
        """Return the schema of that name."""
        return self.schemas[db_id]

    def paths(self, db_id: str) -> Sequence[str]:
        """Return the files of its fillings."""
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


def _remove_if_left(folder: Path, now: float) -> None:
    """Remove a folder of a process that was killed: it is old enough, ours, and not locked."""
    try:
        about = folder.lstat()
        if about.st_uid != os.getuid() or now - about.st_mtime < _UNLOCKED_S:
            return
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:  # another process has removed it
        return
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # its process lives, or nobody can tell
        os.close(held)
    else:
        _remove(folder, held)


def _remove(folder: Path, held: int) -> None:
    """Remove a folder, and then its lock."""
    shutil.rmtree(folder, ignore_errors=True)
    os.close(held)


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
