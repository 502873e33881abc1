"""A user's own databases: ``sql:FOLDER``, SQLite files and questions with their gold queries.

The folder holds each database as ``NAME.sqlite`` or ``NAME/NAME.sqlite``, and the questions in one
``.jsonl`` file: ``{"db_id": "NAME", "question": …, "query": …}`` a line, and a ``split`` if the
rows are to be split by hand. Without it a hash of the question parts them, or ``split=test`` after
the folder makes all of them one split. Queries run on the files as they are, read-only. Questions
whose gold result is empty, or not one answer (a LIMIT that cuts a tie: `judge`), are left out, and
a note in the log counts them.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from cospec.errors import TaskError, unknown_name
from cospec.tasks.base import SPLITS, Example
from cospec.tasks.files import FileSource, by_hash, named, read_rows
from cospec.tasks.splits import normalize
from cospec.tasks.sql.executor import QueryError
from cospec.tasks.sql.judge import Judge
from cospec.tasks.sql.prompt import database_of, question_text, sql_task
from cospec.tasks.sql.schema import from_sqlite
from cospec.tasks.sql.solution import solution
from cospec.tasks.sql.trivial import is_empty

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cospec.tasks.base import Task
    from cospec.tasks.files import Row
    from cospec.tasks.sql.schema import Schema

_log = logging.getLogger(__name__)
FIELDS = ("db_id", "question", "query")


class Folder:
    """The databases of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.schema = cache(self._schema)
        self.digest = cache(self._digest)

    def paths(self, db_id: str) -> Sequence[str]:
        """Return the one file of a database.

        Raises:
            TaskError: There is none.
        """
        for path in (
            self.folder / f"{db_id}.sqlite",
            self.folder / db_id / f"{db_id}.sqlite",
        ):
            if path.is_file() and Path(db_id).name == db_id:
                log = Path(f"{path}-wal")
                if log.is_file() and log.stat().st_size:
                    raise TaskError(
                        f"{log} holds changes that are not in the database yet, and it is read as "
                        "it is; close what writes to it, or run 'PRAGMA wal_checkpoint(TRUNCATE)'."
                    )
                return [str(path.resolve())]
        raise TaskError(
            f"there is no database {db_id!r} in {self.folder}; it must be {db_id}.sqlite or "
            f"{db_id}/{db_id}.sqlite there."
        )

    def _schema(self, db_id: str) -> Schema:
        (path,) = self.paths(db_id)
        try:
            # Immutable, or a database in WAL mode would get files beside it.
            uri = f"{Path(path).as_uri()}?mode=ro&immutable=1"
            with closing(sqlite3.connect(uri, uri=True)) as connection:
                return from_sqlite(db_id, connection)
        except sqlite3.Error as error:
            raise TaskError(f"{path} is no SQLite database that can be read: {error}.") from error

    def _digest(self, db_id: str) -> str:
        (path,) = self.paths(db_id)
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def own(folder: str, whole: str | None = None) -> Task:
    """Return the task of a folder, without questions whose gold result is empty or not one answer.

    A result of one row of zeros and NULLs counts as empty: too many wrong queries give it.

    Raises:
        TaskError: A database, a row or a gold query cannot be used, or no question is left.
    """
    home = Path(os.path.expanduser(folder))
    # The log of an unfinished run may lie beside it.
    files = sorted(f for f in home.glob("*.jsonl") if not f.name.endswith(".part.jsonl"))
    if len(files) != 1:
        raise TaskError(
            f"sql:{folder} needs one .jsonl file with the questions in the folder; it has "
            f"{len(files)}."
        )
    databases = Folder(home)
    judge = Judge(databases)
    rows = read_rows(files[0])
    examples = [
        example
        for number, row in enumerate(rows)
        if (example := _example(f"{files[0].stem}/{number}", row, judge, databases)) is not None
    ]
    if num_left_out := len(rows) - len(examples):
        _tell_left_out(f"{num_left_out} of {len(rows)} questions of {files[0]}", bool(examples))
    pools = by_hash(examples, whole)
    has_split = ["split" in example.metadata for example in examples]
    if whole is None and any(has_split):
        if not all(has_split):
            raise TaskError(
                f"{has_split.count(False)} of {len(examples)} rows of {files[0]} have no field "
                "'split'; give it to all of them or to none."
            )
        _check_apart(examples)
        pools = {split: [e for e in examples if e.metadata["split"] == split] for split in SPLITS}
    name = named(f"sql:{folder}", whole)
    num_shots = 3 if len(pools["train"]) > 3 else 0
    return sql_task(name, FileSource(name, pools, database_of), judge, num_shots)


def _check_apart(examples: Sequence[Example]) -> None:
    """Refuse a question on a database that is in two splits."""
    seen: dict[tuple[str, str], Example] = {}
    for one in examples:
        key = database_of(one), normalize(one.question)
        first = seen.setdefault(key, one)
        if first.metadata["split"] != one.metadata["split"]:
            raise TaskError(
                f"{one.id} asks what {first.id} asks, and their splits are "
                f"{one.metadata['split']!r} and {first.metadata['split']!r}; give both one."
            )


def _tell_left_out(counted: str, some_remain: bool) -> None:
    """Note how many questions cannot be used, or raise if these are all."""
    text = f"{counted} are left out: their gold results are empty, 0 or NULL, or not one answer"
    if not some_remain:
        raise TaskError(f"{text} (a LIMIT cuts a tie). Correct the queries.")
    _log.warning("note: %s", text)


def _example(identity: str, row: Row, judge: Judge, databases: Folder) -> Example | None:
    for field in FIELDS:
        if not isinstance(row.get(field), str):
            raise TaskError(
                f"{identity} has no text in the field {field!r}; its fields are "
                f"{', '.join(map(repr, row))}, and {', '.join(FIELDS)} are needed."
            )
    if "split" in row and row["split"] not in SPLITS:
        raise TaskError(f"{identity}: {unknown_name('split', str(row['split']), SPLITS)}")
    if judge.asks_the_clock(row["db_id"], row["query"]):
        raise TaskError(
            f"{identity}: the gold query, or a view that it reads, asks the clock, so that its "
            f"result changes from day to day ({row['query'][:60]!r}); write the date."
        )
    schema = databases.schema(row["db_id"])
    try:
        gold = judge.gold(row["db_id"], row["query"])
    except QueryError as error:
        raise TaskError(
            f"{identity}: the gold query has no result ({error}); correct it, or leave its "
            "question out."
        ) from error
    if is_empty(gold) or not gold.is_one_answer:
        return None
    metadata = {"group": row["db_id"], **row, "solution": solution(row["query"], schema.names)}
    metadata["database_sha256"] = databases.digest(row["db_id"])  # tells runs on another apart
    return Example(identity, question_text(schema, row["question"]), row["query"], metadata)
