"""Every example runs, and says what its page says."""

from __future__ import annotations

import ast
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


def run_cells(notebook):
    """Return what Jupyter would show of the last value of each cell."""
    formatters = pytest.importorskip("IPython.core.formatters")
    names, shown = {"__name__": "__main__"}, []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            tree = ast.parse(cell.source)
            last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, cell.id, "exec"), names)
            if last:
                value = eval(compile(ast.Expression(last.value), cell.id, "eval"), names)
                shown.append(formatters.DisplayFormatter().format(value)[0])
    return shown


def test_the_notebook_runs_and_shows_completions_in_colour(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(EXAMPLES / "first_look.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "it is kept without outputs"
    monkeypatch.chdir(tmp_path)
    shown = [data["text/html"] for data in run_cells(notebook) if "text/html" in data]
    assert len(shown) == 2
    assert all("drafted, the target agreed" in html for html in shown)
    assert "override: the draft&#x27;s token stands\ndraft&#x27;s" in shown[1]
