"""A user's own file of problems."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from cospec.errors import ConfigError, TaskError
from cospec.tasks import SPLITS, Example, Score, load_task, split_of

from .conftest import write_lines

if TYPE_CHECKING:
    from pathlib import Path


def half_for_any_text(example: Example, text: str) -> float:
    return 1.0 if text == example.metadata["gold"] else 0.5


def strict_score(example: Example, text: str) -> Score:
    return Score(1.0, text, strict=True)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.jsonl"
    rows: list[dict[str, object]] = [{"prompt": f"Say {i}.", "gold": str(i)} for i in range(50)]
    write_lines(path, rows)
    return path


def only_example(tmp_path: Path, answer: object, options: str) -> tuple[Any, Example]:
    path = tmp_path / "one.jsonl"
    write_lines(path, [{"question": "Q\u2028?", "answer": answer}])
    task = load_task(f"jsonl:{path},split=test{options}")
    return task, task.examples("test")[0]


def test_the_fields_are_named_and_the_hash_splits_the_file(file: Path) -> None:
    task = load_task(f"jsonl:{file},question=prompt,answer=gold,scorer=numeric")
    pools = {split: task.examples(split) for split in SPLITS}
    assert sum(map(len, pools.values())) == 50
    assert all(split_of(e.question) == split for split in SPLITS for e in pools[split])
    example = pools["train"][0]
    assert example.metadata["prompt"] == example.question
    assert load_task(task.name).examples("train") == pools["train"]


def test_a_chat_model_gets_the_question_as_it_stands(file: Path, chat_tokenizer: Any) -> None:
    task = load_task(f"jsonl:{file},question=prompt,answer=gold")
    task.prompt(Example("e", "Say 3.", "3"), chat_tokenizer)
    assert chat_tokenizer.messages == [{"role": "user", "content": "Say 3."}]


@pytest.mark.parametrize(
    ("scorer", "answer", "text", "is_right"),
    [
        ("exact", "New  York", "I think.\nThe answer is new york.", True),
        ("exact", "York", "New York", False),
        ("exact", "x", "", False),
        ("exact", "etc.", "The answer is etc.", True),
        ("exact", "U.S.A.", "<answer>U.S.A.</answer>", True),
        ("exact", "`x_`", "So it is\n`x_`", True),
        ("exact", "New York", "\\boxed{\\text{New York}}", True),
        ("exact", "New York", "#### Final Answer\n**New York**", True),
        ("exact", "*a*", "So it is\n**a**.", True),
        ("exact", ".5", "The answer is 5", False),
        ("exact", "<answer>*</answer>", "<answer>_</answer>", False),
        ("exact", "<answer>*</answer>", "<answer>*</answer>", True),
        ("exact", "<answer>*</answer>", "", False),
        ("exact", "<answer>a\nb</answer>", "So <answer>A\n b</answer>.", True),
        ("numeric", "1/2", "so 0.50", True),
        ("numeric", 3, "so \\boxed{3}", True),
        ("numeric", 3, "so -3", False),
        ("numeric", "1,234", "so 1234", True),
        ("numeric", "$5 ", "so 5", True),
        ("numeric", "18 apples", "18", True),
        ("numeric", "1e3", "1,000", True),
        ("numeric", 1e-7, "The answer is 1e-07.", True),
        ("numeric", "1,000", "so 1e3", True),
        ("numeric", "\u22127", "so -7", True),
        ("numeric", "\u22127", "so 7", False),
        ("choice", "C", "Answer: (C)", True),
        ("choice", " (b)", "Answer: B", True),
        ("regex", r"colou?r\b", "the color red", True),
        ("regex", r"colou?r\b", "colors", False),
    ],
)
def test_the_built_in_scorers(
    scorer: str, answer: object, text: str, is_right: bool, tmp_path: Path
) -> None:
    task, example = only_example(tmp_path, answer, f",scorer={scorer}")
    assert task.score(example, text).correct is is_right


def test_a_users_own_function_scores(file: Path) -> None:
    options = "question=prompt,answer=gold,split=test"
    task = load_task(f"jsonl:{file},scorer={__name__}:half_for_any_text,{options}")
    example = task.examples("test", 1)[0]
    assert task.score(example, "no").reward == 0.5
    assert task.score(example, example.answer).correct
    other = load_task(f"jsonl:{file},scorer={__name__}:strict_score,{options}")
    assert other.score(example, "a").strict is True


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", r"mine/0 .* has no field 'question'; its fields are 'prompt'"),
        ("question=prompt,answer=gold,scorer=number", "did you mean 'numeric'"),
        ("question=prompt,answer=gold,scorer=no.such:thing", "cannot be imported"),
        ("question=prompt,answer=gold,scorer=json:thing", "cannot be imported"),
        ("question=prompt,answer=gold,scorer=:f", "cannot be imported: ValueError"),
        ("question=prompt,answer=gold,scorer=.m:f", "cannot be imported: TypeError"),
        ("question=prompt,answer=gold,scorer=half_written:f", "cannot be imported: SyntaxError"),
        ("question=prompt,answer=gold,scorer=json:dumps", "does not take them .*def dumps"),
        ("questions=prompt", "did you mean 'question'"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: str, message: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file.parent / "half_written.py").write_text("def f(example, text:\n")
    monkeypatch.syspath_prepend(file.parent)
    with pytest.raises(TaskError, match=message):
        load_task(",".join(filter(None, [f"jsonl:{file}", options])))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("", "has no rows"),
        ('{"question": null, "answer": "3"}\n', "the field 'question' is None; .* Repair the row"),
        ('{"question": true, "answer": "3"}\n', "the field 'question' is True"),
        ('{"question": " ", "answer": "3"}\n', "the question is empty"),
        (
            '{"question": "a b", "answer": "3"}\n{"question": "a  b", "answer": "4"}\n',
            "bad/0 and bad/1 ask the same question .* '3' and '4'",
        ),
    ],
)
def test_rows_that_ask_nothing_or_two_things_are_refused(
    rows: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(rows)
    with pytest.raises(TaskError, match=message):
        load_task(f"jsonl:{path}")


def test_a_question_that_is_asked_again_counts_once(tmp_path: Path) -> None:
    """Found: a file written twice had half the variance."""
    path = tmp_path / "twice.jsonl"
    rows = "".join(f'{{"question": "What is {i}?", "answer": "{i}"}}\n' for i in range(5))
    path.write_text(rows + rows)
    examples = load_task(f"jsonl:{path},split=test").examples("test")
    assert sorted(example.id for example in examples) == [f"twice/{i}" for i in range(5)]


def test_an_option_that_is_given_twice_is_refused(file: Path) -> None:
    with pytest.raises(TaskError, match="'scorer' of jsonl is given twice"):
        load_task(f"jsonl:{file},question=prompt,answer=gold,scorer=exact,scorer=numeric")


def test_a_split_that_does_not_exist_is_refused(file: Path) -> None:
    with pytest.raises(ConfigError, match="unknown split 'exam'"):
        load_task(f"jsonl:{file},question=prompt,answer=gold,split=exam")


def test_a_pattern_that_is_none_is_refused_with_its_row(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"one/0: '\(' is no pattern"):
        only_example(tmp_path, "(", ",scorer=regex")


@pytest.mark.parametrize(
    ("scorer", "answer", "message"),
    [
        ("numeric", "none", "needs one number"),
        ("numeric", "1/0", "needs one number"),
        ("numeric", "3 or 4", "needs one number"),
        ("numeric", "2^3", r"without a power \(\^\)"),
        ("choice", "F", "needs one letter of ABCDE"),
        ("choice", "AB", "needs one letter of ABCDE"),
        ("choice", "", "needs one letter of ABCDE"),
        ("exact", "9 * 2 = 18\n#### 18", "scorer=exact reads '18'; give the final answer alone"),
        ("exact", "The answer is 5", "scorer=exact reads '5'"),
        ("exact", "\\boxed{7}", "scorer=exact reads '7'"),
        ("exact", "a\nb", "scorer=exact reads 'b'; .*<answer>"),
        ("exact", "*", "scorer=exact reads None"),
        ("exact", "", "the answer is ''"),
        ("exact", "<answer> </answer>", "scorer=exact reads None"),
        ("regex", "", "in nearly every text"),
        ("regex", " ", "in nearly every text"),
    ],
)
def test_an_answer_that_the_scorer_cannot_take_is_refused_with_its_row(
    scorer: str, answer: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(TaskError, match=f"one/0: .*{message}"):
        only_example(tmp_path, answer, f",scorer={scorer}")


def raising(example: Example, text: str) -> float:
    return {"yes": 1.0}[text]


def no_number(example: Example, text: str) -> str:
    return "good"


def test_a_score_that_is_no_number_is_refused_with_its_problem(file: Path) -> None:
    task = load_task(f"jsonl:{file},scorer={__name__}:no_number,question=prompt,answer=gold")
    example = task.examples("train", 1)[0]
    with pytest.raises(TaskError, match=rf"gave 'good' for {example.id}; it must return a Score"):
        task.score(example, "x")


def test_a_scorer_that_raises_is_named_with_the_problem_and_the_line(file: Path) -> None:
    """Found: a KeyError from inside the run."""
    task = load_task(f"jsonl:{file},scorer={__name__}:raising,question=prompt,answer=gold")
    example = task.examples("train", 1)[0]
    with pytest.raises(TaskError, match=rf"KeyError\('x'\) for {example.id}, at .*test_jsonl.py"):
        task.score(example, "x")


@pytest.mark.parametrize(("answer", "text"), [(3.0, "3"), (-2.0, "-2"), (2.5, "2.5"), (1e300, "1")])
def test_a_whole_number_is_written_without_a_fraction(
    answer: float, text: str, tmp_path: Path
) -> None:
    """Found: 3.0, which pandas writes for 3 in a column with gaps, was never right."""
    task, example = only_example(tmp_path, answer, "")
    assert task.score(example, text).correct is (answer != 1e300)


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    """Found: a file of a Windows editor could not be read."""
    path = tmp_path / "mine.jsonl"
    path.write_text('{"question": "Q?", "answer": "3"}\n', encoding="utf-8-sig")
    (example,) = load_task(f"jsonl:{path},split=test").examples("test")
    assert example.question == "Q?"


def test_a_path_may_begin_with_the_home_folder(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(file.parent))
    task = load_task("jsonl:~/mine.jsonl,question=prompt,answer=gold,split=test")
    assert len(task.examples("test")) == 50


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "Q?", "answer": "3"', "line 3 is no JSON: Expecting"),
        ("[1, 2]", r"line 3 is '\[1, 2\]'; each must be a JSON object"),
        ('{"question": "Q?", "answer": NaN}', "mine/1: the answer is nan; give one, or leave"),
        ('{"question": "Q?", "answer": "3", "group": "a"}', "mine/0 has no group, and other rows"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(line: str, message: str, tmp_path: Path) -> None:
    """Found: every bad line was line 1, NaN was an answer, and a group was lost for one row."""
    path = tmp_path / "mine.jsonl"
    path.write_text(f'{{"question": "P?", "answer": "4"}}\n\n{line}\n')
    with pytest.raises(TaskError, match=message):
        load_task(f"jsonl:{path},split=test")


def test_a_row_without_a_solution_shows_its_answer(tmp_path: Path, plain_tokenizer: Any) -> None:
    """Found: "Answer: None" in the prompt."""
    path = tmp_path / "mine.jsonl"
    rows = [{"question": f"Q{i}?", "answer": f"a{i}", "solution": None} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = load_task(f"jsonl:{path},shots=2")
    prompt = task.prompt(task.examples("tune", 1)[0], plain_tokenizer)
    assert "None" not in prompt
    assert prompt.count("Answer: a") == 2


@pytest.mark.parametrize(
    ("scorer", "row", "shown"),
    [
        ("exact", {"answer": "<answer>one\ntwo</answer>"}, "Answer: <answer>one\ntwo</answer>"),
        ("exact", {"answer": "one"}, "Answer: one"),
        ("regex", {"answer": "on.", "solution": "It is one."}, "Answer: It is one."),
    ],
)
def test_a_worked_answer_is_shown_as_the_scorer_reads_it(
    scorer: str, row: dict[str, str], shown: str, tmp_path: Path, plain_tokenizer: Any
) -> None:
    """Found: answers of several lines lost their tags, and a pattern was shown as the answer."""
    path = tmp_path / "mine.jsonl"
    rows = [{"question": f"Q{i}?", **row} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = load_task(f"jsonl:{path},scorer={scorer},shots=2")
    example = task.examples("tune", 1)[0]
    prompt = task.prompt(example, plain_tokenizer)
    assert prompt.count(shown) == 2
    assert task.score(example, shown.removeprefix("Answer: ")).correct


def test_a_pattern_is_not_shown_as_an_answer(tmp_path: Path, plain_tokenizer: Any) -> None:
    path = tmp_path / "mine.jsonl"
    rows = [{"question": f"Q{i}?", "answer": r"^\d+$"} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = load_task(f"jsonl:{path},scorer=regex,shots=2")
    with pytest.raises(TaskError, match=r"would be shown as its answer, which is not right"):
        task.prompt(task.examples("tune", 1)[0], plain_tokenizer)


def test_as_many_train_rows_as_are_shown_are_enough(tmp_path: Path, plain_tokenizer: Any) -> None:
    """Found: one more was asked for, though a test problem is none of them."""
    path = tmp_path / "mine.jsonl"
    rows = [{"question": f"Q{i}?", "answer": f"a{i}"} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    number = len(load_task(f"jsonl:{path}").examples("train"))
    task = load_task(f"jsonl:{path},shots={number}")
    test, train = task.examples("test")[0], task.examples("train")[0]
    assert task.prompt(test, plain_tokenizer).count("Answer: a") == number
    with pytest.raises(TaskError, match="cannot be shown its own answer; show fewer"):
        task.prompt(train, plain_tokenizer)
    with pytest.raises(TaskError, match="show fewer worked examples"):
        load_task(f"jsonl:{path},shots={number + 1}").prompt(test, plain_tokenizer)
