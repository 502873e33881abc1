r"""The mathematical sets with a name: gsm8k, svamp, asdiv, math500, aqua.

Chat models are asked to reason and to put the answer in ``\boxed{}``; other models see worked
examples of the train split. Scoring:

* gsm8k, svamp, asdiv: `final_number` against the gold number. That is lm-evaluation-harness's
  ``flexible-extract``, except for answers that the text marks: the harness always takes the last
  number of the text. gsm8k also reports ``strict``, the harness's ``strict-match``: ``#### N``.
* math500: Math-Verify, by mathematical value.
* aqua: the letter.

asdiv keeps the problems whose answer is one number. Its licence is CC BY-NC: for measurements only.
"""

from __future__ import annotations

import re
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from cospec.tasks.base import BOXED, Example, Score, Task
from cospec.tasks.extract import boxed, choice, final_number, same_number, strict_gsm8k
from cospec.tasks.extras import import_extra
from cospec.tasks.files import DataSet, FileSource, by_file, by_hash, named

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path
    from types import ModuleType

    from cospec.tasks.base import Scorer
    from cospec.tasks.files import Row

NUM_SHOTS = 5
_VERIFY_S = 5
"""Seconds that Math-Verify may take to parse or compare one answer."""


def score_number(example: Example, text: str) -> Score:
    """Right if the final number has the value of the answer."""
    number = final_number(text)
    return Score(float(same_number(number, example.answer)), number)


def score_gsm8k(example: Example, text: str) -> Score:
    """`score_number`, and ``strict``: the text has GSM8K's own form, ``#### N``."""
    flexible = score_number(example, text)
    strict = strict_gsm8k(text) == example.answer
    return Score(flexible.reward, flexible.extracted, strict)


def score_choice(example: Example, text: str) -> Score:
    """Right if the text settles on the letter of the answer."""
    letter = choice(text)
    return Score(float(letter == example.answer), letter)


def score_mathematics(example: Example, text: str) -> Score:
    """Right if Math-Verify finds the answer equal, as mathematics, to the gold one."""
    math_verify = _math_verify()
    # Its timeout is an alarm signal, which only the main thread can set.
    is_main = threading.current_thread() is threading.main_thread()
    seconds = _VERIFY_S if is_main else None
    gold = math_verify.parse(f"\\boxed{{{example.answer}}}", parsing_timeout=seconds)
    answer = math_verify.parse(text, parsing_timeout=seconds)
    is_right = math_verify.verify(gold, answer, timeout_seconds=seconds)
    found = boxed(text)
    extracted = found[-1] if found else str(answer[-1]) if answer else None
    return Score(float(is_right), extracted)


def _math_verify() -> ModuleType:
    return import_extra("math_verify", "math-verify, which scores math500,", "tasks")


def gsm8k(data_dir: Path | None = None) -> Task:
    """Grade school word problems (Cobbe et al., 2110.14168)."""
    data = DataSet("gsm8k", "openai/gsm8k", "main")
    train = data.rows(("train.jsonl",), "train", data_dir)
    test = data.rows(("test.jsonl", "test_even.jsonl"), "test", data_dir)
    pools = by_file(map(_gsm8k_example, train), list(map(_gsm8k_example, test)))
    return Task("gsm8k", FileSource("gsm8k", pools), score_gsm8k, num_shots=NUM_SHOTS)


def _gsm8k_example(item: tuple[str, Row]) -> Example:
    identity, row = item
    solution = re.sub(r"<<.*?>>", "", row["answer"])
    answer = solution.rpartition("#### ")[2].strip().replace(",", "")
    return Example(identity, row["question"], answer, {"solution": solution})


def _of_one_file(name: str, examples: Iterable[Example], whole: str | None, scorer: Scorer) -> Task:
    """Return the task of a set that has one file."""
    source = FileSource(name, by_hash(examples, whole))
    # Worked examples come from the train split, which a set taken whole does not have.
    return Task(named(name, whole), source, scorer, num_shots=0 if whole else NUM_SHOTS)


def svamp(data_dir: Path | None = None, whole: str | None = None) -> Task:
    """Variations of simple word problems (Patel et al., 2103.07191)."""
    data = DataSet("svamp", "ChilledCow/SVAMP")
    rows = data.rows(("SVAMP.json",), "train+test", data_dir)
    return _of_one_file("svamp", map(_svamp_example, rows), whole, score_number)


def _svamp_example(item: tuple[str, Row]) -> Example:
    identity, row = item
    body = row["Body"].strip().removesuffix(".")
    answer = f"{float(row['Answer']):.10g}"
    solution = f"{row['Equation']} = {answer}\n#### {answer}"
    return Example(identity, f"{body}. {row['Question'].strip()}", answer, {"solution": solution})


def asdiv(data_dir: Path | None = None, whole: str | None = None) -> Task:
    """Diverse word problems (Miao et al., 2106.15772), those with one number as the answer."""
    rows = DataSet("asdiv", None).rows(("ASDiv.xml",), "", data_dir)
    examples = [example for item in rows if (example := _asdiv_example(*item)) is not None]
    return _of_one_file("asdiv", examples, whole, score_number)


def _asdiv_example(identity: str, row: Row) -> Example | None:
    match = re.fullmatch(r"(-?[\d,.]+(?:/\d+)?)\s*(?:\([^)]*\))?", row["Answer"].strip())
    if match is None:
        return None
    answer = match[1].replace(",", "")
    question = f"{row['Body'].strip()} {row['Question'].strip()}"
    return Example(identity, question, answer, {"solution": f"{row['Formula']}\n#### {answer}"})


def math500(data_dir: Path | None = None, whole: str | None = None) -> Task:
    """500 problems of MATH (Hendrycks et al., 2103.03874; Lightman et al., 2305.20050)."""
    data = DataSet("math500", "HuggingFaceH4/MATH-500")
    rows = data.rows(("test.jsonl",), "test", data_dir)
    examples = [
        Example(identity, row["problem"], row["answer"], {"solution": row["solution"]})
        for identity, row in rows
    ]
    _math_verify()
    task = _of_one_file("math500", examples, whole, score_mathematics)
    return replace(task, max_new_tokens=1024)


def aqua(data_dir: Path | None = None) -> Task:
    """Algebra with five options (Ling et al., 1705.04146)."""
    data = DataSet("aqua", "deepmind/aqua_rat", "raw")
    train = data.rows(("dev.jsonl",), "validation", data_dir)
    test = data.rows(("test.jsonl",), "test", data_dir)
    pools = by_file(map(_aqua_example, train), list(map(_aqua_example, test)))
    chat = BOXED.replace("your final answer", "the letter of the right option")
    return Task("aqua", FileSource("aqua", pools), score_choice, chat=chat, num_shots=NUM_SHOTS)


def _aqua_example(item: tuple[str, Row]) -> Example:
    identity, row = item
    question = "\n".join([row["question"], *(f"({option}" for option in row["options"])])
    solution = f"{row['rationale'].strip()}\nThe answer is ({row['correct']})."
    return Example(identity, question, row["correct"], {"solution": solution})
