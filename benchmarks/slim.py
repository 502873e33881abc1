"""A result file of many arms made small: which problems each arm got right, and no texts.

    python benchmarks/slim.py FULL.json SMALL.json

Configuration, provenance and totals stay as they are. In place of a row for each arm and problem
there is one for each arm: a 1 for each problem that was right, a 0 for each other, in the order of
``ids``. That is all that a paired test needs.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

from cospec.results import write_json


def main() -> None:
    """Command line."""
    full, small = map(Path, sys.argv[1:])
    result = json.loads(full.read_text(encoding="utf-8"))
    right: dict[str, dict[str, bool]] = defaultdict(dict)
    for row in result["rows"]:
        right[row["arm"]][row["id"]] = row["correct"]
    result["ids"] = list(next(iter(right.values())))
    result["rows"] = [
        {"arm": arm, "correct": "".join(str(int(found[i])) for i in result["ids"])}
        for arm, found in right.items()
    ]
    write_json(small, result)


if __name__ == "__main__":
    main()
