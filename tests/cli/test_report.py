"""``cospec trace`` and ``cospec report`` as a user starts them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from cospec.errors import pip_line


def test_traces_of_a_task_become_a_page(tiny, problems, tmp_path, capsys):
    traces, page, plots = tmp_path / "t.json", tmp_path / "r.html", tmp_path / "plots"
    task = f"jsonl:{problems},scorer=numeric,split=test"
    command = ["trace", "--task", task, "--arbiter", "gap:max_gap=2", "-k", 3]
    tiny(*command, "--max-new-tokens", 10, "--keep", 2, "--json", traces)
    assert "2 of 6 problems recorded, 0 of them won or lost" in capsys.readouterr().out
    document = json.loads(traces.read_text())
    assert (document["command"], len(document["rows"])) == ("trace", 2)
    tables = tmp_path / "r.md"
    tiny("report", traces, "--out", page, "--plots", plots, "--markdown", tables, "--title", "Mine")
    out = capsys.readouterr().out
    assert all(str(path) in out for path in (page, plots, tables))
    text = page.read_text()
    assert "<h1>Mine</h1>" in text and "gap:max_gap=2" in text
    assert len(list(plots.glob("*.png"))) == len(list(plots.glob("*.svg"))) > 0
    for what in (["--out", page], ["--plots", plots]):
        with pytest.raises(SystemExit, match="exists; name another file"):
            tiny("report", traces, *what)
    with pytest.raises(SystemExit, match="which is a file; name a folder"):
        tiny("report", traces, "--plots", traces)
    tiny("report", traces, "--plots", plots, "--overwrite")


def test_traces_of_a_drafter_without_probabilities_become_a_page(tiny, problems, tmp_path):
    traces, page = tmp_path / "t.json", tmp_path / "r.html"
    task = f"jsonl:{problems},scorer=numeric,split=test"
    command = ["trace", "--task", task, "--arbiter", "always_draft", "--drafter", "ngram"]
    tiny(*command, "--max-new-tokens", 40, "--json", traces)
    rows = json.loads(traces.read_text())["rows"]
    (found,) = {m["q_draft_id"] for row in rows for m in row["mismatches"]}
    assert found is None
    tiny("report", traces, "--out", page)
    assert "<td>-</td>" in page.read_text()


def test_what_cannot_be_written_or_read_is_refused(tiny, problems, tmp_path, capsys):
    with pytest.raises(SystemExit, match="nothing to write"):
        tiny("report", tmp_path)
    with pytest.raises(SystemExit, match="found no results"):
        tiny("report", problems.parent, "--out", tmp_path / "r.html")
    result = tmp_path / "result.json"
    result.write_text("{}")
    with pytest.raises(SystemExit, match=r"result\.json is a result to read; name another file"):
        tiny("report", result, "--markdown", result, "--overwrite")
    assert result.read_text() == "{}"
    task = f"jsonl:{problems},scorer=numeric,split=test"
    with pytest.raises(SystemExit, match="name it by --json"):
        tiny("trace", "--task", task)
    with pytest.raises(SystemExit):
        tiny("trace", "--task", task, "--keep", 0, "--json", tmp_path / "t.json")
    assert "keep is 0; it must be at least 1" in capsys.readouterr().err
    assert tiny.asked_for == []


def test_a_missing_extra_is_told_with_its_command(tmp_path):
    """As where matplotlib is not installed."""
    result = tmp_path / "m.metrics.jsonl"
    result.write_text('{"round": 1, "override_rate": 0.5}\n')
    program = "import sys; sys.modules['matplotlib'] = None; from cospec.cli import main; main()"
    command = [
        sys.executable,
        "-c",
        program,
        "report",
        str(result),
        "--out",
        str(tmp_path / "r.html"),
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode != 0 and pip_line("report") in run.stderr
    assert "Traceback" not in run.stderr
