"""The README's figures and commands are true."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from experiments import readme
from experiments.tables import numbers, rows, rules

ROOT = Path(__file__).parent.parent
VLLM = "vllm_speed_specialist"


@pytest.mark.parametrize("page", readme.PAGES)
def test_the_figures_of_a_page_are_those_of_the_result_files(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert readme.filled(text) == text, "run python experiments/readme.py"


def test_no_other_page_has_marked_numbers():
    """Found: two of the questions page stood at 0, since nothing filled them."""
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("experiments/**/*.md")]:
        page, marks = path.relative_to(ROOT).as_posix(), numbers.MARK.findall(path.read_text())
        shown = [spec for spec, _ in marks if not spec.startswith("FILE")]  # how they are written
        assert page in readme.PAGES or not shown, page


def test_a_marked_number_that_the_rows_do_not_give_is_replaced():
    """So the check fails on a page whose number is another one."""
    text = "<!-- n eval_family_batch16 target right -->{}<!-- /n --> and 9 <!-- not marked -->"
    shown = numbers.filled(text.format("99.9 %"))
    assert shown == text.format("57.7 %") == numbers.filled(shown)
    with pytest.raises(SystemExit, match="cannot be computed"):
        numbers.filled("<!-- n eval_family_batch16 nobody right -->1<!-- /n -->")
    with pytest.raises(AssertionError, match="not closed"):
        numbers.filled("<!-- n eval_family_batch16 target right -->57.7 %")


def test_tables_follow_the_bits_of_the_rows_and_no_stored_summary():
    arm = rows.arms("eval_family_batch16")["draft"]
    other = dataclasses.replace(arm, bits="1" * len(arm.bits), entry={"name": "draft"})
    assert other.accuracy == 1.0 > arm.accuracy == arm.entry["accuracy"]
    assert other.against(arm) == (arm.bits.count("0"), 0)


def test_both_tables_of_rules_have_every_rule_and_take_p_over_groups():
    page = (ROOT / "docs/results/rules.md").read_text(encoding="utf-8")
    assert {page.count(f"| `{name}` |") for name in rules.RULES} == {2}
    arm, target = (rows.Arm({}, bits, [], 0, 0, 0) for bits in ("1111", "0000"))
    found = [rules.Cell(arm, target, groups).p for groups in (None, ["a", "a", "b", "b"])]
    assert found == [0.125, 0.5], "four problems, two groups"


def test_the_problems_of_the_demo_are_those_of_the_comparison_inside_vllm():
    """The card says so: they are no others."""
    demo, vllm = set(rows.read("demo")["ids"]), {row["id"] for row in rows.read(VLLM)["rows"]}
    assert demo == vllm and len(demo) == 200


def test_the_python_of_the_readme_runs_as_it_stands(monkeypatch, capsys):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    _, _, rest = text.partition("<!-- example -->\n```python\n")
    program, end, _ = rest.partition("```\n")
    assert end, "there is no example"
    monkeypatch.chdir("/")
    exec(compile(program, "README.md", "exec"), {"__name__": "__main__"})
    assert "####" in capsys.readouterr().out, "a worked solution"


def test_the_readme_is_short_enough_to_be_read():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130
