"""Our counters beside vLLM's on ``/metrics``.

vLLM makes the stat loggers of the entry-point group ``vllm.stat_logger_plugins`` in its server's
process, one for each engine, and calls them at every output. This one reads the file to which the
engine's worker adds (`metrics`) and hands the new counts to Prometheus. With several server
processes, which see the same file, each count is taken by one of them, and vLLM's own multi-process
set-up adds them up. `frontend` is installed here as well, only in servers with settings.
"""

from __future__ import annotations

import atexit
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY, Counter
from vllm.v1.metrics.loggers import StatLoggerBase

from cospec.vllm_plugin import frontend
from cospec.vllm_plugin.metrics import COUNTS, HELP, CountsFile, counts_path, open_counts
from cospec.vllm_plugin.settings import Settings

if TYPE_CHECKING:
    from vllm.config import VllmConfig

PREFIX = "cospec:"
_FILES: list[CountsFile] = []
"""Files of counts of the engines of this process."""
_COUNTERS: dict[str, Counter] = {}
"""Counters by name; the registry of a process takes each name once."""


class CospecStatLogger(StatLoggerBase):  # type: ignore[misc]  # Any where vLLM is absent
    """Counts of one engine, for Prometheus; does nothing if CoSpec is off in that engine."""

    def __init__(self, vllm_config: VllmConfig, engine_index: int = 0) -> None:
        self._file: CountsFile | None = None
        settings = Settings.from_vllm(vllm_config)
        if settings is None:
            return
        frontend.install(settings, request_overrides)
        self._file = open_counts(counts_path(vllm_config, engine_index))
        if self._file is None:
            return
        _FILES.append(self._file)
        atexit.register(self._file.remove)
        model = vllm_config.model_config.served_model_name
        labels = {"model_name": str(model), "engine": str(engine_index)}
        self._counters = {name: _counter(name).labels(**labels) for name in COUNTS}

    def record(self, *args: object, **kwargs: object) -> None:
        """Take the new counts; vLLM's own statistics are ignored."""
        if self._file is None:
            return
        for name, count in self._file.take().items():
            if count:
                self._counters[name].inc(count)

    def log(self) -> None:
        """Do the same every few seconds, for counts that came after the last output."""
        self.record()

    def log_engine_initialized(self) -> None:
        """Do nothing."""


def request_overrides(request_id: str) -> int | None:
    """Overrides of a recent request of an engine of this process; None if it is not known."""
    found = (file.overrides(request_id) for file in _FILES)
    return next((count for count in found if count is not None), None)


def _counter(name: str) -> Counter:
    """The counter of a name, made once."""
    if name not in _COUNTERS:
        _COUNTERS[name] = Counter(
            f"{PREFIX}{name}", HELP[name], labelnames=["model_name", "engine"], registry=REGISTRY
        )
    return _COUNTERS[name]
