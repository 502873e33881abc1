r"""Training text of the bundled pairs: reasoning-gym problems with worked solutions.

Knows the tasks, how a solution is written from a generator's metadata, how problems are split, and
which generator seeds belong to which training chunk. Knows nothing of models.

A problem is learned as ``Question: {question}\nAnswer: {solution}<eos>``; every solution ends in
``#### answer``. Training uses generator seeds from 1,000,000,000 upwards only. For most generators
item i of seed s is item i-1 of seed s+1, so chunk c of a run starts at ``base + c * CHUNK_SIZE``
and holds at most CHUNK_SIZE items of a task: no two chunks can share an item (those of the
tokenizer's sample can).
"""

import ast
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import reasoning_gym
from reasoning_gym.arithmetic.leg_counting import ANIMALS

from cospec.tasks.reasoning_gym import SUFFIX
from cospec.tasks.splits import BUNDLED_TRAINING_SEEDS, split_of

CHUNK_SIZE = 4_000
FIRST_SEED = BUNDLED_TRAINING_SEEDS  # of training; smaller seeds are free for evaluation
DRILL_SEED = 1_400_000_000
DRILL_PROBLEMS = 10  # word problems that a drill item draws its equations from
DRILL_LENGTH = 16  # equations in a row of drill

Item = dict[str, Any]  # one reasoning-gym entry: question, answer, metadata


@dataclass(frozen=True, slots=True)
class Problem:
    """One question with its worked solution (which ends in ``#### answer``)."""

    question: str
    solution: str
    answer: str
    is_drill: bool = False
    """Lines of equations, of which only the results are to be learned."""

    @property
    def prompt(self) -> str:
        """What the model is given; the same text as the tasks' plain prompt."""
        return f"Question: {self.question}\nAnswer:"


def _gsm_symbolic(item: Item) -> str:
    return item["metadata"]["answer_cot"].strip()


def _chain_sum(item: Item) -> str:
    return _reduce(item["metadata"]["expression"], item["answer"])


def _reduce(expression: str, answer: str) -> str:
    """One operation a line, innermost first; empty if the result is not the answer."""
    symbols = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
    functions = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}
    lines: list[str] = []

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.Constant):
            return int(str(node.value))
        if isinstance(node, ast.UnaryOp):
            inner = value(node.operand)
            if not isinstance(node.operand, ast.Constant):
                lines.append(f"-({inner}) = {-inner}")
            return -inner
        assert isinstance(node, ast.BinOp), f"not plain arithmetic: {ast.dump(node)}"
        left, right = value(node.left), value(node.right)
        symbol = symbols[type(node.op)]
        result = functions[symbol](left, right)
        lines.append(f"{left} {symbol} {right} = {result}")
        return result

    result = value(ast.parse(expression.strip(), mode="eval").body)
    return "\n".join([*lines, f"#### {answer}"]) if str(result) == answer else ""


def _basic_arithmetic(item: Item) -> str:
    return _reduce(item["metadata"]["expression"], item["answer"])


def _products(item: Item) -> str:
    a, b = (int(term) for term in item["metadata"]["expression"].split("*"))
    parts = [int(digit) * 10**place for place, digit in enumerate(reversed(str(b)))][::-1]
    lines = [f"{a} * {part} = {a * part}" for part in parts if part]
    total = a * parts[0]
    for part in parts[1:]:
        if part:
            lines.append(f"{total} + {a * part} = {total + a * part}")
            total += a * part
    return "\n".join([*lines, f"#### {total}"])


def _simple_equations(item: Item) -> str:
    equation = item["metadata"]["equation"]
    match = re.fullmatch(r"(\d+)\*(\w)(?: ([+-]) (\d+))? = (-?\d+)", equation)
    if match is None:
        return ""
    a, name, sign, b, c = match.groups()
    lines, right = [], int(c)
    if sign:
        right = int(c) - int(b) if sign == "+" else int(c) + int(b)
        lines.append(f"{a}*{name} = {c} {'-' if sign == '+' else '+'} {b} = {right}")
    lines.append(f"{name} = {right} / {a} = {item['answer']}")
    return "\n".join([*lines, f"#### {item['answer']}"])


def _euclid(a: int, b: int) -> tuple[list[str], int]:
    a, b = max(a, b), min(a, b)
    lines = []
    while b:
        lines.append(f"{a} mod {b} = {a % b}")
        a, b = b, a % b
    return lines, a


def _gcd(item: Item) -> str:
    lines, divisor = _euclid(*item["metadata"]["numbers"])
    return "\n".join([*lines, f"#### {divisor}"])


def _lcm(item: Item) -> str:
    a, b = item["metadata"]["numbers"]
    lines, divisor = _euclid(a, b)
    lines += [f"{a} / {divisor} = {a // divisor}", f"{a // divisor} * {b} = {item['answer']}"]
    return "\n".join([*lines, f"#### {item['answer']}"])


def _leg_counting(item: Item) -> str:
    total, lines = 0, []
    for animal, count in item["metadata"]["animals"].items():
        legs = count * ANIMALS[animal]
        lines.append(f"{animal}: {count} * {ANIMALS[animal]} = {legs}, {total} + {legs} =")
        total += legs
        lines[-1] += f" {total}"
    return "\n".join([*lines, f"#### {total}"])


def _count_bits(item: Item) -> str:
    number, total, lines = item["metadata"]["number"], 0, []
    while number:
        total += number % 2
        lines.append(f"{number} / 2 = {number // 2} rest {number % 2}, {total}")
        number //= 2
    return "\n".join([*lines, f"#### {total}"])


def _base_conversion(item: Item) -> str:
    meta, lines, value = item["metadata"], [], 0
    for digit in meta["source_repr"]:
        previous, value = value, value * meta["source_base"] + int(digit, 36)
        lines.append(f"{previous} * {meta['source_base']} + {int(digit, 36)} = {value}")
    while value:
        value, rest = divmod(value, meta["target_base"])
        lines.append(f"{value * meta['target_base'] + rest} / {meta['target_base']} = {value}")
        lines[-1] += f" rest {rest}"
    return "\n".join([*lines, f"#### {item['answer']}"])


def _simple_geometry(item: Item) -> str:
    meta, total = item["metadata"], 0
    lines = [f"({meta['n_sides']} - 2) * 180 = {meta['total_interior_sum']}"]
    for angle in meta["known_angles"]:
        lines.append(f"{total} + {int(angle)} = {total + int(angle)}")
        total += int(angle)
    lines.append(f"{meta['total_interior_sum']} - {total} = {item['answer']}")
    return "\n".join([*lines, f"#### {item['answer']}"])


# Generator settings that differ from reasoning-gym's defaults.
KNOBS: dict[str, dict[str, int]] = {"products": {"max_digits": 3}, "count_bits": {"max_n": 1023}}
WRITERS: dict[str, Callable[[Item], str]] = {
    "gsm_symbolic": _gsm_symbolic,
    "chain_sum": _chain_sum,
    "basic_arithmetic": _basic_arithmetic,
    "products": _products,
    "simple_equations": _simple_equations,
    "gcd": _gcd,
    "lcm": _lcm,
    "leg_counting": _leg_counting,
    "count_bits": _count_bits,
    "base_conversion": _base_conversion,
    "simple_geometry": _simple_geometry,
}
# Not generators: "gsm_arithmetic" is all bare equations inside gsm_symbolic's worked solutions,
# "gsm_equation" one of them for each problem, "gsm_drill" rows of many of them.
# A share is of CHUNK_SIZE items. By tokens "broad" is about 55 % word problems, 25 % rows of their
# equations and 20 % other tasks; "general" the same without the rows of equations; "narrow" 40 %
# word problems and 60 % rows of equations.
_OTHERS = {
    "chain_sum": 0.12,
    "products": 0.12,
    "basic_arithmetic": 0.12,
    "simple_equations": 0.1,
    "gcd": 0.05,
    "lcm": 0.05,
    "leg_counting": 0.025,
    "count_bits": 0.025,
    "base_conversion": 0.025,
    "simple_geometry": 0.025,
}
MIXTURES: dict[str, dict[str, float]] = {
    "sample": {"gsm_symbolic": 1.85, "gsm_equation": 0.6},  # for the tokenizer only
    "narrow": {"gsm_symbolic": 0.6, "gsm_drill": 1.0},
    "general": {"gsm_symbolic": 1.0, **_OTHERS},
    "broad": {"gsm_symbolic": 1.0, "gsm_drill": 0.5, **_OTHERS},
}
_EQUATION = re.compile(r"(?<![\w.)])(\d+(?: ?[-+*x/] ?\d+)+) ?= ?(\d+(?:\.\d+)?)(?![\d.]*[\w%/])")


def problems(task: str, seed: int, num_items: int, split: str = "train") -> Iterator[Problem]:
    """Problems of one split among ``num_items`` generated from ``seed``.

    Items whose solution cannot be written from the metadata are left out.
    """
    if task in ("gsm_arithmetic", "gsm_equation"):
        yield from _equations(task, seed, num_items, split)
        return
    if task == "gsm_drill":
        yield from _drills(seed, num_items, split)
        return
    data = reasoning_gym.create_dataset(task, size=num_items, seed=seed, **KNOBS.get(task, {}))
    for index in range(num_items):
        item = data[index]
        if split_of(item["question"]) != split:
            continue
        question = item["question"].removesuffix(SUFFIX).strip()
        if solution := WRITERS[task](item):
            yield Problem(question, solution, str(item["answer"]))


def _equations(task: str, seed: int, num_items: int, split: str) -> Iterator[Problem]:
    """The true bare equations of each word problem's worked solution: all distinct ones, or one."""
    for index, word_problem in enumerate(problems("gsm_symbolic", seed, num_items, split)):
        found = [pair for pair in _EQUATION.findall(word_problem.solution) if _is_true(*pair)]
        if task == "gsm_equation" and found:
            found = [Random(seed + index).choice(found)]
        for left, right in dict.fromkeys(found):
            yield Problem(f"{left} =", f"{left} = {right}\n#### {right}", right)


def _drills(seed: int, num_items: int, split: str) -> Iterator[Problem]:
    """Many bare equations a row, from a seed range of their own (DRILL_PROBLEMS for each item)."""
    seed = DRILL_SEED + (seed - FIRST_SEED) * DRILL_PROBLEMS
    pool = [
        row.solution.partition("\n")[0]
        for row in _equations("gsm_arithmetic", seed, num_items * DRILL_PROBLEMS, split)
    ]
    Random(seed).shuffle(pool)
    for start in range(0, len(pool), DRILL_LENGTH):
        yield Problem("", "\n".join(pool[start : start + DRILL_LENGTH]), "", is_drill=True)


def _is_true(left: str, right: str) -> bool:
    """Whether a side of digits and ``+ - * x /`` has the value that the text gives it."""
    terms = [term.strip() for term in re.split(r"([-+*x/])", left)]
    total, product = 0.0, float(terms[0])
    for sign, term in zip(terms[1::2], map(float, terms[2::2]), strict=True):
        if sign in "+-":
            total, product = total + product, term if sign == "+" else -term
        elif sign == "/":
            product = product / term if term else float("nan")
        else:
            product *= term
    return abs(total + product - float(right)) < 1e-6


def training_chunk(mixture: str, base_seed: int, chunk: int) -> list[Problem]:
    """The train-split problems of one chunk of a mixture, in a fixed shuffled order."""
    seed = base_seed + chunk * CHUNK_SIZE
    rows: list[Problem] = []
    for task, share in MIXTURES[mixture].items():
        rows += problems(task, seed, round(share * CHUNK_SIZE))
    Random(seed).shuffle(rows)
    return rows
