"""Progress of long work on standard error: a bar on a terminal, lines elsewhere.

Lines say what is done, the total, and the expected end. A thread prints them, so that they come
while one long batch decodes.
"""

from __future__ import annotations

import threading
import time
from datetime import datetime, timedelta
from typing import Self

from rich import progress as rich_progress
from rich.console import Console

from cospec.text import visible

_EVERY_S = 60.0
"""Most seconds between two lines."""
_FIRST_S = 10.0
"""Seconds until the first estimate of the end is good enough to print."""


class QuietConsole(Console):
    """A console that falls silent once nobody reads it, where rich would end the program."""

    def on_broken_pipe(self) -> None:
        """Print nothing more."""
        self.quiet = True


class Progress:
    """Progress of some units of work, shown until the ``with`` block ends.

    Args:
        total: Units of all work.
        unit: Their name in the plural, such as ``problems``.
        done: Units that an interrupted run has done; the estimate of the end leaves them out.
        label: Name of this part of the work, where there are several.

    Attributes:
        done: Units that are done.
    """

    def __init__(self, total: float, unit: str, *, done: float = 0, label: str = "") -> None:
        self._console = QuietConsole(stderr=True, soft_wrap=True, highlight=False)
        self._total, self._unit, self._label = total, unit, label
        self.done = self._done_before = done
        self._note = ""
        self._start = self._shown = time.monotonic()
        self._has_told = False
        self._ended = threading.Event()
        self._bar = rich_progress.Progress(
            rich_progress.MofNCompleteColumn(),
            rich_progress.BarColumn(),
            rich_progress.TimeRemainingColumn(),
            rich_progress.TextColumn("{task.description}", markup=False),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(label, total=total, completed=int(done))
        self._lines = threading.Thread(target=self._print_lines, daemon=True)

    def __enter__(self) -> Self:
        self._bar.start()
        if not self._console.is_terminal:
            self._lines.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._lines.is_alive():
            self._lines.join()
        self._bar.stop()

    def advance(self, num: float) -> None:
        """Count units that were just done."""
        self.update(self.done + num)

    def update(self, done: float, note: str | None = None) -> None:
        """Set the number of units that are done, and the note beside it."""
        self.done = min(done, self._total)
        self._note = self._note if note is None else visible(note)
        described = "  ".join(filter(None, (self._label, self._note)))
        self._bar.update(self._task, completed=int(self.done), description=described)

    def extend(self, num: float) -> None:
        """Add units that turned out to be needed."""
        self._total += num
        self._bar.update(self._task, total=self._total)

    def line(self, text: str) -> None:
        """Print a text and the expected end as a line, unless there is a bar."""
        if not self._console.is_terminal:
            self._print(visible(text) + self._expected())

    def _print_lines(self) -> None:
        while not self._ended.wait(min(1.0, _EVERY_S)):
            now = time.monotonic()
            is_first = not self._has_told and now - self._start >= _FIRST_S and self._expected()
            if is_first or now - self._shown >= _EVERY_S:
                head = f"{self._label}, " if self._label else ""
                passed = duration(now - self._start)
                tail = f": {self._note}" if self._note else ""
                self._print(
                    f"{head}{self.done:,.0f}/{self._total:,.0f} {self._unit} after {passed}"
                    f"{self._expected()}{tail}"
                )

    def _print(self, text: str) -> None:
        self._has_told, self._shown = True, time.monotonic()
        self._console.print(text, markup=False)

    def _expected(self) -> str:
        """Return the time that is left, once it can be estimated."""
        ours = self.done - self._done_before
        if ours <= 0 or self.done >= self._total:
            return ""
        left_s = (time.monotonic() - self._start) * (self._total - self.done) / ours
        end = datetime.now().astimezone() + timedelta(seconds=left_s)
        form = "%H:%M" if left_s < 12 * 3600 else "%a %H:%M"
        return f", about {duration(left_s)} left (until {end:{form}})"


def duration(seconds: float) -> str:
    """Return a time as text, in at most two units."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"
