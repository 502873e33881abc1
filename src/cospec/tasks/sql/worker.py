"""The process that runs queries: started by path with ``python -I -S``, standard library only.

It reads one JSON object a line, ``{"path", "sql", "max_rows", "reverse", "time_s"}``, and answers
with ``{"rows": […]}`` or ``{"error": …}``. A query is a program that a model wrote, so:

* the file is opened read-only and immutable;
* the authorizer allows SELECT, READ, RECURSIVE, and the functions of ``FUNCTIONS`` alone, which
  leaves out every function that reads a file, loads code, or answers differently each time;
* SQLite's own limits bound text length, depth, joined tables and compound parts;
* a progress handler stops it after ``time_s``, and the number of rows and of bytes in them is
  bounded;
* the kernel bounds the address space of this process (not on macOS), and lets it write no file.

What a single step of SQLite's machine does cannot be interrupted from here; the parent kills this
process when an answer is late.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sqlite3
import sys
import time
from typing import Any
from urllib.parse import quote

_FUNCTIONS = """
    abs char coalesce concat concat_ws format glob hex ifnull iif instr length like likelihood
    likely lower ltrim max min nullif printf quote replace round rtrim sign soundex substr
    substring trim typeof unhex unicode unlikely upper octet_length avg count group_concat
    string_agg sum total median percentile date time datetime julianday strftime unixepoch
    timediff acos acosh asin asinh atan atan2 atanh ceil ceiling cos cosh degrees exp floor ln
    log log10 log2 mod pi pow power radians sin sinh sqrt tan tanh trunc row_number rank
    dense_rank percent_rank cume_dist ntile lag lead first_value last_value nth_value json
    json_array json_array_length json_extract json_object json_type json_valid json_quote -> ->>
"""
FUNCTIONS = frozenset(_FUNCTIONS.split())
LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 1_000_000,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 20_000,
    sqlite3.SQLITE_LIMIT_COLUMN: 500,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 100,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 50,
    sqlite3.SQLITE_LIMIT_VDBE_OP: 100_000,
    sqlite3.SQLITE_LIMIT_FUNCTION_ARG: 100,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 200,
    sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER: 1,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 1,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}
ALLOWED = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE)
MAX_CONNECTIONS = 64
STEPS_BETWEEN_CHECKS = 10_000
MAX_BYTES = 4_000_000
"""Most bytes of text in one result."""
INTERRUPTED = "OperationalError: interrupted"
"""SQLite's error for a query that the progress handler stopped."""


def authorize(action: int, _first: str | None, second: str | None, *_rest: str | None) -> int:
    """Answer SQLite's question about each thing that a statement wants to do."""
    is_allowed = action in ALLOWED or (
        action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in FUNCTIONS
    )
    return sqlite3.SQLITE_OK if is_allowed else sqlite3.SQLITE_DENY


def connect(path: str, is_reversed: bool) -> sqlite3.Connection:
    """Opens a database for reading, with every limit in place."""
    # Isolation level None: else Python itself would send BEGIN, which the authorizer denies.
    connection = sqlite3.connect(
        f"file:{quote(path)}?mode=ro&immutable=1",
        uri=True,
        isolation_level=None,
        cached_statements=0,
    )
    for limit, value in LIMITS.items():
        connection.setlimit(limit, value)
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute("PRAGMA query_only = ON")
    if is_reversed:
        connection.execute("PRAGMA reverse_unordered_selects = ON")
    connection.text_factory = lambda data: data.decode(errors="replace")
    connection.set_authorizer(authorize)
    return connection


def run(connection: sqlite3.Connection, sql: str, max_rows: int) -> dict[str, Any]:
    """Return the rows of one query, or the reason why there are none."""
    rows: list[list[Any]] = []
    num_bytes = 0
    with contextlib.closing(connection.cursor()) as cursor:
        try:
            for row in cursor.execute(sql):
                if len(rows) == max_rows:
                    return {"error": f"more than {max_rows} rows"}
                rows.append([cell.hex() if isinstance(cell, bytes) else cell for cell in row])
                num_bytes += sum(len(cell) for cell in row if isinstance(cell, str | bytes))
                if num_bytes > MAX_BYTES:
                    return {"error": "too much text"}
        except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
            return {"error": f"{type(error).__name__}: {error}"[:300]}
        except MemoryError:
            return {"error": "MemoryError"}
        if cursor.description is None:
            return {"error": "not a query"}
        return {"rows": rows}


def limit_resources(memory_bytes: int) -> None:
    """Lets the kernel bound this process."""
    # macOS refuses this limit, and Linux where a lower one holds already. Time, rows and text are
    # bounded in any case.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main(memory_bytes: int) -> None:
    """Answers requests until there are no more."""
    limit_resources(memory_bytes)
    end = 0.0
    connections: dict[tuple[str, bool], sqlite3.Connection] = {}

    def is_over() -> bool:
        """Return whether the query's time is over; SQLite asks now and then."""
        return time.monotonic() > end

    for line in sys.stdin:
        request = json.loads(line)
        key = request["path"], request["reverse"]
        try:
            if key not in connections:
                if len(connections) == MAX_CONNECTIONS:
                    connections.pop(next(iter(connections))).close()
                connections[key] = connect(*key)
                connections[key].set_progress_handler(is_over, STEPS_BETWEEN_CHECKS)
            end = time.monotonic() + request["time_s"]
            answer = run(connections[key], request["sql"], request["max_rows"])
            if answer.get("error") == INTERRUPTED:
                answer = {"error": f"it took more than {request['time_s']:g} s"}
        except sqlite3.Error as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
