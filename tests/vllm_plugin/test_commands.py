"""Commands that decode on vLLM, from the command line to the result file."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from cospec.arbiters import load_arbiter
from tests.vllm_plugin.conftest import HOME
from tests.vllm_plugin.serving import ENVIRONMENT, MODEL

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]
TASK = f"jsonl:{HOME / 'problems.jsonl'},scorer=numeric"
FEW = ["--num-problems", "8", "--max-new-tokens", "80", "--batch-size", "8"]


def cospec(verb: str, *options: object) -> str:
    """Run a command on the bundled pair; return its output."""
    words = [sys.executable, "-c", "from cospec.cli import main; main()", verb, "--pair", MODEL]
    done = subprocess.run(
        [*words, "--dtype", "float32", "--threads", "1", *map(str, options)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | ENVIRONMENT,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return done.stdout + done.stderr


def facts(row: dict[str, object]) -> tuple[object, ...]:
    """Return the parts of a row that the engine must not change."""
    return row["arm"], row["id"], row["correct"], row["num_tokens"]


def test_an_arbiter_is_trained_audited_and_measured_on_vllm(tmp_path: Path) -> None:
    """The rows of `eval` and `bench` are those of our engine."""
    config = {"optimizer": {"num_epochs": 2}, "warmup": {"num_solutions": 4}}
    (tmp_path / "few.json").write_text(json.dumps(config))
    out = tmp_path / "arbiter"
    said = cospec(
        "train", "--task", "reasoning_gym:gsm_symbolic", "--backend", "vllm",
        "--num-rounds", 1, "--prompts-per-round", 6,
        "--num-tune", 4, "--max-new-tokens", 80, "--config", tmp_path / "few.json", "--out", out,
    )  # fmt: skip
    assert "worked solutions are read on transformers" in said
    assert load_arbiter(str(out)).about["history"][-1]["round"] == 1
    rows = {}
    for backend in ("transformers", "vllm"):
        on = ["--task", TASK, *FEW, "--backend", backend, "--json"]
        result = tmp_path / f"eval-{backend}.json"
        cospec("eval", *on, result, "--arbiter", "gap:max_gap=1", "--split", "test")
        found = json.loads(result.read_text())["rows"]
        result = tmp_path / f"bench-{backend}.json"
        cospec(
            "bench", *on, result, "--arms", "lossless", "gap:max_gap=1", "--num-tune-problems", 0
        )
        (cell,) = json.loads(result.read_text())["cells"]
        rows[backend] = [facts(row) for row in (*found, *cell["rows"])]
    assert len(rows["vllm"]) >= 5 * 8 and rows["vllm"] == rows["transformers"]
    audit = tmp_path / "audit.json"
    cospec("audit", "--task", TASK, *FEW, "--backend", "vllm", "--split", "test", "--json", audit)
    assert json.loads(audit.read_text())["summary"]["num_problems"] == 8
