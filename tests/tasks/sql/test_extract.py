"""Queries in answers, and gold queries in the models' writing."""

from __future__ import annotations

import time

import pytest

from cospec.tasks.sql.extract import extract_query
from cospec.tasks.sql.solution import plain_strings, rewrite, solution
from cospec.tasks.sql.tokens import tokenize


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("```sql\nSELECT 1;\n```", "SELECT 1"),
        ("Here it is:\n```sql\nSELECT 1\n```\nIt counts.", "SELECT 1"),
        ("```SQL\nSELECT 1; SELECT 2;\n```", "SELECT 1"),
        ("```sqlite\nSELECT 1\n```", "SELECT 1"),
        ("```\nSELECT 1\n```", "SELECT 1"),
        ("```python\nprint()\n```\n```sql\nSELECT 1\n```", "SELECT 1"),
        ("```sql\nSELECT ';' FROM t; --", "SELECT ';' FROM t"),
        ("```sql SELECT 1```", "SELECT 1"),
        ("```sql\n-- the count\nSELECT 1\n```", "-- the count\nSELECT 1"),
        ("SELECT a\nFROM t;", "SELECT a\nFROM t"),
        ("The query is: select a FROM t", "select a FROM t"),
        (
            "I select this.\nWITH x AS (SELECT 1) SELECT * FROM x",
            "WITH x AS (SELECT 1) SELECT * FROM x",
        ),
        ("```sql\n```", None),
        ("I cannot do that.", None),
        ("", None),
    ],
)
def test_the_query_of_an_answer_is_found(text: str, query: str | None) -> None:
    assert extract_query(text) == query


@pytest.mark.parametrize(
    "text",
    [
        "`" * 200_000,
        "'" * 200_001,
        "/*" * 100_000,
        "SELECT " * 30_000,
        " " * 200_000,
        "--" * 100_000,
        "(" * 200_000,
    ],
)
def test_degenerate_text_takes_no_long_time(text: str) -> None:
    start = time.process_time()
    extract_query(text)
    extract_query(f"```sql\n{text}")
    assert time.process_time() - start < 3


def test_tokens_are_those_of_sqlite() -> None:
    tokens = tokenize("SELECT a.\"b\"\"c\", 'it''s',[x y],`z` -- no\n<>1.5e3/* no */")
    assert [token.value for token in tokens] == [
        *("SELECT", "a", ".", 'b"c', ",", "it's", ",", "x y", ",", "z", "<>", "1.5e3")
    ]


@pytest.mark.parametrize(
    ("query", "written"),
    [
        ("select count ( * ) from t", "SELECT COUNT(*) FROM t"),
        ('SELECT a ,  b FROM t WHERE c  =  "it\'s";', "SELECT a, b FROM t WHERE c = 'it''s'"),
        (
            "SELECT T1.a FROM t AS T1 JOIN u AS T2 ON T1.x = T2.x GROUP BY T1.a having max(b)>=3",
            "SELECT T1.a FROM t AS T1 JOIN u AS T2 ON T1.x = T2.x GROUP BY T1.a HAVING MAX(b) >= 3",
        ),
        (
            "SELECT a FROM t WHERE b in ( SELECT \"b\" FROM u ) AND c not like '%x%'",
            "SELECT a FROM t WHERE b IN (SELECT \"b\" FROM u) AND c NOT LIKE '%x%'",
        ),
        (
            "select t1.A from T as t1 join match as t2 on t1.id = t2.ID",
            "SELECT T1.a FROM t AS T1 JOIN Match AS T2 ON T1.ID = T2.ID",
        ),
        (
            "SELECT a FROM t WHERE b > -5 ORDER BY c - 1 desc",
            "SELECT a FROM t WHERE b > -5 ORDER BY c - 1 DESC",
        ),
    ],
)
def test_a_gold_query_is_written_as_models_write(query: str, written: str) -> None:
    names = {name.lower(): name for name in ("t", "u", "a", "b", "c", "x", "ID", "Match")}
    assert rewrite(query, names) == written
    assert solution(query, names) == f"```sql\n{written};\n```"
    assert rewrite(written, names) == written


def test_strings_in_double_quotes_become_plain_ones_but_names_do_not() -> None:
    assert plain_strings('SELECT "a" FROM t WHERE b = "x";', {"a", "b", "t"}) == (
        "SELECT \"a\" FROM t WHERE b = 'x'"
    )
