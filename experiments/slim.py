"""Make a result file of many arms small: which problems each arm got right, and no texts.

    python experiments/slim.py FULL.json SMALL.json

Configuration, provenance and totals stay as they are, in the documents of ``cospec eval`` and
``calibrate`` and in the cells of ``cospec bench``. In place of a row for each arm and problem there
is one for each arm: a 1 for each problem that was right, a 0 for each other, in the order of
``ids`` (and of their ``groups``, if they have some), and the sums by which the report shows
acceptance by position. That is all that a paired test needs; ``cospec compare`` and ``cospec
reproduce`` go by it where there are no texts.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

from cospec.results import write_json


def slim(part: dict[str, Any]) -> None:
    """Replace the rows of a document or of a cell."""
    by_arm: dict[str, dict[str, Any]] = defaultdict(dict)
    for row in part["rows"]:
        by_arm[row["arm"]][row["id"]] = row
    first = next(iter(by_arm.values()))
    part["ids"] = list(first)
    if any("group" in row for row in first.values()):
        part["groups"] = [row.get("group") for row in first.values()]
    part["rows"] = [
        {
            "arm": arm,
            "correct": "".join(str(int(found[i]["correct"])) for i in part["ids"]),
            "num_target_forwards": sum(row["num_target_forwards"] for row in found.values()),
            "num_accepted_tokens_per_pos": [
                sum(counts)
                for counts in zip_longest(
                    *(row["num_accepted_tokens_per_pos"] for row in found.values()), fillvalue=0
                )
            ],
        }
        for arm, found in by_arm.items()
    ]


def main() -> None:
    """Command line."""
    full, small = map(Path, sys.argv[1:])
    result = json.loads(full.read_text(encoding="utf-8"))
    for part in result.get("cells", [result]):
        slim(part)
    write_json(small, result)


if __name__ == "__main__":
    main()
