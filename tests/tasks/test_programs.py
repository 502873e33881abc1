"""Programming tasks: prompts, code extraction, verdicts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from cospec.tasks import SPLITS, load_task
from cospec.tasks.files import read_rows
from cospec.tasks.programs import COMPLETION_STOPS, extract_code

from .conftest import write_lines

if TYPE_CHECKING:
    from pathlib import Path

    from cospec.tasks import Example, Task

pytestmark = pytest.mark.usefixtures("sandbox")


@pytest.fixture
def humaneval(data_dir: Path) -> Task:
    return load_task("humaneval,split=test", data_dir=data_dir, allow_code_execution=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Here:\n```python\ndef f():\n    return 1\n```\nIt works.", "def f():\n    return 1"),
        ("```py\nx = 1\n```\n```python\ndef f(): pass\n```", "def f(): pass"),
        ("```\nx = 1\n```\nor\n```\ny = 2\n```", "x = 1"),
        ("```python\ndef f():\n    return 1", "def f():\n    return 1"),
        ("```python\ndef g(): pass\n```", "def g(): pass"),
        ("    return 1\n", None),
        ("```python\n```\nI mean:\n```python\ndef f(): pass\n```", "def f(): pass"),
        ("```\n\n```\nor\n```\nx = 1\n```", "x = 1"),
        ("```python\n```", None),
    ],
)
def test_the_block_that_defines_the_function_is_taken(text: str, expected: str | None) -> None:
    assert extract_code(text, "f") == expected


@pytest.mark.parametrize(
    ("text", "is_right"),
    [
        ("    return math.floor(x / 2)\n", True),
        ("    return x // 2\n\ndef other():\n    return wrong(\n", True),
        ("    return x // 2\n\nprint(half(", True),
        ("Sure!\n```python\ndef half(x: int) -> int:\n    return math.floor(x / 2)\n```", True),
        ("```python\n    return x // 2\n```", True),
        ("import math\n\ndef half(x):\n    return math.floor(x / 2)\n", True),
        ("from __future__ import annotations\n\ndef half(x: Any):\n    return x // 2\n", True),
        ("```\nfrom __future__ import nothing\n\ndef half(x):\n    return x // 2\n```", False),
        ("    return x / 2\n", False),
        ("    pass\n", False),
        ("    import sys; sys.exit(0)\n", False),
        ("I cannot do that.", False),
        ("", False),
    ],
)
def test_humaneval_takes_a_completion_or_a_chat_answer(
    text: str, is_right: bool, humaneval: Task
) -> None:
    example = humaneval.examples("test")[0]
    assert humaneval.score(example, text).correct is is_right


def test_humaneval_is_completed_as_it_stands_or_asked_for_in_a_block(
    humaneval: Task, plain_tokenizer: Any, chat_tokenizer: Any
) -> None:
    example = humaneval.examples("test")[0]
    assert humaneval.prompt(example, plain_tokenizer) == example.question
    assert humaneval.stop_strings(plain_tokenizer) == COMPLETION_STOPS
    humaneval.prompt(example, chat_tokenizer)
    message = chat_tokenizer.messages[0]["content"]
    assert f"```python\n{example.question}```" in message
    for is_chat in (True, False):
        shown = humaneval.show(example, is_chat)
        assert humaneval.score(example, shown).correct, "worked examples are in the form asked for"
    assert humaneval.stop_strings(chat_tokenizer) == ()


def test_mbpp_keeps_its_authors_split_and_shows_its_tests(
    data_dir: Path, plain_tokenizer: Any
) -> None:
    task = load_task("mbpp", data_dir=data_dir, allow_code_execution=True)
    numbers = [sorted(e.id for e in task.examples(split)) for split in SPLITS]
    assert numbers[1:] == [["mbpp/511", "mbpp/600"], ["mbpp/11", "mbpp/510"]]
    (example,) = (e for e in task.examples("test") if e.id == "mbpp/11")
    prompt = task.prompt(example, plain_tokenizer)
    assert prompt.count("```python\ndef add(x):\n\treturn x + ") == 3
    assert prompt.endswith(
        "add 11.\nYour code should pass these tests:\nassert add(1) == 12\nAnswer:"
    )
    assert task.score(example, "```python\ndef add(x):\n    return x + 11\n```").correct
    assert task.score(example, "def add(x): return 11 + x").correct
    assert not task.score(example, "```python\ndef add(x):\n    return x\n```").correct


def test_a_problem_of_mbpp_that_asks_for_the_same_as_a_test_problem_is_left_out(
    data_dir: Path,
) -> None:
    """Found: three train problems did, with other tests."""
    path = data_dir / "mbpp/mbpp.jsonl"
    rows = read_rows(path)
    (tested,) = (row for row in rows if row["task_id"] == 11)
    copied = {**tested, "text": f" {tested['text']} "}
    write_lines(path, [*rows, {**copied, "task_id": 700}, {**copied, "task_id": 512}])
    task = load_task("mbpp", data_dir=data_dir, allow_code_execution=True)
    pools = [{e.id for e in task.examples(split)} for split in SPLITS]
    assert pools[1:] == [{"mbpp/511", "mbpp/600"}, {"mbpp/11", "mbpp/510"}]
    assert "mbpp/700" not in pools[0] and len(pools[0]) == 6


def every_example(task: Task) -> list[Example]:
    return [example for split in SPLITS for example in task.examples(split)]


@pytest.mark.slow
def test_all_canonical_solutions_of_humaneval_pass_and_empty_ones_fail(real_data: Path) -> None:
    task = load_task("humaneval", data_dir=real_data, allow_code_execution=True)
    examples = every_example(task)
    assert len(examples) == 164
    assert [e.id for e in examples if not task.score(e, e.answer).correct] == []
    assert [e.id for e in examples if task.score(e, "    return None\n").correct] == []


@pytest.mark.slow
def test_all_canonical_solutions_of_mbpp_pass(real_data: Path) -> None:
    task = load_task("mbpp", data_dir=real_data, allow_code_execution=True)
    examples = every_example(task)
    assert len(examples) == 974 - 3
    failed = [e.id for e in examples if not task.score(e, e.metadata["solution"]).correct]
    assert failed == []


def test_some_canonical_solutions_of_humaneval_pass(real_data: Path) -> None:
    task = load_task("humaneval", data_dir=real_data, allow_code_execution=True)
    for example in task.examples("train", 8):
        assert task.score(example, example.answer).correct, example.id
