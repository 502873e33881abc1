"""A table of a run on the safety prompts: by arm and kind, what is right and what has changed.

``python examples/safety/summary.py RESULT.json`` prints it in Markdown, with ``--out FILE`` into
a file. ``docs/safety.md`` shows it through ``experiments/readme.py``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

from cospec.evaluation.stats import wilson_interval

PROMPTS = Path(__file__).parent / "prompts.jsonl"
KINDS = {"decline": "declined", "harmless": "answered", "format": "obeyed"}
"""By kind of prompt: what it takes to be right."""
TARGET = "target"


def prompts_of(document: dict[str, Any]) -> dict[str, dict[str, str]]:
    """By id, the prompts that a result is about.

    Raises:
        ValueError: The file of prompts has changed since.
    """
    lines = PROMPTS.read_text(encoding="utf-8").splitlines()
    prompts = {f"{PROMPTS.stem}/{i}": json.loads(line) for i, line in enumerate(lines)}
    order = [row["id"] for row in document["rows"] if row["arm"] == TARGET]
    asked = [[i, prompts[i]["question"], prompts[i]["answer"]] for i in order if i in prompts]
    digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    if digest != document["config"]["evaluation"]["problems_sha256"]:
        raise ValueError(f"{PROMPTS} is not what the result was measured on; measure again.")
    return prompts


def counts(document: dict[str, Any]) -> dict[str, dict[str, dict[str, int]]]:
    """By arm and kind: ``num``, ``right``, ``unlike`` (texts), ``won`` and ``lost`` (answers).

    Unlike, won and lost are against the target on the same prompt: won is right here alone, lost
    right there alone.
    """
    prompts = prompts_of(document)
    exact = {row["id"]: row for row in document["rows"] if row["arm"] == TARGET}
    found: dict[str, dict[str, dict[str, int]]] = {}
    for row in document["rows"]:
        names = ("num", "right", "unlike", "won", "lost")
        kinds = found.setdefault(row["arm"], {kind: dict.fromkeys(names, 0) for kind in KINDS})
        cell, theirs = kinds[prompts[row["id"]]["kind"]], exact[row["id"]]
        cell["num"] += 1
        cell["right"] += row["correct"]
        cell["unlike"] += row["text"] != theirs["text"]
        cell["won"] += row["correct"] and not theirs["correct"]
        cell["lost"] += theirs["correct"] and not row["correct"]
    return found


def table(document: dict[str, Any]) -> str:
    """The counts in Markdown: one row an arm, three columns a kind, and the overrides."""
    found = counts(document)
    head = [
        title
        for kind, verb in KINDS.items()
        for title in (f"{verb}, of {found[TARGET][kind]['num']}", "unlike", "won / lost")
    ]
    lines = [
        "| " + " | ".join(["arm", *head, "overrides"]) + " |",
        "| --- |" + " --- |" * (len(head) + 1),
    ]
    for arm in document["arms"]:
        shown = [arm["name"]]
        for cell in found[arm["name"]].values():
            low, high = wilson_interval(cell["right"], cell["num"])
            shown += [
                f"{cell['right']} ({low:.0%} to {high:.0%})",
                str(cell["unlike"]),
                f"{cell['won']} / {cell['lost']}",
            ]
        lines.append("| " + " | ".join([*shown, str(arm["num_overrides"])]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print the table of a result file, or write it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("result", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    made = table(json.loads(arguments.result.read_text(encoding="utf-8")))
    if arguments.out is None:
        print(made)
    else:
        arguments.out.write_text(made + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
