"""Spider 1.0 (Yu et al. 2018, 1809.08887): questions on databases, each of which is in one split.

The set's own contents are not used: every schema is filled (`filling`), and a query is judged on
the fillings (`judge`). Hashes of their names put 20 of the 140 databases of ``train.jsonl`` into
test and 10 into tune; ``dev_even.jsonl`` is test too. Questions on which the fillings cannot tell
the gold query from a trivial one are left out (`trivial`); ``left_out.json`` lists them, since
finding them takes a minute. The list was made with ``dev_even.jsonl``, half of the development
file. Questions of the whole ``dev.jsonl`` are judged when the task is loaded.
"""

from __future__ import annotations

import json
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from cospec.errors import TaskError, unknown_name
from cospec.tasks.base import Example, Task
from cospec.tasks.files import DataSet, FileSource
from cospec.tasks.sql.dice import stable_hash
from cospec.tasks.sql.fillings import Fillings
from cospec.tasks.sql.judge import Judge
from cospec.tasks.sql.prompt import database_of, question_text, sql_task
from cospec.tasks.sql.schema import from_spider
from cospec.tasks.sql.solution import solution
from cospec.tasks.sql.trivial import why_trivial

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cospec.tasks.base import Split
    from cospec.tasks.files import Row
    from cospec.tasks.sql.schema import Schema

NUM_TEST, NUM_TUNE = 20, 10
"""Databases of the train file that are test and tune."""
_LEFT_OUT = Path(__file__).with_name("left_out.json")
PARTS = ("all", "dev", "train")
"""Parts of the test questions: all, those of the development file, or of the train file."""


def spider(data_dir: Path | None = None, part: str = "all") -> Task:
    """Return the task; ``part`` picks the test questions.

    Raises:
        TaskError: The data cannot be used, or the part is unknown.
    """
    if part not in PARTS:
        raise TaskError(unknown_name("part of spider", part, PARTS))
    data = DataSet("spider", None)
    train = data.rows(("train.jsonl",), "train", data_dir)
    dev = data.rows(("dev_even.jsonl", "dev.jsonl"), "validation", data_dir)
    tables = data.rows(("tables.jsonl",), "tables", data_dir)
    schemas = {row["db_id"]: from_spider(row) for _, row in tables}
    queries: dict[str, list[str]] = {}
    for identity, row in (*train, *dev):
        if row["db_id"] not in schemas:
            raise TaskError(
                f"{identity}: the field 'db_id' is {row['db_id']!r}, and tables.jsonl has no such "
                "database; take both files from one release."
            )
        queries.setdefault(row["db_id"], []).append(row["query"])
    splits = split_databases(row["db_id"] for _, row in train)
    pools: dict[Split, list[Example]] = {"train": [], "tune": [], "test": []}
    judge = Judge(Fillings(schemas, queries))
    for identity, row in _without_left_out(train, judge):
        split = splits[row["db_id"]]
        if split != "test" or part != "dev":
            pools[split].append(_example(identity, row, schemas))
    if part != "train":
        used = _without_left_out(dev, judge)
        pools["test"] += [_example(identity, row, schemas) for identity, row in used]
    name = "spider" if part == "all" else f"spider,part={part}"
    return sql_task(name, FileSource(name, pools, database_of), judge)


def _without_left_out(rows: list[tuple[str, Row]], judge: Judge) -> list[tuple[str, Row]]:
    """Return the questions that the judge can use.

    The bundled list does not cover ``dev.jsonl``: half of its questions were never judged, and
    their queries change the fillings of its databases for the other half.
    """
    listed = read_left_out()
    reason = cache(partial(why_trivial, judge))  # questions come in pairs with the same query

    def is_left_out(identity: str, row: Row) -> bool:
        if identity.startswith("spider/dev/"):
            return reason(row["db_id"], row["query"]) is not None
        return question_hash(row) in listed

    return [(identity, row) for identity, row in rows if not is_left_out(identity, row)]


def question_hash(row: Row) -> str:
    """Return the name of a question's gold query in the list of those left out."""
    return f"{stable_hash(row['db_id'] + '/' + row['query']):016x}"


def read_left_out() -> frozenset[str]:
    """Return the gold queries that `trivial.why_trivial` left out, once for the whole set."""
    return frozenset(json.loads(_LEFT_OUT.read_text(encoding="utf-8")))


def split_databases(names: Iterable[str]) -> dict[str, Split]:
    """Return the split of each database of the train file: the smallest hashes are test."""
    ordered = sorted(set(names), key=lambda name: stable_hash(f"spider/{name}"))
    return {
        name: "test" if i < NUM_TEST else "tune" if i < NUM_TEST + NUM_TUNE else "train"
        for i, name in enumerate(ordered)
    }


def _example(identity: str, row: Row, schemas: dict[str, Schema]) -> Example:
    schema, query = schemas[row["db_id"]], row["query"]
    metadata = {
        "db_id": row["db_id"],
        "group": row["db_id"],
        "query": query,
        "question": row["question"],
        "solution": solution(query, schema.names),
    }
    return Example(identity, question_text(schema, row["question"]), query, metadata)
