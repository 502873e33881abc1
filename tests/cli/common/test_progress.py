"""Progress where there is no terminal: lines with what is done, the total and the expected end."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

import pytest

from cospec.cli.common import progress
from cospec.cli.common.progress import Progress, duration


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(3, "3 s"), (600, "10 min"), (3 * 3600 + 300, "3 h 5 min"), (50 * 3600, "2 d 2 h")],
)
def test_a_duration_is_told_in_the_units_that_matter(seconds, shown):
    assert duration(seconds) == shown


def wait_for(capsys, pattern):
    """Wait until the output holds the pattern, and return it."""
    seen, end = "", time.monotonic() + 60
    while not re.search(pattern, seen):
        assert time.monotonic() < end, seen
        time.sleep(0.01)
        seen += capsys.readouterr().err
    return seen


def test_lines_come_while_the_work_is_in_one_long_step(capsys, monkeypatch):
    """An audit of a large pair was silent for hours."""
    monkeypatch.setattr(progress, "_EVERY_S", 0.05)
    monkeypatch.setattr(progress, "_FIRST_S", 0.0)
    with Progress(40, "problems", label="audit") as shown:
        wait_for(capsys, r"audit, 0/40 problems after \d s\n")
        shown.update(10, "3 right")
        wait_for(capsys, r"10/40 problems after \d+ s, about .* left \(until .*\): 3 right\n")
    assert not shown._lines.is_alive()


def test_the_expected_end_comes_as_soon_as_it_can_be_told(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_FIRST_S", 0.0)
    with Progress(4, "problems") as shown:
        time.sleep(0.05)
        shown.advance(1)
        first = wait_for(capsys, r"\n")
    assert "1/4 problems" in first and "left (until" in first


def test_what_an_interrupted_run_did_counts_as_no_time(monkeypatch):
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    shown = Progress(100, "problems", done=90)
    monkeypatch.setattr(time, "monotonic", lambda: 110.0)
    assert shown._expected() == ""
    shown.advance(1)
    assert "about 90 s left" in shown._expected()
    shown.extend(10)
    assert "about 3 min left" in shown._expected()
    shown.update(110)
    assert shown._expected() == ""


def test_a_closed_standard_error_silences_progress_and_notes_alone():
    """Found: rich closed standard output as well, and ended the command."""
    program = (
        "from cospec.cli.common.play import tell; from cospec.cli.common.progress import Progress\n"
        "tell(['a note']); Progress(2, 'problems').line('half'); print('the result')"
    )
    reader, writer = os.pipe()
    os.close(reader)
    run = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=writer, check=False
    )
    os.close(writer)
    assert (run.returncode, run.stdout) == (0, b"the result\n")
