"""Runs queries in a long-lived worker process, and starts a new one when that has ended.

Unlike `cospec.tasks.sandbox`, this needs no permission to execute code. It runs no program of the
model's, but a statement of SQLite on a file opened read-only, under an authorizer that allows
reading alone (`worker`).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

_WORKER = Path(__file__).with_name("worker.py")

Rows: TypeAlias = "list[list[Any]]"
"""Rows of cells as SQLite returns them: None, int, float or str."""


@dataclass(frozen=True, slots=True)
class QueryLimits:
    """Limits of one query."""

    time_s: float = 2.0
    """Seconds until SQLite is told to stop; the worker is killed a second later."""
    max_rows: int = 20_000
    """Rows of a result."""
    memory_bytes: int = 512 * 2**20
    """Address space of the worker."""


class QueryError(Exception):
    """A query has no result: it is no valid query, not allowed, or took too much."""


class Executor:
    """One worker process; any thread may ask it."""

    def __init__(self, limits: QueryLimits | None = None) -> None:
        self.limits = limits or QueryLimits()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def run(
        self,
        path: str,
        sql: str,
        *,
        max_rows: int | None = None,
        reverse: bool = False,
        time_s: float | None = None,
    ) -> Rows:
        """Return the rows of a query.

        Args:
            path: A SQLite file.
            sql: One statement.
            max_rows: More rows than these are an error; the limit's if None.
            reverse: Read tables from their end, which shows a result that depends on their order.
            time_s: Seconds that it may take; the limit's if None.

        Raises:
            QueryError: There is no result.
        """
        time_s = self.limits.time_s if time_s is None else time_s
        request = {
            "path": path,
            "sql": sql,
            "time_s": time_s,
            "max_rows": self.limits.max_rows if max_rows is None else max_rows,
            "reverse": reverse,
        }
        with self._lock:
            answer = self._ask(json.dumps(request).encode() + b"\n", time_s)
        if "error" in answer:
            raise QueryError(answer["error"])
        rows: Rows = answer["rows"]
        return rows

    def close(self) -> None:
        """Ends the worker; the next query starts a new one."""
        if self._process is not None:
            _end(self._process)
            self._process = None

    def _ask(self, request: bytes, time_s: float) -> dict[str, Any]:
        process = self._process if self._process and self._process.poll() is None else self._start()
        try:
            try:
                _send(process, request)
            except BrokenPipeError:  # it ended after its last answer: a new one is asked, once
                self.close()
                process = self._start()
                with contextlib.suppress(BrokenPipeError):  # then there is no line to read
                    _send(process, request)
            assert process.stdout is not None, "a pipe"
            line = self._read_line(process.stdout.fileno(), time_s)
        except BaseException:  # else the answer to come would be taken for that of the next query
            self.close()
            raise
        if line is None:
            fault = _last_words(process)
            self.close()
            return {"error": f"the query took too long or ended its process{fault}"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _read_line(self, descriptor: int, time_s: float) -> bytes | None:
        """Return the next line of the worker; None if it is late or the worker is gone."""
        parts = []
        poll = select.poll()  # `select.select` takes no descriptor from 1,024 on
        poll.register(descriptor, select.POLLIN)
        while True:
            ready = poll.poll(1000 * (time_s + 1))
            data = os.read(descriptor, 1 << 16) if ready else b""
            if not data:
                return None
            parts.append(data)
            if data.endswith(b"\n"):
                return b"".join(parts)

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_WORKER), str(self.limits.memory_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            env={},
        )
        weakref.finalize(self, _end, process)
        self._process = process
        return process


def _send(process: subprocess.Popen[bytes], request: bytes) -> None:
    assert process.stdin is not None, "a pipe"
    process.stdin.write(request)
    process.stdin.flush()


def _last_words(process: subprocess.Popen[bytes]) -> str:
    """End a worker and return its error in parentheses, such as why it could not start."""
    process.kill()
    process.wait()
    assert process.stderr is not None, "a pipe"
    last = process.stderr.read().decode(errors="replace").strip().rpartition("\n")[2]
    return f" ({last[:300]})" if last else ""


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()
