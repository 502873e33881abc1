"""The named mathematical sets: rows, splits, scores."""

from __future__ import annotations

import re
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from cospec.errors import ConfigError, MissingExtraError, TaskError, pip_line
from cospec.tasks import SPLITS, Example, Task, load_task
from cospec.tasks.math_sets import score_gsm8k, score_mathematics
from cospec.tasks.splits import normalize, split_of

from .conftest import gsm8k_row, write_lines

if TYPE_CHECKING:
    from pathlib import Path


def ids(task: Task, split: Any) -> set[str]:
    return {example.id for example in task.examples(split)}


def test_gsm8k_takes_tune_from_its_train_file_and_test_from_its_test_file(data_dir: Path) -> None:
    task = load_task("gsm8k", data_dir=data_dir)
    assert all(identity.startswith("gsm8k/test_even/") for identity in ids(task, "test"))
    assert len(ids(task, "train")) + len(ids(task, "tune")) == 100
    assert all(split_of(e.question) == "tune" for e in task.examples("tune"))
    assert not any(split_of(e.question) == "tune" for e in task.examples("train"))


def test_gsm8k_prefers_the_whole_test_file_where_there_is_one(data_dir: Path) -> None:
    write_lines(data_dir / "gsm8k/test.jsonl", [gsm8k_row(5)])
    assert ids(load_task("gsm8k", data_dir=data_dir), "test") == {"gsm8k/test/0"}


def test_a_train_problem_that_is_also_in_the_test_file_is_left_out(data_dir: Path) -> None:
    copied = {**gsm8k_row(3), "question": f"  {gsm8k_row(3)['question']} "}
    write_lines(data_dir / "gsm8k/train.jsonl", [copied, gsm8k_row(300)])
    task = load_task("gsm8k", data_dir=data_dir)
    assert ids(task, "train") == {"gsm8k/train/1"}


def test_gsm8k_answers_lose_their_commas_and_solutions_their_calculator_marks(
    data_dir: Path,
) -> None:
    example = load_task("gsm8k", data_dir=data_dir).examples("test", 1)[0]
    assert example.answer.startswith("1") and example.answer.isdigit()
    assert "<<" not in example.metadata["solution"]


def test_gsm8k_reports_the_strict_and_the_flexible_rule() -> None:
    example = Example("e", "?", "1800")
    for text, is_right, is_strict in (
        ("so\n#### 1,800", True, True),
        ("so \\boxed{1,800}", True, False),
        ("#### 5\nno, \\boxed{1800.00}", True, False),
        ("It is 1800", True, False),
        ("#### 1800.0", True, False),
        ("none", False, False),
    ):
        score = score_gsm8k(example, text)
        assert (score.correct, score.strict) == (is_right, is_strict), text
    assert score_gsm8k(example, "about \\boxed{\\$1,800}").extracted == "1800"


@pytest.mark.parametrize("spec", ["svamp", "math500"])
def test_a_set_of_one_file_is_split_by_hash_or_taken_whole(spec: str, data_dir: Path) -> None:
    task = load_task(spec, data_dir=data_dir)
    for split in SPLITS:
        assert all(split_of(e.question) == split for e in task.examples(split))
    whole = load_task(f"{spec},split=test", data_dir=data_dir)
    assert ids(whole, "test") == set.union(*(ids(task, split) for split in SPLITS))
    with pytest.raises(TaskError, match="0 train problems"):
        whole.examples("train")
    with pytest.raises(ConfigError, match="unknown split 'exam'"):
        load_task(f"{spec},split=exam", data_dir=data_dir)


def test_a_set_taken_whole_shows_no_worked_examples(data_dir: Path, plain_tokenizer: Any) -> None:
    task = load_task("svamp,split=test", data_dir=data_dir)
    example = task.examples("test", 1)[0]
    prompt = f"Question: {example.question}\nAnswer:"
    assert task.prompt(example, plain_tokenizer) == prompt


def test_svamp_joins_body_and_question(data_dir: Path) -> None:
    example = load_task("svamp,split=test", data_dir=data_dir).examples("test", 1)[0]
    assert example.question == f"Dan had $ {example.answer} left. How much?"


def test_asdiv_keeps_the_problems_with_one_number(data_dir: Path) -> None:
    task = load_task("asdiv,split=test", data_dir=data_dir)
    assert sorted(e.answer for e in task.examples("test")) == ["0", "2000", "4/7"]
    assert all(task.score(e, f"It is {e.answer}.").correct for e in task.examples("test"))


@pytest.mark.parametrize(
    ("gold", "text", "is_right"),
    [
        (r"\frac{1}{2}", r"so $\boxed{0.5}$", True),
        (r"\left( 3, \frac{\pi}{2} \right)", r"\boxed{(3, \pi/2)}", True),
        (r"2\sqrt{3}", r"\boxed{\sqrt{12}}", True),
        (r"x^2 + 1", r"\boxed{1 + x^2}", True),
        (r"\text{Evelyn}", r"\boxed{\text{Evelyn}}", True),
        ("5", "The answer is 5.", True),
        ("5", r"\boxed{6}", False),
        ("5", "I do not know", False),
        ("5", "", False),
        ("5", r"\boxed{5", False),
    ],
)
def test_math500_compares_by_mathematical_value(gold: str, text: str, is_right: bool) -> None:
    pytest.importorskip("math_verify")
    assert score_mathematics(Example("e", "?", gold), text).correct is is_right


def test_math500_scores_outside_the_main_thread() -> None:
    """Math-Verify's timeout is a signal, which raised there."""
    pytest.importorskip("math_verify")
    found = []
    example = Example("e", "?", "5")
    thread = threading.Thread(
        target=lambda: found.append(score_mathematics(example, r"\boxed{5}").correct)
    )
    thread.start()
    thread.join()
    assert found == [True]


def test_math500_says_how_to_get_math_verify(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(MissingExtraError, match=re.escape(pip_line("tasks"))):
        load_task("math500", data_dir=data_dir)


def test_aqua_shows_its_options_and_takes_a_letter(data_dir: Path, chat_tokenizer: Any) -> None:
    task = load_task("aqua", data_dir=data_dir)
    example = task.examples("test", 1)[0]
    assert example.question.endswith("?\n(A)1\n(B)2")
    assert task.score(example, "so \\boxed{B}").correct
    assert not task.score(example, "so \\boxed{2}").correct
    task.prompt(example, chat_tokenizer)
    assert "letter of the right option" in chat_tokenizer.messages[0]["content"]


REAL_SIZES = {
    "gsm8k": (6730, 743, 660),
    "svamp": (801, 97, 102),
    "asdiv": (1662, 214, 216),
    "math500": (411, 53, 36),
    "aqua": (231, 23, 254),
}


@pytest.mark.parametrize("spec", REAL_SIZES)
def test_the_splits_of_the_real_sets_are_fixed_and_disjoint(spec: str, real_data: Path) -> None:
    task = load_task(spec, data_dir=real_data)
    pools = [task.examples(split) for split in SPLITS]
    assert tuple(map(len, pools)) == REAL_SIZES[spec]
    questions = [{normalize(e.question) for e in pool} for pool in pools]
    assert not questions[0] & questions[1]
    assert not (questions[0] | questions[1]) & questions[2]
    assert len({e.id for pool in pools for e in pool}) == sum(REAL_SIZES[spec])


@pytest.mark.parametrize("spec", ["gsm8k", "svamp", "asdiv"])
def test_the_worked_solutions_of_the_real_sets_are_right(spec: str, real_data: Path) -> None:
    task = load_task(spec, data_dir=real_data)
    for example in task.examples("train") + task.examples("test"):
        assert task.score(example, example.metadata["solution"]).correct, example.id


def test_the_worked_solutions_of_math500_are_right(real_data: Path) -> None:
    task = load_task("math500", data_dir=real_data)
    for example in task.examples("test"):
        assert task.score(example, example.metadata["solution"]).correct, example.id
