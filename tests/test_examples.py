"""Every example runs, and says what its page says."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SAYS = {
    "exactness": "lossless               8 of 8 rows",
    "my_arbiter": "lossless                 overrides  0",
    "my_drafter": "same text as the target alone: True",
    "my_rollout_backend": "same: True",
    "my_task": "of 8 right",
}


def test_every_example_is_run_here():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(SAYS)


@pytest.mark.parametrize("name", SAYS)
def test_the_example_runs(name, capsys):
    importlib.import_module(f"examples.{name}").main()
    said = capsys.readouterr().out
    assert SAYS[name] in said
    if name == "exactness":  # its lossless line is exact on any machine, the others nearly
        shown = (EXAMPLES / "exactness.txt").read_text().splitlines()
        assert said.splitlines()[:2] == shown[:2]
        assert len(said.splitlines()) == len(shown) == 5
