"""A small Spider: three schemas with questions, in a data folder of the real layout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from cospec.tasks import load_task
from cospec.tasks.sql.schema import from_spider

from ..conftest import write_lines

if TYPE_CHECKING:
    from pathlib import Path

    from cospec.tasks import Task
    from cospec.tasks.sql.schema import Schema

CONCERTS: dict[str, Any] = {
    "db_id": "concerts",
    "table_names_original": ["singer", "concert", "singer_in_concert"],
    "column_names_original": [
        [-1, "*"],
        [0, "singer_id"],
        [0, "name"],
        [0, "country"],
        [0, "age"],
        [1, "concert_id"],
        [1, "theme"],
        [1, "year"],
        [2, "singer_id"],
        [2, "concert_id"],
    ],
    "column_types": [
        *("text", "number", "text", "text", "number"),
        *("number", "text", "number", "number", "number"),
    ],
    "primary_keys": [1, 5, 8],
    "foreign_keys": [[8, 1], [9, 5]],
}
CONCERT_QUERIES = {
    "How many singers are there?": "SELECT count(*) FROM singer",
    "Names by age, oldest first.": "SELECT name ,  age FROM singer ORDER BY age DESC",
    "Average age of the French.": "SELECT avg(age) FROM singer WHERE country  =  'France'",
    "Who is older than 30?": "SELECT name FROM singer WHERE age  >  30",
    "All countries.": "SELECT DISTINCT country FROM singer",
    "Countries with more than one singer.": (
        "SELECT country ,  count(*) FROM singer GROUP BY country HAVING count(*)  >  1"
    ),
    "Who sang in 2014?": (
        "SELECT T2.name FROM singer_in_concert AS T1 JOIN singer AS T2 ON T1.singer_id  =  "
        'T2.singer_id JOIN concert AS T3 ON T1.concert_id  =  T3.concert_id WHERE T3.year = "2014"'
    ),
    "Who never sang?": (
        "SELECT name FROM singer WHERE singer_id NOT IN (SELECT singer_id FROM singer_in_concert)"
    ),
    "The youngest singer.": "SELECT name FROM singer ORDER BY age LIMIT 1",
    "Countries of singers over 40 and under 20.": (
        "SELECT country FROM singer WHERE age  >  40 INTERSECT "
        "SELECT country FROM singer WHERE age  <  20"
    ),
}


def table(name: str) -> dict[str, Any]:
    """A schema of one table."""
    return {
        "db_id": name,
        "table_names_original": ["item"],
        "column_names_original": [[-1, "*"], [0, "id"], [0, "label"], [0, "Unit Price"]],
        "column_types": ["text", "number", "text", "number"],
        "primary_keys": [1],
        "foreign_keys": [],
    }


@pytest.fixture
def concerts() -> Schema:
    return from_spider(CONCERTS)


@pytest.fixture
def spider_dir(tmp_path: Path) -> Path:
    """A data folder with 40 train databases and one of the development file."""
    root = tmp_path / "data"
    names = [f"shop_{i}" for i in range(40)]
    ask = [
        ("How many items?", "SELECT count(*) FROM item"),
        ("Labels of dear items.", 'SELECT label FROM item WHERE "Unit Price"  >  9'),
    ]
    train = [{"db_id": n, "question": q, "query": sql} for n in names for q, sql in ask]
    dev = [
        {"db_id": "concerts", "question": question, "query": query}
        for question, query in CONCERT_QUERIES.items()
    ]
    write_lines(root / "spider/train.jsonl", train)
    write_lines(root / "spider/dev_even.jsonl", dev)
    write_lines(root / "spider/tables.jsonl", [CONCERTS, *map(table, names)])
    return root


@pytest.fixture
def spider(spider_dir: Path) -> Task:
    return load_task("spider", data_dir=spider_dir)
