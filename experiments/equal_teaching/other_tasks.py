"""Gather what teaching costs on other tasks; `experiments/readme.py` makes the table from it.

    python experiments/equal_teaching/other_tasks.py FOLDER

FOLDER holds the evaluations that `run.sh` makes: for each task, other_TASK_family.json (the target
as it was, and the pair with its arbiter), other_TASK_taught.json (the taught target) and
other_TASK_draft.json (the target as it was with a taught draft, under a rule and an arbiter).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from cospec.evaluation.stats import accuracy_delta_interval, mcnemar_p
from cospec.results import write_json

RESULT = Path(__file__).parent / "other_tasks.json"
TASKS = ("chain_sum", "products", "gcd", "simple_geometry")
ARMS = {
    "target": "target",
    "taught": "taught target",
    "arbiter": "target, with its arbiter",
    "draft": "taught draft alone",
    "draft_rule": "target and taught draft, with a rule",
    "draft_arbiter": "the same two, with an arbiter",
}

Json = dict[str, Any]


def bits(document: Json, wanted: str) -> str:
    """The bits of an arm, by id of the problem."""
    found = {row["id"]: row["correct"] for row in document["rows"] if row["arm"] == wanted}
    return "".join(str(int(found[name])) for name in sorted(found))


def gather(folder: Path) -> Json:
    """The bits of the arms on each task."""
    tasks, own = {}, {}
    for task in TASKS:
        own, taught, draft = (
            json.loads((folder / f"other_{task}_{name}.json").read_text(encoding="utf-8"))
            for name in ("family", "taught", "draft")
        )
        keys = "problems_sha256", "prompts_sha256"
        assert all(
            own["config"]["evaluation"][k] == one["config"]["evaluation"][k]
            for one in (taught, draft)
            for k in keys
        )
        arbiter, (rule, ruled) = (
            own["arms"][-1]["name"],
            (one["name"] for one in draft["arms"][-2:]),
        )
        tasks[task] = {
            "target": bits(own, "target"),
            "taught": bits(taught, "target"),
            "arbiter": bits(own, arbiter),
            "draft": bits(draft, "draft"),
            "draft_rule": bits(draft, rule),
            "draft_arbiter": bits(draft, ruled),
            "name_of_arbiter": arbiter,
            "name_of_rule": rule,
        }
    return {"schema": 1, "command": "other_tasks", "tasks": tasks, "provenance": own["provenance"]}


def table() -> str:
    """Share right of each arm, and its paired difference to the target as it was."""
    tasks = json.loads(RESULT.read_text(encoding="utf-8"))["tasks"]
    tasks["all four"] = {arm: "".join(tasks[task][arm] for task in TASKS) for arm in ARMS}
    lines = [f"| | {' | '.join(ARMS.values())} |", "| --- " * (1 + len(ARMS)) + "|"]
    for task, found in tasks.items():
        cells = []
        for arm in ARMS:
            pairs = list(zip(found[arm], found["target"], strict=True))
            wins, losses = pairs.count(("1", "0")), pairs.count(("0", "1"))
            cell = f"{found[arm].count('1') / len(pairs):.1%}"
            if arm != "target":
                low, high = (100 * end for end in accuracy_delta_interval(wins, losses, len(pairs)))
                p = f"p {mcnemar_p(wins, losses):.2g}"
                cell += f" ({low:+.1f} to {high:+.1f}; {wins} / {losses}, {p})"
            cells.append(cell)
        lines.append(f"| {task if ' ' in task else f'`{task}`'} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=Path)
    write_json(RESULT, gather(parser.parse_args().work))
    print(table())


if __name__ == "__main__":
    main()
