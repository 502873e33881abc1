"""The frame of a command that measures: checks, then a log while it works, then a result file.

The log lets the same command resume after an interruption, and keeps a second run from writing to
the same file. This module knows the pair and JSON, but not the measurement.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cospec.cli.common.options import OutputOptions, set_threads
from cospec.results import (
    Json,
    Provenance,
    check_apart,
    check_writable,
    document,
    write_json,
)

if TYPE_CHECKING:
    from cospec.evaluation.turns import TurnLog
    from cospec.models import ModelPair
    from cospec.types import Arbiter


class Run:
    """A run of one command, from its checks to its result file.

    Args:
        command: Verb of the command.
        output: File of the result, and whether it may be replaced.
        threads: CPU threads; None leaves torch's number.
        files: Other files that the command writes, which must not exist either.

    Attributes:
        is_resumed: Whether there is a log of a run that did not finish, perhaps an empty one.

    Raises:
        ConfigError: A file exists, cannot be written, or belongs to a run that has not finished.
    """

    def __init__(
        self,
        command: str,
        output: OutputOptions,
        *,
        threads: int | None = None,
        files: Sequence[Path | None] = (),
    ) -> None:
        from cospec.evaluation.turns import check_unlocked, log_path

        self.command, self.path, self._overwrite = command, output.json, output.overwrite
        self._files = files
        check_apart([self.path, *files])
        check_writable(self.path, output.overwrite)
        self.is_resumed = self.path is not None and log_path(self.path).exists()
        if self.path is not None:
            check_unlocked(log_path(self.path))
        for path in files:  # a run that was killed at its end has written them
            check_writable(path, output.overwrite or self.is_resumed)
        set_threads(threads)
        self._provenance = Provenance()
        self._log: TurnLog | None = None
        self._config: Json = {}
        self._where = "", ""

    @contextmanager
    def log(
        self,
        options: Any,  # Any: the dataclass of the command
        pair: ModelPair,
        arbiters: Mapping[str, Arbiter],
        **about: Json,
    ) -> Iterator[TurnLog | None]:
        """Open the log of the run; None if the result goes to no file.

        Args:
            options: Settled options of the command.
            pair: The models; hashes of them are part of the configuration.
            arbiters: Arbiters by spec; hashes of trained ones are part of the configuration.
            **about: Other inputs of the result, such as hashes of the problems.

        Raises:
            ConfigError: There is an interrupted run with another configuration, or the result was
                written by another run in the meantime.
        """
        from cospec.evaluation.problems import describe_arbiter, describe_models
        from cospec.evaluation.turns import TurnLog

        self._config = to_json(options) | about | {"models": describe_models(pair)}
        del self._config["output"]
        found = {spec: describe_arbiter(arbiter) for spec, arbiter in arbiters.items()}
        self._config["arbiters"] = {spec: known for spec, known in found.items() if known}
        engine = getattr(options, "engine", None)
        device = str(pair.target.device) if engine is None else engine.device(pair)
        self._where = device, str(pair.target.dtype)
        if self.path is None:
            yield None
            return
        provenance = self._provenance.to_dict(*self._where)
        with TurnLog.beside(self.path, _where_no_matter(self._config), provenance) as self._log:
            for path in (self.path, *(() if self._log.done else self._files)):
                check_writable(path, self._overwrite)
            yield self._log

    def interrupted(self, *keys: str) -> Any:  # Any: whatever JSON holds
        """Return a value of the configuration of the run that did not finish; None without one."""
        from cospec.evaluation.turns import interrupted, log_path

        return None if self.path is None else interrupted(log_path(self.path), *keys)

    def write(self, **parts: object) -> None:
        """Write the result, if it goes to a file, and delete the log."""
        if self.path is None or self._log is None:
            return
        where = self._provenance.to_dict(*self._where)
        resumed = {"num_resumed_turns": len(self._log.done)}
        write_json(self.path, document(self.command, self._config, where, **parts, **resumed))
        self._log.remove()


def _where_no_matter(config: Json) -> Json:
    """Return a configuration without the number and address of its engines."""
    engine = config.get("engine", {})
    kept = {key: engine[key] for key in engine if key not in ("num_replicas", "ray_address")}
    return config | ({"engine": kept} if engine else {})


def to_json(options: Any) -> Json:  # Any: a dataclass
    """Return the fields of a dataclass as JSON; paths are strings."""
    found: Json = json.loads(json.dumps(asdict(options), default=str))
    return found
