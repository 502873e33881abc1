"""The controls of text-to-SQL and of mixed traffic: a search, fixed queries, a router.

    python experiments/retrieval/others.py DATA --json FILE

Text-to-SQL, the 595 test questions on known databases (`experiments/text_to_sql`). The query is
that of the likest question of the draft's part on the same database (nearest), the one of that part
that is right most often there (fixed), or ``SELECT count(*)`` of some table (count: an upper bound,
right if it is for any table). "any" counts questions to which some query of that part is right.

Mixed traffic, the 5 x 300 test problems: a prompt goes to the task of the likest of 20 train
prompts a task. The count is of prompts that are sent home, or away from it, by mistake.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import defaultdict
from pathlib import Path

from cospec.results import Provenance, read_document, write_json
from cospec.tasks import Example, load_task

SQL = Path(__file__).parents[1] / "text_to_sql"
sys.path.append(str(SQL))

from halves import known, words_of  # noqa: E402  # a script of the repository
from retrieval import likeness  # noqa: E402  # beside this script

TASKS = ("gsm_symbolic", "chain_sum", "products", "gcd", "simple_geometry")


def sql(data: Path) -> dict[str, int]:
    """Return how many test questions each control answers."""
    task = load_task("spider", data_dir=data)
    examples = task.examples("train")
    by_id = {example.id: example for example in examples}
    tests = [by_id[one] for one in read_document(SQL / "test_best_pair.json.gz")["ids"]]
    parts: dict[str, list[Example]] = defaultdict(list)
    for example in known(examples, "draft"):
        parts[example.metadata["db_id"]].append(example)

    def right(example: Example, query: str) -> bool:
        return task.score(example, f"```sql\n{query}\n```").correct

    found = dict.fromkeys(("nearest", "fixed", "any", "count"), 0)
    best: dict[str, str] = {}
    for example in tests:
        place = example.metadata["db_id"]
        part = parts[place]
        queries = list(dict.fromkeys(one.metadata["query"] for one in part))
        if place not in best:
            best[place] = max(queries, key=lambda q, part=part: sum(right(e, q) for e in part))
        words = words_of(example.metadata["question"])
        near = max(part, key=lambda e: likeness(words, words_of(e.metadata["question"])))
        tables = re.findall(r'CREATE TABLE "?(\w+)', example.question)
        found["nearest"] += right(example, near.metadata["query"])
        found["fixed"] += right(example, best[place])
        found["any"] += any(right(example, query) for query in queries)
        found["count"] += any(right(example, f'SELECT count(*) FROM "{t}"') for t in tables)
    return {"questions": len(tests), **found}


def router() -> dict[str, int]:
    """Return how many test prompts the nearest train prompts send to the wrong side."""
    tasks = {name: load_task(f"reasoning_gym:{name}") for name in TASKS}
    shown = {
        name: [words_of(e.question) for e in task.examples("train", 20, 1)]
        for name, task in tasks.items()
    }
    wrong = total = 0
    for name, task in tasks.items():
        for example in task.examples("test", 300, 20):
            words = words_of(example.question)
            nearest = max(TASKS, key=lambda t: max(likeness(words, one) for one in shown[t]))
            wrong += (nearest == TASKS[0]) != (name == TASKS[0])
            total += 1
    return {"prompts": total, "wrong": wrong}


def main() -> None:
    """Print and write the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with spider/")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    provenance = Provenance()
    table = {"schema": 1, "router": router(), "sql": sql(options.data)}
    print(table)
    write_json(options.json, table | {"provenance": provenance.to_dict("cpu", "none")})


if __name__ == "__main__":
    main()
