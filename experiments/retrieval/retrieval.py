"""Answers from the nearest worked solutions, without a model: a control of the bundled pairs.

    python experiments/retrieval/retrieval.py --json FILE

The arbiters of the bundled pairs learned from worked solutions of 85 templates. Two controls use
the same solutions by search, and give the target's answer where they find nothing:

* copy: of the solved problems with the same numbers in the same order, the one with the most words
  in common; its answer is copied.
* recompute: of the first NUM_RECOMPUTED solutions, the NUM_NEAR with the most words in common and
  as many numbers. Each line "a * b = c" of theirs is read as a step from the question's numbers and
  earlier results. The steps that give most of the neighbours' answers are done with the new
  numbers, if they give at least LEAST_SHARE of them.

Neither sees templates or any other metadata of a problem. FILE gets a bit for each test problem.
"""

from __future__ import annotations

import argparse
import ast
import operator
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

from cospec.evaluation.stats import mcnemar_p
from cospec.results import Provenance, read_document, write_json
from cospec.tasks import Example, load_task

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from experiments.tables.rows import read  # noqa: E402  # a script of the repository
from experiments.twins.twins import (  # noqa: E402
    EVALUATIONS,
    SOLUTION_SEED,
    TASK,
    test_problems,
)

NUM_RECOMPUTED, NUM_NEAR, LEAST_SHARE = 6_000, 12, 0.8
LEAST_LIKENESS = 0.6
"""Share of words that two problems must have in common."""
NUMBER = r"\d[\d,]*(?:\.\d+)?"
OPERAND = rf"[(\s]*{NUMBER}%?[\s)]*"
STEP = re.compile(rf"((?:{OPERAND}[-+*/x]\s*)+{OPERAND})=\s*({NUMBER})")
OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class Solved(NamedTuple):
    """A problem with its worked solution."""

    words: frozenset[str]
    numbers: list[float]
    answer: str
    steps: tuple[str, ...] | None
    """Expressions of Q0, Q1, ..., the question's numbers, and R0, R1, ..., earlier results."""


def value(text: str) -> float:
    """Return the number that a text is."""
    return float(re.sub(r"[^\d.-]", "", text).rstrip("."))


def numbers_of(question: str) -> list[float]:
    """Return the numbers of a question, in order."""
    return [value(one) for one in re.findall(NUMBER, question)]


def words_of(question: str) -> frozenset[str]:
    """Return the words of a question in lower case, names left out."""
    return frozenset(re.findall(r"[a-z]+", re.sub(r"\b[A-Z]\w*", "", question).lower()))


def likeness(a: frozenset[str], b: frozenset[str]) -> float:
    """Return the share of words that two questions have in common."""
    return len(a & b) / len(a | b)


def steps_of(numbers: list[float], solution: str, answer: float) -> tuple[str, ...] | None:
    """Return the steps from a question's numbers to the answer; None if they are not found."""
    if len(set(numbers)) < len(numbers):
        return None  # two equal numbers: it is not known which one a step uses
    names = {number: f"Q{i}" for i, number in enumerate(numbers)}
    found: list[str] = []
    plain = re.sub(r"[$£€]", "", solution).replace("\N{MULTIPLICATION SIGN}", "*")
    for left, right in STEP.findall(plain):
        step = re.sub(rf"({NUMBER})%", r"(\1/100)", left.replace("x", "*"))
        step = re.sub(
            NUMBER, lambda m: names.get(value(m.group()), m.group().replace(",", "")), step
        )
        if step.count("(") != step.count(")"):
            step = step.replace("(", "").replace(")", "")
        names[value(right)] = f"R{len(found)}"
        found.append(step.strip())
    last = names.get(answer, "")
    return tuple(found[: int(last[1:]) + 1]) if last.startswith("R") else None


def compute(steps: tuple[str, ...], numbers: list[float]) -> float | None:
    """Return the result of the last step with other numbers; None if it cannot be computed."""
    known = {f"Q{i}": number for i, number in enumerate(numbers)}

    def result(node: ast.expr) -> float:
        match node:
            case ast.Constant(value=float() | int() as number):
                return float(number)
            case ast.Name(id=name):
                return known[name]
            case ast.BinOp(left=left, op=op, right=right):
                return OPERATORS[type(op)](result(left), result(right))
        raise ValueError(f"step has {type(node).__name__}; numbers, names and + - * / are allowed.")

    try:
        for i, step in enumerate(steps):
            known[f"R{i}"] = result(ast.parse(step, mode="eval").body)
    except (KeyError, SyntaxError, ValueError, ZeroDivisionError):
        return None
    return known[f"R{len(steps) - 1}"]


def solved(example: Example) -> Solved:
    """Read a worked solution."""
    numbers = numbers_of(example.question)
    steps = steps_of(numbers, example.metadata["solution"], value(example.answer))
    return Solved(words_of(example.question), numbers, example.answer, steps)


def copied(example: Example, same: list[Solved]) -> str | None:
    """Return the answer of the likest problem with the same numbers; None if none is like it."""
    words = words_of(example.question)
    best = max(same, key=lambda one: likeness(words, one.words), default=None)
    is_like = best is not None and likeness(words, best.words) >= LEAST_LIKENESS
    return best.answer if best and is_like else None


def recomputed(example: Example, known: list[Solved]) -> str | None:
    """Return what the nearest solutions give with this problem's numbers; None if they differ."""
    words, numbers = words_of(example.question), numbers_of(example.question)
    alike = [(likeness(words, one.words), one) for one in known if len(one.numbers) == len(numbers)]
    alike.sort(key=lambda pair: -pair[0])
    near = [one for share, one in alike[:NUM_NEAR] if share >= 0.5]
    counts: Counter[tuple[str, ...]] = Counter()
    for steps in {one.steps for one in near if one.steps}:
        results = [(compute(steps, one.numbers), value(one.answer)) for one in near]
        counts[steps] = sum(r is not None and abs(r - answer) < 1e-6 for r, answer in results)
    if len(near) < 4 or not counts:
        return None
    steps, num_right = max(counts.items(), key=lambda item: (item[1], item[0]))
    result = compute(steps, numbers)
    if result is None or num_right < LEAST_SHARE * len(near):
        return None
    return str(round(result)) if abs(result - round(result)) < 1e-6 else str(result)


def main() -> None:
    """Answer the test problems of both published evaluations, and print who is ahead."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    provenance, task, pairs = Provenance(), load_task(TASK), {}
    twins = read_document(ROOT / "experiments" / "twins" / "result.json.gz")["pairs"]
    for pair, (name, num_solved) in EVALUATIONS.items():
        result, some = read(name), task.examples("train", num_solved, SOLUTION_SEED)
        tests = test_problems(result)
        known = [solved(example) for example in some[:NUM_RECOMPUTED]]
        same: dict[tuple[float, ...], list[Solved]] = defaultdict(list)
        for one in some:
            numbers = numbers_of(one.question)
            same[tuple(numbers)].append(Solved(words_of(one.question), numbers, one.answer, None))
        rivals = {row["arm"]: [int(bit) for bit in row["correct"]] for row in result["rows"]}
        given = {
            "copy": [copied(e, same[tuple(numbers_of(e.question))]) for e in tests],
            "recompute": [recomputed(example, known) for example in tests],
        }
        pairs[pair] = {
            "problems": len(tests),
            "solutions_with_steps": sum(k.steps is not None for k in known),
        }
        for way, answers in given.items():
            bits = [
                rivals["target"][i] if answer is None else int(task.score(example, answer).correct)
                for i, (example, answer) in enumerate(zip(tests, answers, strict=True))
            ]
            others = [not int(bit) for bit in twins[pair]["twins"]]
            entry = {"found": sum(answer is not None for answer in answers), "right": sum(bits)}
            entry["right_without_twins"] = sum(b for b, o in zip(bits, others, strict=True) if o)
            for arm, theirs in rivals.items():
                both = list(zip(bits, theirs, strict=True))
                won, lost = both.count((1, 0)), both.count((0, 1))
                entry[f"over {arm}"] = {"won": won, "lost": lost, "p": mcnemar_p(won, lost)}
                print(f"{pair}, {way}: {sum(bits)} right, {arm} {sum(theirs)}: {won} / {lost}")
            pairs[pair][way] = entry | {"correct": "".join(map(str, bits))}
        pairs[pair]["without_twins"] = sum(others)
    write_json(
        options.json, {"schema": 1, "pairs": pairs, "provenance": provenance.to_dict("cpu", "none")}
    )


if __name__ == "__main__":
    main()
