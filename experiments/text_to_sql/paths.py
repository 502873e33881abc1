"""Compare two paths on the same questions: that of the target, and that of a policy.

Usage: python experiments/text_to_sql/paths.py BRANCHES ROUND [--json FILE]

Both are folders of `collect.py`. For each of them the table has the right answers and the worth of
the decisions on its path; then won and lost answers with an exact paired test.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from safetensors.torch import load_file

from cospec.evaluation.stats import mcnemar_p


def main() -> None:
    """Print the table; write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("branches", "round"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--json", type=Path, help="one line a question, without texts")
    options = parser.parse_args()
    target, policy = read(options.branches), read(options.round)
    both = [name for name in target if name in policy]
    for title, rows in (("target", target), ("policy", policy)):
        worth = [one for name in both for one in rows[name]["worth"]]
        print(
            f"{title}: {sum(rows[name]['correct'] for name in both)} of {len(both)} right; "
            f"{len(worth)} decisions, right only with the draft's token {worth.count(1)}, "
            f"only with the target's {worth.count(-1)}"
        )
    pairs = [(target[name]["correct"], policy[name]["correct"]) for name in both]
    won, lost = pairs.count((0, 1)), pairs.count((1, 0))
    print(f"won {won}, lost {lost}, p {mcnemar_p(won, lost):.2g}")
    if options.json:
        lines = [
            json.dumps({"id": name, "target": target[name], "policy": policy[name]})
            for name in both
        ]
        options.json.write_text('{"rows": [\n ' + ",\n ".join(lines) + "\n]}\n")


def read(folder: Path) -> dict[str, dict]:
    """By question, whether its path is right, and the worth of the draft's token along it."""
    found = {}
    for path in sorted(folder.glob("*.jsonl")):
        pieces = path.with_suffix(".safetensors")
        tensors = load_file(pieces) if pieces.exists() else {"worth": [], "runs": []}
        first = 0
        for row in map(json.loads, path.open()):
            last = first + len(row["branches"])
            found[row["id"]] = {"correct": int(row["correct"])} | {
                key: [int(one) for one in tensors[key][first:last]] for key in ("worth", "runs")
            }
            first = last
    return found


if __name__ == "__main__":
    main()
