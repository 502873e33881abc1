"""Hostile queries end in an error, within the limits, and the next query is answered."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from cospec.tasks.sql import executor as executor_module
from cospec.tasks.sql import worker
from cospec.tasks.sql.executor import Executor, QueryError, QueryLimits

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ENDLESS = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT "
HOSTILE = {
    "attach": "ATTACH DATABASE 'other.sqlite' AS other",
    "attach a uri": "ATTACH DATABASE 'file:/tmp/x?mode=rwc' AS other",
    "pragma": "PRAGMA query_only = OFF",
    "pragma as a table": "SELECT * FROM pragma_database_list",
    "vacuum into": "VACUUM INTO '/tmp/copy.sqlite'",
    "endless": f"{ENDLESS}n FROM c",
    "endless count": f"{ENDLESS}count(*) FROM c",
    "cross join": "SELECT count(*) FROM t a, t b, t c, t d, t e, t f, t g, t h",
    "zeroblob": "SELECT zeroblob(1000000000)",
    "hex": "SELECT hex(hex(hex(printf('%900000s', 'x'))))",
    "replace": "SELECT replace(printf('%900000s', ''), ' ', 'xxxxxxxxxxxxxxxx')",
    "long rows": f"{ENDLESS}printf('%500000s', n) FROM c",
    "group_concat": f"{ENDLESS}group_concat(printf('%90000s', n)) FROM c",
    "extension": "SELECT load_extension('libc.so.6')",
    "tokenizer": "SELECT fts3_tokenizer('simple', x'00')",
    "read file": "SELECT readfile('/etc/passwd')",
    "insert": "INSERT INTO t VALUES (9)",
    "insert returning": "INSERT INTO t VALUES (9) RETURNING n",
    "update": "UPDATE t SET n = 9",
    "delete": "DELETE FROM t",
    "drop": "DROP TABLE t",
    "create": "CREATE TABLE u (n)",
    "create temporary": "CREATE TEMP TABLE u (n)",
    "create virtual": "CREATE VIRTUAL TABLE u USING fts5(n)",
    "transaction": "BEGIN EXCLUSIVE",
    "two statements": "SELECT 1; DROP TABLE t",
    "deep expression": "SELECT " + "NOT " * 3000 + "1",
    "long": "SELECT " + "1 + " * 200_000 + "1",
    "many parts": " UNION ALL ".join(["SELECT 1"] * 1000),
    "like": "SELECT count(*) FROM t WHERE printf('%200000s', n) LIKE '" + "%a" * 5000 + "'",
    "nothing": "",
    "comment": "-- SELECT 1",
    "zero byte": "SELECT 1 \0 FROM t",
    "surrogate": "SELECT '\ud800'",
    "random": "SELECT random()",
    "random blob": "SELECT randomblob(5)",
    "schema": "SELECT writefile('x', sql) FROM sqlite_master",
    "no query": "EXPLAIN",
}


@pytest.fixture(scope="module")
def executor() -> Iterator[Executor]:
    executor = Executor(QueryLimits(time_s=0.5))
    yield executor
    executor.close()


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("sql") / "a folder with 100% odd?signs#.sqlite"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE t (n INTEGER, x TEXT)")
        connection.executemany("INSERT INTO t VALUES (?, ?)", [(i, f"x{i}") for i in range(50)])
    return str(path)


@pytest.mark.parametrize("query", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_query_is_an_error_in_time(query: str, executor: Executor, database: str) -> None:
    start = time.process_time()
    with pytest.raises(QueryError):
        executor.run(database, query)
    assert time.process_time() - start < 1, "the parent itself does little"
    assert executor.run(database, "SELECT count(*), max(x) FROM t") == [[50, "x9"]]


def test_a_query_that_takes_too_long_is_told_its_limit(executor: Executor, database: str) -> None:
    """Found: "OperationalError: interrupted"."""
    for limit, time_s in ((0.5, None), (0.02, 0.02)):
        with pytest.raises(QueryError, match=rf"^it took more than {limit} s$"):
            executor.run(database, HOSTILE["endless count"], time_s=time_s)


@pytest.mark.parametrize(
    "query",
    ["SELECT printf('%1000000000d', 1) IS NULL", "SELECT " + "(" * 5000 + "1" + ")" * 5000],
)
def test_what_sqlite_itself_makes_harmless_is_answered(
    query: str, executor: Executor, database: str
) -> None:
    assert executor.run(database, query) == [[1]]


def test_a_worker_that_hangs_or_dies_is_replaced(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = Executor(QueryLimits(time_s=0.2))
    assert executor.run(database, "SELECT 1") == [[1]]
    process = executor._process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    with pytest.raises(QueryError, match="too long"):
        executor.run(database, "SELECT 2")
    assert executor.run(database, "SELECT 3") == [[3]]
    second = executor._process
    assert second is not None and second.pid != process.pid
    second.kill()
    second.wait()
    assert executor.run(database, "SELECT 4") == [[4]]
    executor.close()


def test_a_worker_that_ended_after_its_last_answer_is_replaced_within_a_query(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found: the query was said to take too long."""
    executor = Executor()
    assert executor.run(database, "SELECT 1") == [[1]]
    process = executor._process
    assert process is not None
    process.kill()
    process.wait()
    monkeypatch.setattr(process, "poll", lambda: None)  # as if it ended a moment later
    assert executor.run(database, "SELECT 2") == [[2]]
    assert executor._process is not process
    executor.close()


def test_why_a_worker_cannot_start_is_told(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found: each query was said to take too long."""
    broken = tmp_path / "worker.py"
    broken.write_text("raise OSError('no limits here')")
    monkeypatch.setattr(executor_module, "_WORKER", broken)
    executor = Executor()
    with pytest.raises(QueryError, match=r"ended its process \(OSError: no limits here\)"):
        executor.run(database, "SELECT 1")
    executor.close()


def test_a_platform_that_cannot_bound_memory_bounds_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Found: macOS raises a ValueError, so that no worker started."""
    bounded = []

    def setrlimit(name: int, limits: tuple[int, int]) -> None:
        if name == resource.RLIMIT_AS:
            raise ValueError("current limit exceeds maximum limit")
        bounded.append(name)

    monkeypatch.setattr(worker.resource, "setrlimit", setrlimit)
    worker.limit_resources(2**29)
    assert bounded == [resource.RLIMIT_FSIZE, resource.RLIMIT_CORE]


def test_a_worker_is_read_where_many_files_are_open() -> None:
    """Found: `select` takes no descriptor from 1,024 on, and each query was said to be slow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip(f"at most {hard} files can be open")
    read_end, write_end = os.pipe()
    resource.setrlimit(resource.RLIMIT_NOFILE, (2048, hard))
    try:
        high = fcntl.fcntl(read_end, fcntl.F_DUPFD_CLOEXEC, 1500)
        os.write(write_end, b"{}\n")
        assert Executor()._read_line(high, 1.0) == b"{}\n"
        os.close(high)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.close(read_end)
        os.close(write_end)


def test_more_rows_than_asked_for_are_an_error(executor: Executor, database: str) -> None:
    assert len(executor.run(database, "SELECT n FROM t", max_rows=50)) == 50
    with pytest.raises(QueryError, match="more than 49 rows"):
        executor.run(database, "SELECT n FROM t", max_rows=49)
    assert executor.run(database, "SELECT n FROM t WHERE 0", max_rows=0) == []


def test_tables_can_be_read_from_their_end(executor: Executor, database: str) -> None:
    assert executor.run(database, "SELECT n FROM t LIMIT 1") == [[0]]
    assert executor.run(database, "SELECT n FROM t LIMIT 1", reverse=True) == [[49]]


def test_values_come_back_as_they_are(executor: Executor, database: str) -> None:
    (row,) = executor.run(database, "SELECT NULL, 1, 1.5, 'a''b', x'00ff', 9e999, 'é'")
    assert row == [None, 1, 1.5, "a'b", "00ff", float("inf"), "é"]


def test_the_database_is_not_changed(executor: Executor, database: str, tmp_path: Path) -> None:
    for query in HOSTILE.values():
        if query.startswith(("INSERT", "UPDATE", "DELETE", "DROP", "CREATE", "VACUUM")):
            with pytest.raises(QueryError):
                executor.run(database, query)
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT count(*), sum(n) FROM t").fetchone() == (50, 1225)
