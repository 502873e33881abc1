"""Programming sets: humaneval and mbpp. Scoring runs the model's programs in `sandbox`.

A chat model is asked for the whole function in a code block. A model without a chat template gets
HumanEval's prompt as it stands and completes it, up to the first line that leaves the function; for
MBPP it sees worked examples.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from cospec.errors import CodeExecutionRefusedError
from cospec.tasks.base import Example, Score, Task
from cospec.tasks.files import DataSet, FileSource, by_hash, named
from cospec.tasks.sandbox import check_sandbox, run_program
from cospec.tasks.splits import normalize

if TYPE_CHECKING:
    from pathlib import Path

    from cospec.tasks.base import Split
    from cospec.tasks.files import Row

_ASK = "\nReply with the complete function, and what it imports, in one ```python code block."
_BLOCK = re.compile(r"```[^\n`]*\n(.*?)(?:\n?^```|\Z)", re.DOTALL | re.MULTILINE)
_FUTURE = re.compile(r"^from __future__ import [^(\n]*$", re.MULTILINE)
COMPLETION_STOPS = ("\ndef ", "\nclass ", "\nif ", "\nprint(", "\n#", "\n@", "\n```")
"""Strings that end a completed function: the next line without indentation."""


def require_permission(is_allowed: bool, name: str) -> None:
    """Refuses a task that runs generated code, unless the user allows it and the sandbox holds.

    Raises:
        CodeExecutionRefusedError: The user does not allow it, or the sandbox does not hold.
    """
    if not is_allowed:
        raise CodeExecutionRefusedError(
            f"scoring {name} runs programs that the model wrote; pass allow_code_execution=True "
            "(--allow-code-execution) to run them in a sandbox."
        )
    check_sandbox()


def extract_code(text: str, function: str | None = None) -> str | None:
    """Return the first code block, preferably the first that defines ``function``, if there is one.

    An empty block does not count.
    """
    blocks = [block for block in _BLOCK.findall(text) if block.strip()]
    defining = [block for block in blocks if function and _defines(block, function)]
    return next(iter(defining or blocks), None)


def _defines(code: str, function: str) -> bool:
    return re.search(rf"^def {function}\b", code, re.MULTILINE) is not None


def humaneval(data_dir: Path | None = None, whole: str | None = None) -> Task:
    """Functions to complete from their docstrings (Chen et al., 2107.03374)."""
    data = DataSet("humaneval", "openai/openai_humaneval")
    rows = data.rows(("HumanEval.jsonl.gz", "HumanEval.jsonl"), "test", data_dir)
    pools = by_hash((_humaneval_example(row) for _, row in rows), whole)
    return Task(
        named("humaneval", whole),
        FileSource("humaneval", pools),
        score_humaneval,
        chat=f"Complete this Python function:\n\n```python\n{{question}}```{_ASK}",
        plain="{question}",
        show=_show_function,
        stop=COMPLETION_STOPS,
    )


def _humaneval_example(row: Row) -> Example:
    metadata = {"entry_point": row["entry_point"], "test": row["test"]}
    return Example(row["task_id"], row["prompt"], row["canonical_solution"], metadata)


def _show_function(example: Example, is_chat: bool) -> str:
    return f"```python\n{example.question}{example.answer}```" if is_chat else example.answer


def score_humaneval(example: Example, text: str) -> Score:
    """Right if the completed function passes the tests.

    Code that defines it follows the prompt, so that the prompt's imports and helpers are there and
    its unfinished function is defined anew; anything else continues the prompt. Its imports from
    ``__future__`` go before the prompt, where alone Python takes them.
    """
    function = example.metadata["entry_point"]
    code = extract_code(text, function)
    if code is None:
        stops = "|".join(map(re.escape, COMPLETION_STOPS))
        code = text if _defines(text, function) else re.split(stops, text, maxsplit=1)[0]
    program = example.question + ("" if code.startswith((" ", "\t")) else "\n") + code
    program = "\n".join([*_FUTURE.findall(program), _FUTURE.sub("", program)])
    verdict = run_program(f"{program}\n\n{example.metadata['test']}\n\ncheck({function})\n")
    return Score(float(verdict.passed), code)


def mbpp(data_dir: Path | None = None) -> Task:
    """Short functions with three tests each (Austin et al., 2108.07732); the authors' split.

    Problems of the other splits that ask for the same as one of the test split are left out.
    """
    data = DataSet("mbpp", "google-research-datasets/mbpp", "full")
    rows = data.rows(("mbpp.jsonl",), "train+test+validation+prompt", data_dir)
    pools: dict[Split, list[Example]] = {"train": [], "tune": [], "test": []}
    tested = {normalize(row["text"]) for _, row in rows if _mbpp_split(row) == "test"}
    for _, row in rows:
        split = _mbpp_split(row)
        if split == "test" or normalize(row["text"]) not in tested:
            pools[split].append(_mbpp_example(row))
    return Task(
        "mbpp",
        FileSource("mbpp", pools),
        score_mbpp,
        chat=f"{{question}}\n{_ASK}",
        num_shots=3,
    )


def _mbpp_split(row: Row) -> Split:
    number = row["task_id"]
    return "test" if 11 <= number <= 510 else "tune" if 511 <= number <= 600 else "train"


def _mbpp_example(row: Row) -> Example:
    tests = [line.strip() for line in row["test_list"]]
    code = row["code"].replace("\r\n", "\n").strip()
    question = "\n".join([row["text"].strip(), "Your code should pass these tests:", *tests])
    metadata = {
        "solution": f"```python\n{code}\n```",
        "test": "\n".join([row["test_setup_code"].replace("\r\n", "\n"), *tests]),
    }
    return Example(f"mbpp/{row['task_id']}", question, code, metadata)


def score_mbpp(example: Example, text: str) -> Score:
    """Right if the code passes the example's tests; without a code block the text is the code."""
    code = extract_code(text) or text
    verdict = run_program(f"{code}\n\n{example.metadata['test']}\n")
    return Score(float(verdict.passed), code)
