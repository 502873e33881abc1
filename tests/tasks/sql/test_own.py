"""A user's own databases and questions."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from cospec.errors import TaskError
from cospec.tasks import load_task
from cospec.tasks.sql.ordering import keyed
from cospec.tasks.sql.schema import RESERVED
from cospec.tasks.sql.solution import plain_strings

if TYPE_CHECKING:
    from pathlib import Path

ROWS = [
    {"db_id": "shop", "question": "How many items?", "query": "SELECT count(*) FROM item"},
    {"db_id": "shop", "question": "Dear items?", "query": "SELECT name FROM item WHERE price > 1"},
    {
        "db_id": "club",
        "question": "Members?",
        "query": 'SELECT name FROM member WHERE town = "Bern"',
    },
    {"db_id": "club", "question": "None?", "query": "SELECT name FROM member WHERE name = 'x'"},
]


def write_rows(folder: Path, rows: list[dict[str, str]]) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "questions.jsonl").write_text(text, encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "own"
    (folder / "club").mkdir(parents=True)
    with closing(sqlite3.connect(folder / "shop.sqlite")) as connection, connection:
        connection.executescript(
            "CREATE TABLE maker (id INTEGER PRIMARY KEY, town TEXT);"
            "CREATE TABLE item (name TEXT, price REAL, maker INTEGER REFERENCES maker (id),"
            " PRIMARY KEY (name, maker));"
            "INSERT INTO item VALUES ('pen', 1, 1), ('ink', 2.5, 1), ('ink', 3, 2);"
        )
    with closing(sqlite3.connect(folder / "club" / "club.sqlite")) as connection, connection:
        connection.executescript(
            "CREATE TABLE member (name TEXT, town TEXT);"
            "INSERT INTO member VALUES ('Ada', 'Bern'), ('Bob', 'Genf');"
        )
    write_rows(folder, ROWS)
    return folder


def test_a_question_tells_the_contents_of_its_database(folder: Path) -> None:
    """Found: results on a database that had changed were taken for those on the old one."""

    def digests() -> dict[str, str]:
        examples = load_task(f"sql:{folder},split=test").examples("test")
        return {e.metadata["db_id"]: e.metadata["database_sha256"] for e in examples}

    before = digests()
    assert digests() == before
    with closing(sqlite3.connect(folder / "shop.sqlite")) as connection, connection:
        connection.execute("UPDATE item SET price = 9 WHERE name = 'pen'")
    after = digests()
    assert {name for name in before if before[name] != after[name]} == {"shop"}


def test_questions_that_are_left_out_are_counted(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Found: nothing was told, and a folder of such questions alone had no problems."""
    load_task(f"sql:{folder}")
    (record,) = caplog.records
    assert "1 of 4 questions of" in record.message and "are left out" in record.message
    write_rows(folder, ROWS[:3])
    load_task(f"sql:{folder}")
    assert len(caplog.records) == 1
    write_rows(folder, [ROWS[3], {**ROWS[0], "query": "SELECT name FROM item LIMIT 1"}])
    with pytest.raises(TaskError, match=r"2 of 2 questions of .* are left out: their gold"):
        load_task(f"sql:{folder}")


def test_queries_are_judged_on_the_files_as_they_are(folder: Path) -> None:
    before = (folder / "shop.sqlite").read_bytes()
    task = load_task(f"sql:{folder},split=test")
    examples = {e.metadata["question"]: e for e in task.examples("test")}
    assert set(examples) == {"How many items?", "Dear items?", "Members?"}, "one result is empty"
    dear = examples["Dear items?"]
    assert task.score(dear, "SELECT i.name FROM item AS i WHERE i.price >= 2").correct
    assert not task.score(dear, "SELECT DISTINCT name FROM item WHERE price > 1").correct
    assert not task.score(dear, "DELETE FROM item").correct
    assert task.score(examples["Members?"], examples["Members?"].metadata["solution"]).correct
    assert (folder / "shop.sqlite").read_bytes() == before


def test_the_prompt_has_the_schema_of_the_file(folder: Path) -> None:
    task = load_task(f"sql:{folder},split=test")
    (example,) = (e for e in task.examples("test") if "Dear" in e.question)
    assert example.question.startswith(
        "SQLite schema:\n"
        "CREATE TABLE maker (id INTEGER PRIMARY KEY, town TEXT);\n"
        "CREATE TABLE item (name TEXT, price REAL, maker INTEGER, PRIMARY KEY (name, maker), "
        "FOREIGN KEY (maker) REFERENCES maker(id));\n"
    )


def test_worked_examples_are_of_the_same_database(folder: Path, plain_tokenizer: Any) -> None:
    more = {"db_id": "shop", "question": "How many?", "query": ROWS[0]["query"]}
    rows = [{**ROWS[0], "split": "train"}, {**ROWS[1], "split": "train"}]
    rows += [{**ROWS[2], "split": "train"}, {**more, "split": "test"}]
    write_rows(folder, rows)
    task = load_task(f"sql:{folder},shots=2")
    assert task.name == f"sql:{folder},shots=2"
    (example,) = task.examples("test")
    shot, asked = str(task.prompt(example, plain_tokenizer)).split("Question: How many?")
    assert shot.count("CREATE TABLE item") == 1 and "member" not in shot
    assert "Question: Dear items?" in shot and "Question: How many items?" not in shot
    assert "SELECT name FROM item" in shot and asked == "\nAnswer:\n"


def test_rows_may_name_their_split(folder: Path) -> None:
    write_rows(folder, [{**ROWS[0], "split": "train"}, {**ROWS[1], "split": "test"}])
    task = load_task(f"sql:{folder}")
    assert [e.id for e in task.examples("train")] == ["questions/0"]
    assert [e.id for e in task.examples("test")] == ["questions/1"]


def test_a_question_in_two_splits_is_refused(folder: Path) -> None:
    write_rows(folder, [{**ROWS[0], "split": "train"}, {**ROWS[0], "split": "test"}])
    with pytest.raises(TaskError, match=r"questions/1 asks what questions/0 asks.*give both one"):
        load_task(f"sql:{folder}")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"db_id": "shop", "question": "?"}, "no text in the field 'query'"),
        ({**ROWS[0], "db_id": "bank"}, "no database 'bank'"),
        ({**ROWS[0], "db_id": "../own/shop"}, "no database '../own/shop'"),
        ({**ROWS[0], "query": "SELECT price FROM maker"}, "no such column: price"),
        ({**ROWS[0], "split": "tset"}, "unknown split 'tset'; did you mean 'test'"),
        ({**ROWS[0], "split": None}, "unknown split 'None'"),
        ({**ROWS[0], "split": "test"}, "1 of 2 rows of .* have no field 'split'"),
        ({**ROWS[0], "query": "SELECT date('now')"}, "asks the clock"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(
    row: dict[str, str], message: str, folder: Path
) -> None:
    write_rows(folder, [ROWS[0], row])
    with pytest.raises(TaskError, match=message):
        load_task(f"sql:{folder}")


@pytest.mark.parametrize(
    "query",
    [
        "SELECT * FROM item ORDER BY 2",
        "SELECT i.*, price FROM item AS i ORDER BY 4, 1",
        "SELECT name FROM item ORDER BY 1.5, 1",
        "SELECT x'ff', 0x1F, json_extract('{\"a\": 1}', '$.a'), '{\"a\": 2}' ->> 'a'",
    ],
)
def test_a_gold_query_may_use_all_that_sqlite_reads(query: str, folder: Path) -> None:
    write_rows(folder, [{**ROWS[0], "query": query}])
    (example,) = load_task(f"sql:{folder},split=test").examples("test")
    task = load_task(f"sql:{folder},split=test")
    assert task.score(example, query).correct
    assert task.score(example, example.metadata["solution"]).correct


QUOTED = [
    'SELECT "n" FROM (SELECT count(*) AS "n" FROM item)',
    'SELECT name, count(*) AS "n" FROM item GROUP BY name HAVING "n" > 1',
    'WITH w AS (SELECT name, count(*) AS "Total" FROM item GROUP BY name) '
    'SELECT name FROM w WHERE "Total" > 1',
    'SELECT name FROM item WHERE "rowid" = 2',
    'SELECT count(*) "All" FROM item ORDER BY "All"',
    'WITH "w" AS (SELECT name FROM item) SELECT "w".name FROM "w"',
]


@pytest.mark.parametrize("query", QUOTED)
def test_names_that_a_query_gives_are_names_in_double_quotes(query: str, folder: Path) -> None:
    """Found: they became strings, and the gold result another one."""
    plain = plain_strings(query, {"name", "item"})
    with closing(sqlite3.connect(folder / "shop.sqlite")) as connection:
        results = [connection.execute(one).fetchall() for one in (query, plain)]
    assert results[0] == results[1] != []


def test_strings_in_double_quotes_are_still_strings(folder: Path) -> None:
    query = 'SELECT "x" AS "label" FROM item WHERE name LIKE "p%" AND name IN ("pen", "ink")'
    assert plain_strings(query, {"name", "item"}) == (
        "SELECT 'x' AS \"label\" FROM item WHERE name LIKE 'p%' AND name IN ( 'pen' , 'ink' )"
    )


@pytest.mark.parametrize(
    ("query", "keys"),
    [
        ("SELECT name, sum(price) price FROM item GROUP BY name ORDER BY price", "(sum ( price ))"),
        ("SELECT name, count(*) n FROM item GROUP BY name ORDER BY n DESC", "(count ( * ))"),
        ("SELECT name FROM item ORDER BY price DESC NULLS LAST", "(price)"),
        ("SELECT CASE WHEN price > 1 THEN 1 END c FROM item ORDER BY c", "(CASE WHEN price > 1 "),
    ],
)
def test_the_order_is_that_of_what_an_alias_names(query: str, keys: str, folder: Path) -> None:
    """Found: an alias without AS was taken for a column, or not found."""
    shown = keyed(query)
    assert shown is not None and f", {keys}" in shown.sql
    with closing(sqlite3.connect(folder / "shop.sqlite")) as connection:
        rows = connection.execute(shown.sql).fetchall()
        width = len(connection.execute(query).fetchall()[0])
    assert [row[:width] for row in rows] and len(rows[0]) == width + 1


NAMES = "WITH w AS (SELECT name, maker FROM item GROUP BY name, maker) "
CUT = [
    "SELECT price FROM item ORDER BY 1 = 1 LIMIT 1 OFFSET 1",
    "SELECT price FROM item ORDER BY 1 = 1 LIMIT 1, 1",
    "SELECT price FROM item ORDER BY name LIMIT 2 OFFSET 1",
    f"{NAMES} SELECT maker FROM w ORDER BY name LIMIT 1",
    "SELECT DISTINCT name, maker FROM item GROUP BY name, maker ORDER BY name LIMIT 1",
    "SELECT maker, name AS n FROM item GROUP BY maker, name ORDER BY 2 LIMIT 1",
]


@pytest.mark.parametrize("query", CUT)
def test_a_limit_that_cuts_a_tie_is_found_in_any_query(query: str, folder: Path) -> None:
    """Found: with OFFSET, WITH, DISTINCT or the number of an alias the ties were not looked at."""
    write_rows(folder, [ROWS[0], {"db_id": "shop", "question": "?", "query": query}])
    (example,) = load_task(f"sql:{folder},split=test").examples("test")
    assert example.metadata["question"] == ROWS[0]["question"]


@pytest.mark.parametrize(
    ("query", "right", "wrong"),
    [
        (
            "SELECT DISTINCT name, maker FROM item ORDER BY name",
            "SELECT name, maker FROM item ORDER BY name, maker DESC",
            "SELECT name, maker FROM item ORDER BY maker, name DESC",
        ),
        (
            "SELECT DISTINCT Name AS n, maker FROM item ORDER BY 1 LIMIT 2",
            "SELECT name, maker FROM item WHERE name = 'ink' ORDER BY maker DESC",
            "SELECT name, maker FROM item WHERE maker = 1",
        ),
        (
            f"{NAMES} SELECT name, maker FROM w ORDER BY name",
            "SELECT name, maker FROM item ORDER BY name, maker DESC",
            "SELECT name, maker FROM item ORDER BY maker, name DESC",
        ),
        (
            "SELECT name FROM item ORDER BY price LIMIT 1 OFFSET 1",
            "SELECT name FROM item WHERE price = 2.5",
            "SELECT name FROM item WHERE price = 1",
        ),
        (
            "SELECT name, maker FROM item ORDER BY name DESC LIMIT 1, 2",
            "SELECT name, maker FROM item WHERE name = 'ink' ORDER BY price DESC",
            "SELECT name, maker FROM item WHERE maker = 1",
        ),
    ],
)
def test_ties_in_the_order_of_any_query_may_come_in_any_order(
    query: str, right: str, wrong: str, folder: Path
) -> None:
    """Found: another order of tied rows was wrong, or the question was left out."""
    write_rows(folder, [{"db_id": "shop", "question": "?", "query": query}])
    task = load_task(f"sql:{folder},split=test")
    (example,) = task.examples("test")
    assert task.score(example, query).correct and task.score(example, right).correct
    assert not task.score(example, wrong).correct


@pytest.mark.parametrize(
    "query",
    [
        "SELECT DISTINCT name FROM item ORDER BY price",
        "SELECT name FROM item UNION SELECT town FROM maker ORDER BY name",
        "SELECT name FROM item ORDER BY price LIMIT 1 OFFSET 1 + 1",
        "SELECT name IS DISTINCT FROM 'pen' FROM item ORDER BY name",
    ],
)
def test_keys_that_would_change_the_rows_are_not_shown(query: str) -> None:
    assert keyed(query) is None


def test_a_question_whose_gold_result_is_not_one_answer_is_left_out(folder: Path) -> None:
    """Found: whatever row SQLite came upon first was the one right answer."""
    queries = {
        "An item?": "SELECT name FROM item LIMIT 1",
        "The price of the first name?": "SELECT price FROM item ORDER BY name LIMIT 1",
        "The cheapest item?": "SELECT name FROM item ORDER BY price LIMIT 1",
    }
    rows = [{"db_id": "shop", "question": q, "query": sql} for q, sql in queries.items()]
    write_rows(folder, rows)
    (example,) = load_task(f"sql:{folder},split=test").examples("test")
    assert example.metadata["question"] == "The cheapest item?"


@pytest.fixture
def club(folder: Path) -> Path:
    """The folder with views, one of which nobody can read, and generated columns in the club."""
    with closing(sqlite3.connect(folder / "club" / "club.sqlite")) as connection, connection:
        connection.executescript(
            'CREATE TABLE fee (amount INTEGER, half INTEGER AS (amount / 2), "Whole Fee" AS '
            "(amount) STORED);"
            "INSERT INTO fee VALUES (4), (6);"
            'CREATE VIEW bernese (name, "Old Town") AS SELECT name, town -- all\n'
            " FROM member WHERE town = 'Bern';"
            "CREATE VIEW today AS SELECT date('now') AS day;"
            "CREATE VIEW tomorrow AS SELECT date(day, '+1 day') AS day FROM today;"
            "CREATE TABLE gone (x); CREATE VIEW broken AS SELECT x FROM gone; DROP TABLE gone;"
        )
    return folder


def test_views_and_generated_columns_are_shown(club: Path) -> None:
    """Found: models were asked for what they could not know of."""
    examples = load_task(f"sql:{club},split=test").examples("test")
    (example,) = (e for e in examples if e.metadata["db_id"] == "club")
    assert 'CREATE TABLE fee (amount INTEGER, half INTEGER, "Whole Fee");\n' in example.question
    view = 'CREATE VIEW bernese(name, "Old Town") AS SELECT name, town FROM member WHERE town = '
    assert f"{view}'Bern';\n" in example.question
    assert "broken" not in example.question


@pytest.mark.parametrize(
    ("query", "other"),
    [
        ('SELECT "Old Town" FROM bernese', "SELECT town FROM member WHERE town = 'Bern'"),
        ('SELECT "Whole Fee", half FROM fee', "SELECT amount, amount / 2 FROM fee"),
        ("SELECT name FROM Bernese", "SELECT name FROM bernese"),
    ],
)
def test_a_query_may_read_views_and_generated_columns(query: str, other: str, club: Path) -> None:
    """Found: their names in double quotes became strings."""
    write_rows(club, [{"db_id": "club", "question": "?", "query": query}])
    task = load_task(f"sql:{club},split=test")
    (example,) = task.examples("test")
    assert task.score(example, query).correct
    assert task.score(example, example.metadata["solution"]).correct
    assert task.score(example, other).correct
    assert not task.score(example, "SELECT name FROM member").correct


@pytest.mark.parametrize("view", ["today", "Tomorrow"])
def test_a_gold_query_on_a_view_that_asks_the_clock_is_refused(view: str, club: Path) -> None:
    write_rows(club, [{"db_id": "club", "question": "?", "query": f"SELECT day FROM {view}"}])
    with pytest.raises(TaskError, match="a view that it reads, asks the clock"):
        load_task(f"sql:{club}")


def test_a_query_on_a_view_that_asks_the_clock_is_wrong(club: Path) -> None:
    write_rows(club, [{"db_id": "club", "question": "?", "query": "SELECT count(*) FROM fee"}])
    task = load_task(f"sql:{club},split=test")
    (example,) = task.examples("test")
    assert task.score(example, "SELECT 2 AS tomorrow FROM bernese").correct
    for view in ("tomorrow", "main.tomorrow", "bernese, tomorrow", "tomorrow /*"):
        assert not task.score(example, f"SELECT 2 FROM {view}").correct


def test_a_database_with_unfinished_changes_is_refused(folder: Path) -> None:
    """Found: prompts showed them, and queries were run without."""
    with closing(sqlite3.connect(folder / "shop.sqlite")) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("INSERT INTO maker VALUES (3, 'Bern')")
        connection.commit()
        with pytest.raises(TaskError, match=r"shop.sqlite-wal holds changes"):
            load_task(f"sql:{folder}")
    assert load_task(f"sql:{folder},split=test").examples("test")


def test_the_log_of_an_unfinished_run_is_no_file_of_questions(folder: Path) -> None:
    (folder / "eval.json.part.jsonl").write_text("{}\n")
    assert load_task(f"sql:{folder},split=test").examples("test")


def test_a_folder_without_questions_or_with_a_broken_file_is_refused(folder: Path) -> None:
    (folder / "shop.sqlite").write_bytes(b"no database at all, but long enough to be read" * 40)
    with pytest.raises(TaskError, match=r"shop.sqlite is no SQLite database"):
        load_task(f"sql:{folder}")
    (folder / "questions.jsonl").unlink()
    with pytest.raises(TaskError, match=r"needs one .jsonl file"):
        load_task(f"sql:{folder}")


def test_the_folder_may_begin_with_the_home_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert len(load_task("sql:~/own,split=test").examples("test")) == 3


def test_names_that_are_keywords_are_shown_as_a_query_has_to_write_them(folder: Path) -> None:
    """Found: FROM order, as the schema had it, is no SQL."""
    with closing(sqlite3.connect(folder / "shop.sqlite")) as connection, connection:
        connection.executescript('CREATE TABLE "order" ("group" TEXT, day TIME, Key TEXT);')
    task = load_task(f"sql:{folder},split=test")
    (example,) = (e for e in task.examples("test") if "Dear" in e.question)
    assert 'CREATE TABLE "order" ("group" TEXT, day TIME, Key TEXT);' in example.question


KEYWORDS = """
    ABORT ACTION ADD AFTER ALL ALTER ALWAYS ANALYZE AND AS ASC ATTACH AUTOINCREMENT BEFORE BEGIN
    BETWEEN BY CASCADE CASE CAST CHECK COLLATE COLUMN COMMIT CONFLICT CONSTRAINT CREATE CROSS
    CURRENT CURRENT_DATE CURRENT_TIME CURRENT_TIMESTAMP DATABASE DEFAULT DEFERRABLE DEFERRED DELETE
    DESC DETACH DISTINCT DO DROP EACH ELSE END ESCAPE EXCEPT EXCLUDE EXCLUSIVE EXISTS EXPLAIN FAIL
    FILTER FIRST FOLLOWING FOR FOREIGN FROM FULL GENERATED GLOB GROUP GROUPS HAVING IF IGNORE
    IMMEDIATE IN INDEX INDEXED INITIALLY INNER INSERT INSTEAD INTERSECT INTO IS ISNULL JOIN KEY LAST
    LEFT LIKE LIMIT MATCH MATERIALIZED NATURAL NO NOT NOTHING NOTNULL NULL NULLS OF OFFSET ON OR
    ORDER OTHERS OUTER OVER PARTITION PLAN PRAGMA PRECEDING PRIMARY QUERY RAISE RANGE RECURSIVE
    REFERENCES REGEXP REINDEX RELEASE RENAME REPLACE RESTRICT RETURNING RIGHT ROLLBACK ROW ROWS
    SAVEPOINT SELECT SET TABLE TEMP TEMPORARY THEN TIES TO TRANSACTION TRIGGER UNBOUNDED UNION
    UNIQUE UPDATE USING VACUUM VALUES VIEW VIRTUAL WHEN WHERE WINDOW WITH WITHOUT
"""


def is_plain_name(word: str) -> bool:
    """Return True if SQLite takes a word without quotes for a column and for a table."""
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(f'CREATE TABLE t ("{word}" TEXT)')
        connection.execute("INSERT INTO t VALUES ('the value')")
        try:
            found = connection.execute(f"SELECT {word} FROM t WHERE {word} = 'the value'")
            connection.execute(f"CREATE TABLE {word} (a TEXT)")
            connection.execute(f"SELECT a FROM {word} AS x WHERE x.a = 1")
            return found.fetchall() == [("the value",)]
        except sqlite3.OperationalError:
            return False


def test_names_that_sqlite_refuses_without_quotes_are_reserved() -> None:
    """Others may be: versions of SQLite differ."""
    refused = {word for word in KEYWORDS.split() if not is_plain_name(word)}
    assert len(refused) > 50 and refused <= RESERVED
    assert all(is_plain_name(word) for word in ("name", "day", "Key"))


def test_a_key_of_two_columns_points_at_two(folder: Path) -> None:
    """Found: both pointed at the first, where the key names no columns."""
    with closing(sqlite3.connect(folder / "shop.sqlite")) as connection, connection:
        connection.executescript(
            "CREATE TABLE sale (n TEXT, m INTEGER, FOREIGN KEY (n, m) REFERENCES item);"
        )
    task = load_task(f"sql:{folder},split=test")
    (example,) = (e for e in task.examples("test") if "Dear" in e.question)
    assert "(n) REFERENCES item(name), FOREIGN KEY (m) REFERENCES item(maker));" in example.question


def test_a_database_in_wal_mode_gets_no_files_beside_it(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "shop.sqlite")) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    before = sorted(path.name for path in folder.iterdir())
    assert load_task(f"sql:{folder},split=test").examples("test")
    assert sorted(path.name for path in folder.iterdir()) == before
