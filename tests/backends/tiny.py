"""Backends of a tiny pair that replicas can make for themselves, some of which fail on purpose."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cospec.backends.engine import EngineBackend
from cospec.config import DecodeConfig
from cospec.errors import ConfigError
from tests.conftest import family_pair

if TYPE_CHECKING:
    from pathlib import Path

DOOMED = 4
"""Stream of the item that fails."""


def tiny_backend() -> EngineBackend:
    config = DecodeConfig(num_speculative_tokens=4, batch_size=4)
    return EngineBackend(family_pair("llama"), config)


@dataclass
class Failing(EngineBackend):
    """Fails at the doomed item: by an error, or by SIGKILL, always or the first time."""

    how: str = "raises"
    once: Path | None = None

    def complete(self, items, arbiter, *, keep_handles=False):
        is_doomed = any(item.stream == DOOMED for item in items)
        if is_doomed and not (self.once is not None and self.once.exists()):
            if self.once is not None:
                self.once.write_text("it has failed")
            if self.how == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("there is something wrong with this one")
        return super().complete(items, arbiter, keep_handles=keep_handles)


def failing_backend(how: str, once: Path | None) -> EngineBackend:
    made = tiny_backend()
    return Failing(made.pair, made.config, how=how, once=once)


@dataclass
class DiesOnce(EngineBackend):
    """Is killed when it first is to play branches, and works in its next life."""

    once: Path | None = None

    def branch(self, points, arbiter, **options):
        if not self.once.exists():
            self.once.write_text("it was killed")
            os.kill(os.getpid(), signal.SIGKILL)
        return super().branch(points, arbiter, **options)


def impossible_backend() -> EngineBackend:
    """Raise what a user has to mend."""
    raise ConfigError("no such model here")
