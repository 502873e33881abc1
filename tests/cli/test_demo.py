"""``cospec demo``: the table and one problem in colour, on a tiny pair."""

from __future__ import annotations

import json

import pytest
import torch

import cospec
from cospec.cli import demo
from cospec.evaluation.evaluate import Evaluation
from cospec.tasks import Score, jsonl


@pytest.fixture(autouse=True)
def short_answers(monkeypatch):
    monkeypatch.setattr(demo, "_MAX_NEW_TOKENS", 8)


def test_the_demo_compares_four_arms_and_shows_a_problem(tiny, problems, tmp_path, capsys):
    result = tmp_path / "r.json"
    tiny(
        "demo", "--problems", problems, "--num-problems", 4, "--arbiter", "always_draft",
        "--json", result,
    )  # fmt: skip
    out = capsys.readouterr().out
    document = json.loads(result.read_text())
    assert document["command"] == "demo"
    arms = [arm["name"] for arm in document["arms"]]
    assert arms == ["target", "draft", "lossless", "always_draft"]
    row = next(
        row
        for row in document["rows"]
        if (row["id"], row["arm"]) == (document["shown_id"], "always_draft")
    )
    assert (
        f"No problem was saved by an override. One with an override by always_draft ({row['id']}):"
        in out
    )
    assert "the [b]hen" in out
    assert row["text"] in out
    assert out.count("override at token") == min(10, row["num_overrides"])
    assert "target: none" in out
    assert out.rstrip().endswith(demo._NEXT.strip())
    assert demo._NEXT.count("--target T --draft D --task gsm8k") == 2
    assert tiny.asked_for[0].pair == "bundled:specialist"


@pytest.mark.parametrize(
    ("given", "expected"),
    [([], 1), (["--threads", 2], 2), (["--target", "a", "--draft", "b"], 3)],
)
def test_a_bundled_pair_has_one_thread_unless_told(given, expected, tiny, problems, tmp_path):
    """Found: beside a busy process the demo took almost three times as long with two."""
    before, result = torch.get_num_threads(), tmp_path / "r.json"
    torch.set_num_threads(3)
    try:
        fixed = "--num-problems", 1, "--arbiter", "gap", "--json", result
        tiny("demo", "--problems", problems, *fixed, *given)
    finally:
        torch.set_num_threads(before)
    assert json.loads(result.read_text())["provenance"]["threads"] == expected


def test_the_demo_shows_a_problem_that_an_override_saved(tiny, problems, monkeypatch, capsys):
    def scorer(example, text):
        return Score(float(text not in target_texts), text)

    target_texts = set()
    row = Evaluation._row

    def first_target(self, arm, i, completion):
        if arm == "target":
            target_texts.add(completion.text)
        return row(self, arm, i, completion)

    monkeypatch.setitem(jsonl.SCORERS, "numeric", scorer)
    monkeypatch.setattr(Evaluation, "_row", first_target)
    tiny("demo", "--problems", problems, "--num-problems", 6, "--arbiter", "gap:max_gap=2")
    out = capsys.readouterr().out
    assert "A problem that the target alone gets wrong and gap:max_gap=2 right (p/" in out
    assert "the target wanted" in out
    assert "No problem was saved" not in out


def test_a_demo_without_overrides_says_so(tiny, problems, tmp_path, capsys):
    result = tmp_path / "r.json"
    tiny(
        "demo", "--problems", problems, "--num-problems", 2, "--arbiter", "gap:max_gap=0",
        "--target", "a", "--draft", "b", "--json", result,
    )  # fmt: skip
    assert "gap:max_gap=0 made no override" in capsys.readouterr().out
    assert json.loads(result.read_text())["shown_id"] is None
    assert (tiny.asked_for[0].pair, tiny.asked_for[0].target) == (None, "a")


def test_the_problems_of_the_package_are_the_default(tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(cospec, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(SystemExit, match="this build ships no problems"):
        tiny("demo", "--arbiter", "gap")
    (tmp_path / "bundled").mkdir()
    lines = [json.dumps({"id": i, "question": f"{i} hens", "answer": "1"}) for i in range(3)]
    (tmp_path / "bundled" / "problems.jsonl").write_text("\n".join(lines))
    with pytest.raises(SystemExit, match="3 test problems, 80 asked for"):
        tiny("demo", "--arbiter", "gap")


def test_a_file_of_ones_own_is_solved_whole_by_default(tiny, problems, tmp_path):
    """Found: a file of fewer than 120 problems was refused."""
    result = tmp_path / "r.json"
    tiny("demo", "--problems", problems, "--arbiter", "gap", "--json", result)
    assert json.loads(result.read_text())["arms"][0]["num_problems"] == 6


def test_problems_that_share_an_id_are_refused(tiny, tmp_path):
    """Found: they shared scores, which are kept by id."""
    path = tmp_path / "twice.jsonl"
    asked = enumerate((1, 2, 1))
    rows = [{"id": one, "question": f"{i} hens", "answer": "1"} for i, one in asked]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SystemExit, match="has 2 problems with the id '1'; give each an id of its"):
        tiny("demo", "--problems", path, "--num-problems", 3, "--arbiter", "gap")
    assert tiny.asked_for == []


def test_adaptive_blocks_need_a_cost_as_in_other_comparisons(tiny, capsys):
    with pytest.raises(SystemExit):
        tiny("demo", "--adaptive")
    assert "adaptive is on and adaptive_cost is None" in " ".join(capsys.readouterr().err.split())
    assert tiny.asked_for == []
