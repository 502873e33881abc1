"""Texts of two runs: which are compared, and what of them differs."""

from __future__ import annotations

from cospec.report import diffs
from cospec.report.inputs import Texts


def texts(source, **by_arm):
    """One problem a word; a problem is right if its text has a 3 in it."""
    rows = {
        arm: {
            f"p/{i}": {"id": f"p/{i}", "text": text, "correct": "3" in text}
            for i, text in enumerate(each)
        }
        for arm, each in by_arm.items()
    }
    return Texts(source, rows)


def test_the_parts_of_each_side_are_its_text():
    (diff,) = diffs.find_diffs([texts("a", target=["5 - 2 = 3, so"], ours=["5 - 2 = 4 then, so"])])
    sides = {"same": ("first", "second"), "first": ("first",), "second": ("second",)}
    for side, whole in (("first", "5 - 2 = 3, so"), ("second", "5 - 2 = 4 then, so")):
        assert "".join(t for kind, t in diff.parts if side in sides[kind]) == whole
    assert diff.parts[0] == ("same", "5 - 2 = ")
    assert diff.title == "p/0: target, then ours (a)" and diff.fate == "only the first right"


def test_equal_texts_and_the_draft_are_left_out():
    same = texts("a", target=["3"], ours=["3"], draft=["4"])
    assert diffs.find_diffs([same]) == []


def test_an_arm_is_compared_with_itself_in_another_file():
    found = diffs.find_diffs([texts("a", ours=["2", "1"]), texts("b", ours=["3", "1"])])
    assert [(d.title, d.fate) for d in found] == [
        ("p/0: ours in a, then in b", "only the second right")
    ]


def test_problems_that_one_of_the_two_gets_right_come_first_and_only_so_many():
    first = [str(i) for i in (1, 2, *range(4, 4 + diffs.MAX_SHOWN))]
    second = ["10", "3", *("9" + text for text in first[2:])]
    found = diffs.find_diffs([texts("a", target=first, ours=second)])
    assert len(found) == diffs.MAX_SHOWN and found[0].title.startswith("p/1:")
