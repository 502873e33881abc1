"""Turns and their log: one arm on one chunk of problems, timed, stored, and never played twice.

The log has one writer at a time. Its lock belongs to the open file, so it ends with the process,
even if that crashes. This file knows nothing about models, tasks or statistics.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from cospec.errors import ConfigError
from cospec.results import parse_json

if TYPE_CHECKING:
    from pathlib import Path

    from cospec.results import Json


@dataclass(frozen=True, slots=True)
class Turn:
    """One arm on one chunk."""

    chunk: int
    arm: str
    seconds: float
    """Wall-clock time of the generation alone."""
    rows: list[Json]
    """One row per problem."""
    part: str = ""
    """Part of the run that it belongs to, where a run has several."""

    @property
    def num_tokens(self) -> int:
        """Generated tokens."""
        return sum(row["num_tokens"] for row in self.rows)

    @property
    def timing(self) -> Json:
        """Return the values that result files keep beside the rows."""
        return {
            "arm": self.arm,
            "chunk": self.chunk,
            "seconds": self.seconds,
            "num_tokens": self.num_tokens,
        }


class TurnLog:
    """The finished turns of a run: a file with the configuration, then one JSON line per turn.

    Close it, or use it in a ``with`` statement: until then no other run can write to the file.

    Args:
        path: The file. If it exists, it holds the turns of an interrupted run.
        config: All that the turns depend on.

    Attributes:
        done: The turns that the file held when it was opened.

    Raises:
        ConfigError: Another run is writing to the file; or it is damaged, or belongs to a run with
            another configuration. The file stays as it is.
    """

    def __init__(self, path: Path, config: Json) -> None:
        self.path = path
        self._file = lock(path)
        try:
            self.done = self._resume(json.loads(json.dumps(config)))
        except BaseException:
            self.close()
            raise

    @classmethod
    def beside(cls, path: Path, config: Json, provenance: Json) -> TurnLog:
        """Open the log of a run that writes its result to `path`.

        Args:
            path: The result file.
            config: Configuration of the run.
            provenance: Provenance of the run; its start and duration do not matter.
        """
        here = {key: provenance[key] for key in provenance if key not in ("started", "seconds")}
        return cls(log_path(path), config | {"provenance": here})

    def append(self, turn: Turn) -> None:
        """Store a turn that has just finished."""
        self._write({field.name: getattr(turn, field.name) for field in fields(turn)})

    def remove(self) -> None:
        """Delete the file, once the result is written."""
        self.path.unlink()
        self.close()

    def close(self) -> None:
        """Let other runs write to the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, value: Json) -> None:
        self._file.write((json.dumps(value) + "\n").encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def _resume(self, config: Json) -> list[Turn]:
        """Read the turns of an interrupted run with this configuration, or start the file."""
        # A crash can cut the last line anywhere, even inside a character, so bytes are split first.
        *whole_lines, torn = self._file.read().split(b"\n")
        done = _read(self.path, whole_lines, config) if whole_lines else []
        self._file.seek(-len(torn) if done else 0, os.SEEK_END if done else os.SEEK_SET)
        self._file.truncate()
        if not done:
            self._write({"config": config})
        return done


def log_path(path: Path) -> Path:
    """Return the path of the log of a run that writes its result to `path`."""
    return path.with_name(path.name + ".part.jsonl")


def interrupted(path: Path, *keys: str) -> Any:  # Any: whatever JSON holds
    """Return a value from the configuration of a run that left turns in a log; None without one.

    Args:
        path: The log.
        *keys: Keys of the configuration, the outer one first.
    """
    try:
        head, *turns = path.read_bytes().split(b"\n")[:-1]
        found = parse_json(head)["config"]
        for key in keys:
            found = found[key]
    except (OSError, ValueError, KeyError, TypeError):  # `TurnLog` says what is wrong with it
        return None
    return found if turns else None


def lock(path: Path) -> BinaryIO:
    """Open a file for reading and writing, for one process at a time.

    Raises:
        ConfigError: Another process has it open, or its file system has no locks.
    """
    while True:
        try:
            file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        except OSError as error:
            raise ConfigError(f"{path} cannot be written ({error}); name another file.") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise ConfigError(
                f"another run is writing to {path}; wait until it has finished, or write to "
                "another file."
            ) from None
        except OSError as error:
            file.close()
            raise ConfigError(
                f"{path} cannot be locked ({error}), as on a file system without locks; write to a "
                "folder on another one."
            ) from None
        # The other run may have finished and deleted the file between our opening and locking it.
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()


def check_unlocked(path: Path) -> None:
    """Refuse a file that another process has locked, before any work is done for it.

    Raises:
        ConfigError: Another process has it open.
    """
    if path.exists():
        lock(path).close()


def _read(path: Path, lines: list[bytes], config: Json) -> list[Turn]:
    """Return the turns of an interrupted run, if it had this configuration."""
    try:
        head, *rest = map(parse_json, lines)
        theirs, turns = _flat(head["config"]), [Turn(**turn) for turn in rest]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is damaged ({error!r}); delete it to start over.") from None
    ours = _flat(config)
    differences = [
        f"{key} {theirs.get(key)!r} there and {ours.get(key)!r} here"
        for key in ours | theirs
        if ours.get(key) != theirs.get(key)
    ]
    if turns and differences:  # without a turn there is nothing to lose
        raise ConfigError(
            f"{path} holds an interrupted run with another configuration: "
            f"{'; '.join(differences)}. Repeat its command to finish it, delete it to start over, "
            "or write to another file."
        )
    return turns


def _flat(config: Json, prefix: str = "") -> Json:
    """Return nested keys joined by dots."""
    flat: Json = {}
    for key, value in config.items():
        flat |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat
