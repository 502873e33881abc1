"""Gather what teaching gave into one result file; `experiments/readme.py` makes the table from it.

    python experiments/equal_teaching/summarise.py FOLDER [--best]

FOLDER holds the taught models and, in ``heldout/family``, what `heldout.py` decoded with the one
that was best on the tune problems. With ``--best`` the folder of that one is printed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from experiments.heldout_templates import summarise as heldout  # noqa: E402

from cospec.results import write_json  # noqa: E402

RESULT = Path(__file__).parent / "equal_teaching_family.json"
NAMES = {"lossless": "taught", "rule": "taught-rule", "seen-seed0-n8000": "taught-arbiter"}
ROWS = {
    "lossless": "target",
    "taught": "target, taught 8,000 solutions",
    "seen-seed0-n8000": "target, with an arbiter that learned the same 8,000",
    "shipped": "target, with the shipped arbiter (100,000 solutions)",
    "rule": "target, with the rule",
    "taught-rule": "taught target, with the rule",
    "taught-arbiter": "taught target, with an arbiter that learned the same 8,000",
    "draft": "draft alone",
}


def taught(folder: Path) -> list[tuple[Path, heldout.Json]]:
    """The taught models with what is known of them, the best on tune problems first."""
    found = [
        (path.parent, json.loads(path.read_text(encoding="utf-8")))
        for path in folder.glob("*/taught.json")
    ]
    return sorted(found, key=lambda one: -one[1]["tune_accuracy"])


def merged() -> heldout.Json:
    """The held-out result of the pair with the arms of this one."""
    result, own = heldout.read("family"), json.loads(RESULT.read_text(encoding="utf-8"))
    assert result["problems_sha256"] == own["problems_sha256"], "they are paired by problem"
    result["arms"] |= own["arms"]
    return result


def table() -> str:
    """Accuracy of each arm, and its gain over the target and over the taught target."""
    result = merged()
    lines = ["| | right | over the target | over the taught target |", "| --- | --- | --- | --- |"]
    for arm, label in ROWS.items():
        if arm not in result["arms"]:
            continue
        bits = "".join(result["arms"][arm]["correct"])
        gains = [
            "" if arm == other else heldout.gain(result, arm, other)
            for other in ("lossless", "taught")
        ]
        lines.append(f"| {label} | {bits.count('1') / len(bits):.1%} | {' | '.join(gains)} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--best", action="store_true")
    args = parser.parse_args()
    models = taught(args.work)
    if args.best:
        print(models[0][0])
        return
    decoded = heldout.gather(args.work / "heldout" / "family")
    result = {
        "schema": 1,
        "command": "equal_teaching",
        "pair": "bundled:family",
        "teaching": [about for _, about in models],
        "tested": decoded["tested"],
        "problems_sha256": decoded["problems_sha256"],
        "arms": {NAMES[arm]: found for arm, found in decoded["arms"].items() if arm in NAMES},
        "provenance": decoded["provenance"],
    }
    write_json(RESULT, result)
    print(table())


if __name__ == "__main__":
    main()
