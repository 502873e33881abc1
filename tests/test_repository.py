"""The repository stays small: results are slimmed, weights other than the named ones stay out."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SQL = "experiments/text_to_sql"
WEIGHTS = (
    "src/cospec/bundled/",
    *(f"{SQL}/{name}" for name in ("draft/", "known_arbiter", "known_draft", "known_target")),
)
"""Weights that ship, and the adapters and arbiters that reproduce the text-to-SQL results."""
MAX_FILE_BYTES, MAX_TREE_BYTES = 500 * 1024, 5_800_000


@pytest.fixture(scope="module")
def sizes():
    """By path, the size of each tracked file outside the named weights."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("this is no git checkout")
    paths = [ROOT / name for name in done.stdout.split("\0") if not name.startswith(WEIGHTS)]
    return {path: path.stat().st_size for path in paths if path.is_file()}


def test_no_tracked_file_is_large(sizes):
    assert not {path: size for path, size in sizes.items() if size > MAX_FILE_BYTES}


def test_the_tracked_tree_is_small(sizes):
    assert 0 < sum(sizes.values()) < MAX_TREE_BYTES


def test_every_experiment_says_its_question_and_its_commands(sizes):
    folders = {path.parent for path in sizes if path.parent.parent == ROOT / "experiments"}
    folders.discard(ROOT / "experiments" / "tables")  # a part of `experiments/readme.py`
    for folder in folders:
        assert (folder / "README.md").read_text().startswith("# "), folder
        assert (folder / "run.sh").exists() or (folder / "run.py").exists(), folder


def test_every_test_that_the_page_of_attacks_names_exists():
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", (ROOT / "docs" / "attacks.md").read_text())
    assert len(named) > 40
    for path, name in named:
        assert f"\ndef {name}(" in (ROOT / "tests" / path).read_text(), (path, name)
