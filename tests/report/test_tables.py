"""The numbers of the tables, what is best, and what is said of them."""

from __future__ import annotations

import json

from cospec.report.inputs import Cell
from cospec.report.markdown import to_markdown
from cospec.report.read import read_all
from cospec.report.tables import audit_rows, columns, entries, frontier, verdict

from .conftest import ARMS, arm, audit_document, bench_document, eval_document

KINDS = ["exact", "reference", "exact", "learned", "rule", "random"]
WITH_KINDS = [each | {"kind": kind} for each, kind in zip(ARMS, KINDS, strict=True)]


def best(arms):
    """By column, the arms whose number is marked."""
    rows = entries(arms)
    return {
        column.head: [a["name"] for a, row in zip(arms, rows, strict=True) if row[i].is_best]
        for i, column in enumerate(columns(arms))
    }


def test_the_best_of_each_column_is_marked_without_draft_and_ceilings():
    ceiling = arm("oracle", 0.9, 9.0, kind="ceiling")
    found = best([*WITH_KINDS, ceiling])
    assert found["right (95 %)"] == ["runs/ours"]
    assert found["tokens/s"] == found["over target"] == found["over lossless"] == ["gap:max_gap=1"]
    assert found["acceptance length"] == ["runs/ours"]
    assert found["won / lost"] == found["McNemar p"] == found["overrides"] == []


def test_arms_that_show_the_same_best_number_are_all_marked():
    one, two = (arm(n, a, 2.0, kind="rule") for n, a in (("a", 0.60001), ("b", 0.60002)))
    assert best([one, two])["right (95 %)"] == ["a", "b"]


def test_an_arm_without_forwards_is_not_the_best_in_them():
    none = arm("free", 0.5, 1.0, kind="rule", target_forwards_per_token=0.0)
    some = arm("paid", 0.5, 1.0, kind="rule", target_forwards_per_token=0.2)
    assert best([none, some])["forwards a token"] == ["paid"]


def test_columns_that_no_arm_fills_are_left_out():
    heads = [column.head for column in columns(WITH_KINDS)]
    assert "k" not in heads and "knob" not in heads
    with_k = [each | {"k": 4} for each in WITH_KINDS]
    assert "k" in [column.head for column in columns(with_k)]


def test_the_frontier_has_the_arms_that_none_dominates():
    ceiling = arm("oracle", 0.9, 9.0, kind="ceiling")
    found = [[*WITH_KINDS, ceiling][i]["name"] for i in frontier([*WITH_KINDS, ceiling])]
    assert found == ["runs/ours", "gap:max_gap=1", "draft"]
    twins = [arm("a", 0.5, 2.0, kind="rule"), arm("b", 0.5, 2.0, kind="rule")]
    assert frontier(twins) == [0]


def test_the_verdict_claims_what_the_tests_and_intervals_carry():
    assert verdict(Cell("t", "", WITH_KINDS, "f", ["A note."])) == [
        "On the frontier: runs/ours, gap:max_gap=1, draft.",
        "More right than the target (p < 0.05): runs/ours.",
        "Less right: random:rate=0.5.",
        "Faster than lossless (whole interval above 1): gap:max_gap=1.",
        "Noise floor: lossless wrote 0 of 100 texts unlike the target.",
        "A note.",
    ]


def test_where_problems_come_in_groups_the_verdict_goes_by_them():
    arms = [each | {"group_p": 0.5} for each in WITH_KINDS]
    _, more, less, *_ = verdict(Cell("t", "", arms, "f"))
    assert more.endswith(": none.") and less.endswith(": none.")


def test_where_no_speed_has_an_interval_it_is_not_said_that_no_arm_is_faster():
    """Found: it was "none", as if all arms had been measured well enough."""
    arms = [each | {"speedup_vs_lossless_ci95": None} for each in WITH_KINDS]

    def said():
        (sentence,) = (s for s in verdict(Cell("t", "", arms, "f")) if s.startswith("Faster"))
        return sentence.removeprefix("Faster than lossless")

    assert said() == ": not told, since there were too few chunks for an interval."
    arms[3]["speedup_vs_lossless_ci95"] = [0.9, 1.1]
    assert said() == " (whole interval above 1): none."


def test_an_audit_names_the_path_whose_accuracy_it_shows(tmp_path):
    """Found: the accuracy of an audited arbiter was called that of the target alone."""
    for name, path in (("exact", None), ("ours", "gap:max_gap=1|")):
        document = audit_document()
        document["summary"]["path"] = path
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    inputs = read_all([tmp_path])
    rows = {label: values for label, *values in audit_rows(inputs.audits)}
    assert rows["path"] == ["target alone", "gap:max_gap=1|"]
    assert rows["path right"] == ["50.0% (40.0 to 60.0)"] * 2
    assert "target alone right" not in rows
    title = "gsm8k, Big-7B / Small-1B"
    titles = [title, f"{title}, path of gap:max_gap=1|"]
    assert [audit.title for audit in inputs.audits] == titles
    assert "| path | target alone | gap:max\\_gap=1\\| |" in to_markdown(inputs)


def test_markdown_has_the_same_numbers_with_the_best_in_bold(results):
    text = to_markdown(read_all([results]))
    lines = text.split("## gsm8k, Big-7B / Small-1B\n")[1].splitlines()
    (ours,) = (line for line in lines if line.startswith("| runs/ours"))
    cells = [cell.strip() for cell in ours.strip("|").split("|")]
    assert cells == [
        "runs/ours", "**60.0% (55.0 to 65.0)**", "20 / 10", "0.01", "1900", "1.90x (1.71 to 2.09)",
        "0.95x (0.85 to 1.04)", "**3.90**", "7", "**0.300**", "**30.0**",
    ]  # fmt: skip
    assert "| path | target alone |\n| path right | 50.0% (40.0 to 60.0) |" in text
    assert "<script" not in text


def test_a_name_cannot_break_a_markdown_table():
    from cospec.report.inputs import Inputs

    hostile = arm("a|b*<c>\nd[e](f)\x1b\u202e", 0.5, 1.0, kind="rule")
    text = to_markdown(Inputs(cells=[Cell("t|u", "", [hostile], "f")]))
    assert r"| a\|b\*&lt;c> d\[e\](f)\\x1b\\u202e | **50.0%" in text


def test_an_arm_with_one_turn_has_no_speed_up_and_the_verdict_says_so(tmp_path):
    """Found: the ratio of one turn stood there without an interval, and as the best."""
    document = eval_document()
    document["chunks"] = [{"arm": each["name"], "chunk": 0} for each in ARMS]
    (tmp_path / "once.json").write_text(json.dumps(document))
    (cell,) = read_all([tmp_path]).cells
    found = best(cell.arms)
    assert found["over target"] == found["over lossless"] == []
    heads = [column.head for column in columns(cell.arms)]
    for row in entries(cell.arms):
        assert {row[heads.index(f"over {name}")].text for name in ("target", "lossless")} == {"-"}
    assert verdict(cell)[0].startswith("On the frontier: not told. Arms had one turn each")
    document["chunks"] *= 2
    (tmp_path / "once.json").write_text(json.dumps(document))
    (cell,) = read_all([tmp_path]).cells
    assert best(cell.arms)["over target"] == ["gap:max_gap=1"]


def test_a_speed_up_of_repeats_is_their_median_also_in_older_files(tmp_path):
    document = bench_document()
    for cell in document["cells"]:
        cell["arms"][4]["repeats"]["speedup_vs_target"] = [1.0, 3.0, 2.25]
    (tmp_path / "bench.json").write_text(json.dumps(document))
    assert read_all([tmp_path]).cells[0].arms[4]["speedup_vs_target"] == 2.25
