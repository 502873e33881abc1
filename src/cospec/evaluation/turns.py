"""A turn is one arm on one chunk of problems: what is timed, stored, and not done twice.

Knows nothing of models, tasks or statistics.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from cospec.errors import ConfigError
from cospec.results import Json, write_text

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Turn:
    """What one arm did on one chunk."""

    chunk: int
    arm: str
    seconds: float
    """Wall-clock time of the generation alone."""
    rows: list[Json]
    """One a problem."""
    part: str = ""
    """Which part of the run it belongs to, where a run has several."""

    @property
    def num_tokens(self) -> int:
        """Generated tokens."""
        return sum(row["num_tokens"] for row in self.rows)


class TurnLog:
    """The finished turns of a run in a file, one JSON line each behind a line of configuration.

    Args:
        path: The file; where it exists, its turns are those of the interrupted run.
        config: All that the turns depend on.

    Attributes:
        done: The turns that the file held when it was opened.

    Raises:
        ConfigError: The file is damaged, or belongs to a run with another configuration.
    """

    def __init__(self, path: Path, config: Json) -> None:
        self.path = path
        config = json.loads(json.dumps(config))
        self.done: list[Turn] = []
        if path.exists():
            self.done = _read(path, config)
        lines = [{"config": config}, *map(asdict, self.done)]
        write_text(path, "".join(map(_line, lines)))  # without a line that was cut off

    @classmethod
    def beside(cls, path: Path, config: Json, provenance: Json) -> TurnLog:
        """The log of a run that writes its result to `path`.

        Args:
            path: The result file.
            config: Of the run.
            provenance: Of the run; when it started does not matter.
        """
        here = {key: provenance[key] for key in provenance if key not in ("started", "seconds")}
        return cls(path.with_name(path.name + ".part.jsonl"), config | {"provenance": here})

    def append(self, turn: Turn) -> None:
        """Store a turn that has just finished."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(asdict(turn)))
            file.flush()
            os.fsync(file.fileno())

    def remove(self) -> None:
        """Delete the file, once the result is written."""
        self.path.unlink()


def _line(value: Json) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def _read(path: Path, config: Json) -> list[Turn]:
    """The turns of an interrupted run, if it had this configuration."""
    *whole_lines, _cut_off = path.read_text(encoding="utf-8").split("\n")
    if not whole_lines:
        return []
    try:
        head, *turns = map(json.loads, whole_lines)
        theirs, done = _flat(head["config"]), [Turn(**turn) for turn in turns]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is damaged ({error!r}); delete it to start over.") from None
    ours = _flat(config)
    differences = [
        f"{key} {theirs.get(key)!r} there and {ours.get(key)!r} here"
        for key in ours | theirs
        if ours.get(key) != theirs.get(key)
    ]
    if differences:
        raise ConfigError(
            f"{path} holds an interrupted run with another configuration: "
            f"{'; '.join(differences)}. Repeat its command to finish it, delete it to start over, "
            "or write to another file."
        )
    return done


def _flat(config: Json, prefix: str = "") -> Json:
    """Nested keys joined by dots."""
    flat: Json = {}
    for key, value in config.items():
        flat |= (
            _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat
