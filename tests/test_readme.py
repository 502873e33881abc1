"""The README's figures and commands are true."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_figures_in_the_readme_are_those_of_the_result_files():
    command = [sys.executable, str(ROOT / "experiments" / "readme.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_example_of_the_readme_runs_and_prints_what_it_shows():
    """Its lossless line is exact on any machine; the others may differ in the last digits."""
    command = [sys.executable, str(ROOT / "examples" / "exactness.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shown = (ROOT / "examples" / "exactness.txt").read_text().splitlines()
    assert done.stdout.splitlines()[:2] == shown[:2]
    assert len(done.stdout.splitlines()) == len(shown) == 5


def test_the_readme_is_short_enough_to_be_read():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200
