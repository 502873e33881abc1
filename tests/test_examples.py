"""Every example runs, and says what its page says."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SAYS = {
    "exactness": "lossless               8 of 8 rows",
    "my_arbiter": "lossless                 overrides  0",
    "my_drafter": "same text as the target alone: True",
    "my_rollout_backend": "same: True",
    "my_task": r"\b[1-8] of 8 right",
}


def test_every_example_is_run_here():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(SAYS)


@pytest.mark.parametrize("name", SAYS)
def test_the_example_runs(name, capsys):
    importlib.import_module(f"examples.{name}").main()
    said = capsys.readouterr().out
    assert re.search(SAYS[name], said)
    if name == "exactness":  # its lossless line is exact on any machine, the others nearly
        shown = (EXAMPLES / "exactness.txt").read_text().splitlines()
        assert said.splitlines()[:2] == shown[:2]
        assert len(said.splitlines()) == len(shown) == 5


def test_the_notebook_runs_and_shows_completions_in_colour(tmp_path):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.read(EXAMPLES / "first_look.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "it is kept without outputs"
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute(cwd=tmp_path)
    shown = [
        output["data"]["text/html"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "text/html" in output.get("data", {})
    ]
    assert len(shown) == 2
    assert all("drafted, the target agreed" in html for html in shown)
    assert "override: the draft&#x27;s token stands\ndraft&#x27;s" in shown[1]
