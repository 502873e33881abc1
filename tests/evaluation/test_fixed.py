"""One answer to every problem, as a control."""

from __future__ import annotations

from typing import Any

from cospec.cli.views.arms import print_fixed_answer
from cospec.evaluation.fixed import best_fixed_answer
from cospec.tasks import Example, Score

EXAMPLES = [Example(str(i), f"Which number is {i % 4}?", str(i % 4)) for i in range(40)]


def score(example: Example, text: str) -> Score:
    answer = text.removeprefix("It is ")
    return Score(float(answer == example.answer or (answer == "any" and example.id != "7")), answer)


def row(arm: str, answer: str | None) -> dict[str, Any]:
    return {"arm": arm, "extracted": answer, "text": f"It is {answer}"}


def test_the_best_of_the_frequent_answers_is_found() -> None:
    rows = [row("target", e.answer) for e in EXAMPLES]
    rows += [row("ours", "any") for _ in range(2)] + [row("ours", None) for _ in range(38)]
    found = best_fixed_answer(score, EXAMPLES, rows)
    assert found == {"answer": "any", "num_right": 39, "accuracy": 39 / 40}


def test_an_answer_that_no_arm_gives_often_is_not_tried() -> None:
    rows = [row("target", str(100 + i)) for i in range(39)] + [row("ours", "any")]
    assert best_fixed_answer(score, EXAMPLES, rows) is None
    assert best_fixed_answer(score, EXAMPLES, []) is None


def test_only_a_fixed_answer_that_comes_near_the_arms_is_shown(capsys: Any) -> None:
    arms = [{"accuracy": 0.6}, {"accuracy": 0.8}]
    print_fixed_answer({"answer": "Q\x1b", "num_right": 3, "accuracy": 0.3}, arms)
    assert capsys.readouterr().out == ""
    print_fixed_answer({"answer": "Q\x1b", "num_right": 4, "accuracy": 0.4}, arms)
    said = capsys.readouterr().out
    assert "is right at 40.0%" in said and "\x1b" not in said
