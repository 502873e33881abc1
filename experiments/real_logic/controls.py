"""Controls of the logic task: a fixed answer, a strict judge, and examples shown to the target.

    python experiments/real_logic/controls.py EVAL --target TARGET --json FILE

A fixed answer says that at least one of some variables, or their negations, is true ("P ∨ ¬R").
The best one is chosen on the train problems of `run.sh` and counted on its last 600 test problems:
one for all problems, and one for each set of variables. "Q → P" is "¬Q ∨ P".

The strict judge asks for more than the task does: the premises can be true together, and no single
one of them implies the answer. It goes over the texts in EVAL, the result of `cospec eval` in
`run.sh` with its texts, and counts only problems to which such an answer exists.

The shown target has four worked examples of the train split in its prompt (`shots=4`) and writes
its own answers to the 600 problems, greedily.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from reasoning_gym.logic.propositional_logic import Expression

from cospec import Engine, ModelPair
from cospec.evaluation.problems import encode_problems
from cospec.evaluation.stats import mcnemar_p
from cospec.results import read_document, write_json
from cospec.tasks import load_task

if TYPE_CHECKING:
    from cospec.tasks import Example, Task

TASK = "reasoning_gym:propositional_logic,reasoning=off"
TEST = ("test", 600, 75)
"""Split, number and seed of the last test problems in `run.sh`."""
OR = "\N{LOGICAL OR}"
World = tuple[bool, ...]


class Problem(NamedTuple):
    """The worlds, values of the variables, in which premises are true."""

    variables: tuple[str, ...]
    all_true: set[World]
    each_true: list[set[World]]


def variables(example: Example) -> tuple[str, ...]:
    """Return the variables of a problem."""
    return tuple(example.metadata["variables"])


def worlds(text: str, names: tuple[str, ...]) -> set[World]:
    """Return the worlds in which a statement is true."""
    statement = Expression.from_string(text)
    every = product((False, True), repeat=len(names))
    return {w for w in every if statement.evaluate(dict(zip(names, w, strict=True)))}


def problem(example: Example) -> Problem:
    """Return what the premises of a problem say."""
    each = [worlds(text, variables(example)) for text in example.metadata["premises"]]
    return Problem(variables(example), set.intersection(*each), each)


def is_strictly_right(said: set[World], given: Problem) -> bool:
    """Tell whether a statement follows from premises that can be true, and from no single one."""
    follows = given.all_true <= said and bool(given.all_true)
    return follows and not any(one <= said for one in given.each_true)


def fixed_answers() -> list[str]:
    """Return all answers of the form "P ∨ ¬R"."""
    literals = [(None, name, f"¬{name}") for name in "PQRS"]
    return [f" {OR} ".join(filter(None, some)) for some in product(*literals) if any(some)]


def count_fixed(task: Task) -> dict[str, object]:
    """Return how many test problems fixed answers get right, chosen on train problems."""
    train, test = task.examples("train", 1200, 0), task.examples(*TEST)

    def right(answer: str, examples: list[Example]) -> int:
        return sum(task.score(e, f"<answer>{answer}</answer>").correct for e in examples)

    def best(examples: list[Example]) -> str:
        return max(fixed_answers(), key=lambda answer: right(answer, examples))

    found = {"problems": len(test), "Q → P": right("Q → P", test)}
    found[best(train)] = right(best(train), test)
    chosen, num_right = [], 0
    for group in sorted({variables(e) for e in train}):
        chosen.append(best([e for e in train if variables(e) == group]))
        num_right += right(chosen[-1], [e for e in test if variables(e) == group])
    return found | {f"by variables: {', '.join(chosen)}": num_right}


def count_strict(task: Task, result: dict[str, Any]) -> dict[str, int]:
    """Return how many texts of each arm are right for the strict judge."""
    given = {e.id: problem(e) for e in task.examples("test", 400, 72)}
    # What follows at most says exactly in which worlds all premises are true.
    asked = {i for i, one in given.items() if is_strictly_right(one.all_true, one)}
    found = Counter({"problems": len(asked)})
    for row in result["rows"]:
        if row["id"] in asked and row["correct"]:
            said = worlds(row["extracted"], given[row["id"]].variables)
            found[row["arm"]] += is_strictly_right(said, given[row["id"]])
    return dict(found)


def show(target: Path) -> dict[str, Any]:
    """Return the shown target's right answers, a bit each, and how they compare."""
    task = load_task(f"{TASK},shots=4")
    examples = task.examples(*TEST)
    pair = ModelPair.from_pretrained(target)
    prompts, sampling = encode_problems(pair, task, examples, task.max_new_tokens)
    texts = Engine.target_only(pair, batch_size=32).generate(prompts, sampling)
    right = [task.score(e, t.text).correct for e, t in zip(examples, texts, strict=True)]
    known = read_document(Path(__file__).with_name("new_test_logic.json.gz"))
    assert known["ids"] == [example.id for example in examples]
    found: dict[str, Any] = {"right": sum(right)}
    for arm in known["arms"]:
        pairs = list(zip(right, map(int, arm["correct"]), strict=True))
        won, lost = pairs.count((1, 0)), pairs.count((0, 1))
        found[f"over {arm['name']}"] = {"won": won, "lost": lost, "p": mcnemar_p(won, lost)}
    return found | {"correct": "".join(str(int(one)) for one in right)}


def main() -> None:
    """Print and write the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("eval", type=Path, help="result of cospec eval, with texts")
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    task = load_task(TASK)
    strict = count_strict(task, read_document(options.eval))
    table = {"fixed": count_fixed(task), "strict": strict, "shown": show(options.target)}
    print(json.dumps(table, indent=1, ensure_ascii=False))
    write_json(options.json, table)


if __name__ == "__main__":
    main()
