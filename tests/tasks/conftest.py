"""A small data folder of the real layout, and the real one where there is one."""

from __future__ import annotations

import gzip
import json
import os
import platform
import re
from pathlib import Path

import pytest

from cospec.errors import CodeExecutionRefusedError
from cospec.tasks.sandbox import check_sandbox

REPOSITORY = Path(__file__).parents[2]
NOT_GRANTED = re.compile(
    r"cannot be sandboxed here: (the platform is |PermissionError: |OSError: .* unshare: |"
    rf"OSError: .* Function not implemented|KeyError: '{platform.machine()}')"
)
"""Refusal of a machine that does not grant the protections; other refusals are faults."""


def write_lines(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def gsm8k_row(i: int) -> dict[str, object]:
    solution = f"She has {i} + 1,000 = <<{i}+1000={i + 1000}>>{i + 1000} eggs.\n#### 1,{i:03d}"
    return {"question": f"A hen lays {i} eggs beside 1,000. How many?", "answer": solution}


HUMANEVAL_ROW = {
    "task_id": "HumanEval/0",
    "prompt": 'import math\n\n\ndef half(x: int) -> int:\n    """Half of x, rounded down."""\n',
    "entry_point": "half",
    "canonical_solution": "    return math.floor(x / 2)\n",
    "test": "\n\ndef check(candidate):\n    assert candidate(5) == 2\n",
}


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data folder with a few rows of each named set."""
    root = tmp_path / "data"
    write_lines(root / "gsm8k/train.jsonl", [gsm8k_row(i) for i in range(100, 200)])
    write_lines(root / "gsm8k/test_even.jsonl", [gsm8k_row(i) for i in range(100)])
    svamp = {"Body": "Dan had $ 3 left", "Question": "How much?", "Equation": "( 4.0 - 3.0 )"}
    (root / "svamp").mkdir()
    rows = [{**svamp, "Body": f"Dan had $ {i} left", "Answer": float(i)} for i in range(60)]
    (root / "svamp/SVAMP.json").write_text(json.dumps(rows), encoding="utf-8")
    (root / "asdiv").mkdir()
    problems = "".join(
        f"<Problem ID='{i}'><Body>There are {i} hens.</Body><Question>How many?</Question>"
        f"<Answer>{answer}</Answer><Formula>{i}={i}</Formula></Problem>"
        for i, answer in enumerate(["0 (hens)", "Bryan", "2,000 (hens)", "3:30", "4/7", "5; 6"])
    )
    (root / "asdiv/ASDiv.xml").write_text(f"<Root>{problems}</Root>", encoding="utf-8")
    mathematics = [
        {"problem": f"Halve {i}.", "solution": "...", "answer": rf"\frac{{{i}}}{{2}}"}
        for i in range(1, 60)
    ]
    write_lines(root / "math500/test.jsonl", mathematics)
    aqua = {"options": ["A)1", "B)2"], "rationale": "Count.", "correct": "B"}
    write_lines(root / "aqua/dev.jsonl", [{**aqua, "question": f"Old {i}?"} for i in range(40)])
    write_lines(root / "aqua/test.jsonl", [{**aqua, "question": f"New {i}?"} for i in range(5)])
    (root / "humaneval").mkdir()
    (root / "humaneval/HumanEval.jsonl.gz").write_bytes(
        gzip.compress(json.dumps(HUMANEVAL_ROW).encode())
    )
    mbpp = [
        {
            "task_id": number,
            "text": f"Write a function to add {number}.",
            "code": f"def add(x):\r\n\treturn x + {number}",
            "test_setup_code": "",
            "test_list": [f"assert add(1) == {number + 1}"],
        }
        for number in (1, 5, 9, 10, 11, 510, 511, 600, 601, 974)
    ]
    write_lines(root / "mbpp/mbpp.jsonl", mbpp)
    return root


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The data folder of this checkout."""
    given = os.environ.get("COSPEC_DATA")
    path = Path(given) if given else REPOSITORY.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"no data folder: {path} (set COSPEC_DATA)")
    return path


class PlainTokenizer:
    """A tokenizer without a chat template."""

    chat_template = None


class ChatTokenizer:
    """A tokenizer with a chat template, which records what it is asked for."""

    chat_template = "{{ messages }}"

    def apply_chat_template(self, messages: list[dict[str, str]], **settings: bool) -> list[int]:
        self.messages, self.settings = messages, settings
        return [1, 2, 3]


@pytest.fixture
def plain_tokenizer() -> PlainTokenizer:
    return PlainTokenizer()


@pytest.fixture
def chat_tokenizer() -> ChatTokenizer:
    return ChatTokenizer()


@pytest.fixture(scope="session")
def sandbox() -> None:
    """Skips where the machine does not allow a sandbox, with the reason that a user would get."""
    try:
        check_sandbox()
    except CodeExecutionRefusedError as error:
        if NOT_GRANTED.search(str(error)):
            pytest.skip(str(error))
        pytest.fail(str(error))
