"""Near-duplicates of test problems among the solved train problems, and the gain without them.

    python experiments/twins/twins.py --out experiments/twins/result.json.gz

A *twin* of a test problem is a solved train problem of the same template with the same numbers in
the same order: only names differ, so its worked solution has the same arithmetic. The result file
keeps the template and a twin bit of every test problem, so that a table can be made from these and
the rows of the evaluation.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import reasoning_gym

from cospec.results import Provenance, write_json
from cospec.tasks import Example, load_task
from cospec.tasks.splits import normalize, split_of

sys.path.insert(0, str(Path(__file__).parents[2]))
from experiments.tables.rows import read  # a script of the repository

TASK = "reasoning_gym:gsm_symbolic"
SOLUTION_SEED = 1_000_000  # of `cospec train`: the solved problems of every run begin there
EVALUATIONS = {
    "family": ("eval_family_batch16", 100_000),
    "specialist": ("eval_specialist_batch16", 130_000),
}
SIZES = {"target": (15, 4_000), "generalist": (31, 4_000)}  # chunks begun, items a chunk
FIRST_TRAINING_SEED = 1_000_000_000
TABLES = (
    "demo",
    "eval_family",
    "eval_family_corrected",
    "eval_family_batch16",
    "eval_family_hidden",
    "eval_specialist",
    "eval_specialist_corrected",
    "eval_specialist_batch16",
    "eval_specialist_hidden",
    "eval_specialist_variants",
    "guard_family",
    "bench_family",
    "bench_specialist",
    "bench_family_sampled",
    "bench_specialist_sampled",
    "bench_family_sampled_trained",
    "bench_specialist_sampled_trained",
)
Key = tuple[tuple[str, ...], tuple[str, ...]]


def template_of(example: Example) -> tuple[str, ...]:
    """The names of the variables, which differ between any two of the 85 templates."""
    return tuple(example.metadata["variables"])


def key_of(example: Example) -> Key:
    """Template and numbers of the question in order: equal for twins."""
    return template_of(example), tuple(re.findall(r"\d+(?:[.,]\d+)*", example.question))


def test_problems(result: dict[str, Any]) -> list[Example]:
    """The problems of a result file, drawn again; they must be those that the file names."""
    part = result["cells"][0] if "cells" in result else result
    ids = part.get("ids") or list(dict.fromkeys(row["id"] for row in part["rows"]))
    argv = result["argv"]
    seed = int(argv[argv.index("--seed") + 1]) if "--seed" in argv else 20_261  # of the demo
    drawn = load_task(TASK).examples("test", 400 if result["command"] == "demo" else len(ids), seed)
    by_id = {example.id: example for example in drawn}
    assert set(ids) <= set(by_id), "the task draws other problems than it did"
    return [by_id[one] for one in ids]


def twins(solved: list[Example], tests: list[Example]) -> dict[str, Any]:
    """For each test problem its template and whether it has a twin, with the same answer or not."""
    answers: dict[Key, set[str]] = defaultdict(set)
    for example in solved:
        answers[key_of(example)].add(example.answer)
    names = {name: i for i, name in enumerate(sorted({template_of(e) for e in [*solved, *tests]}))}
    found = [answers.get(key_of(example)) for example in tests]
    return {
        "num_templates": len(names),
        "num_solved": len(solved),
        "num_problems": len(tests),
        "num_twins": sum(one is not None for one in found),
        "num_twins_same_answer": sum(
            one is not None and e.answer in one for one, e in zip(found, tests, strict=True)
        ),
        "templates": [names[template_of(example)] for example in tests],
        "twins": "".join("0" if one is None else "1" for one in found),
    }


def seen_in_training(num_chunks: int, num_items: int) -> dict[str, int]:
    """Distinct train-split problems in the chunks that a target began."""
    questions, solutions = set(), set()
    for chunk in range(num_chunks):
        seed = FIRST_TRAINING_SEED + chunk * 4_000
        data = reasoning_gym.create_dataset("gsm_symbolic", size=num_items, seed=seed)
        for i in range(num_items):
            if split_of((item := data[i])["question"]) == "train":
                questions.add(normalize(item["question"]))
                solutions.add(item["metadata"]["answer_cot"].strip())
    return {"num_questions": len(questions), "num_solutions": len(solutions)}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    provenance = Provenance()
    tests = {name: test_problems(read(name)) for name in TABLES}
    solved = load_task(TASK).examples(
        "train", max(n for _, n in EVALUATIONS.values()), SOLUTION_SEED
    )
    texts = {name: {normalize(e.question) for e in found} for name, found in tests.items()}
    recurring = {
        name: sum(any(t in texts[o] for o in TABLES if texts[o] != ours) for t in ours) / len(ours)
        for name, ours in texts.items()
    }
    document = {
        "schema": 1,
        "command": "twins",
        "argv": ["experiments/twins/twins.py", "--out", str(options.out)],
        "provenance": provenance.to_dict("cpu", "none"),
        "seen_in_training": {name: seen_in_training(*size) for name, size in SIZES.items()},
        "recurring": recurring,
        "pairs": {
            pair: {"evaluation": name, **twins(solved[:number], tests[name])}
            for pair, (name, number) in EVALUATIONS.items()
        },
    }
    write_json(options.out, document)


if __name__ == "__main__":
    main()
