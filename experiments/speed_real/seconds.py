"""Seconds a question of one arm of `speed.py` against the others, with bootstrap intervals.

Usage: python experiments/speed_real/seconds.py experiments/speed_real/sql_cascade.json \
           experiments/text_to_sql/test_known.json

The last arm of the result is compared. The second file tells the database of each question.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

NUM_DRAWS = 4000


def main() -> None:
    """Print a line an arm, then the means where the last arm wrote one block, and elsewhere."""
    result, known = (json.loads(Path(name).read_text()) for name in sys.argv[1:3])
    *others, ours = [arm["arm"] for arm in result["arms"]]
    rows = {(row["id"], row["arm"]): row for row in result["rows"]}
    ids = list(dict.fromkeys(question for question, _ in rows))
    place = dict(zip(known["ids"], known["databases"], strict=True))
    databases = sorted({place[one] for one in ids})
    members = {each: [one for one in ids if place[one] == each] for each in databases}
    rng = np.random.default_rng(0)

    def seconds(arm: str, some: list[str]) -> float:
        return float(sum(rows[one, arm]["seconds"] for one in some))

    for arm in others:
        by_question, by_database = [], []
        for _ in range(NUM_DRAWS):
            some = list(rng.choice(ids, len(ids)))
            by_question.append(seconds(arm, some) / seconds(ours, some))
            some = [one for each in rng.choice(databases, len(databases)) for one in members[each]]
            by_database.append(seconds(arm, some) / seconds(ours, some))
        ratio = seconds(arm, ids) / seconds(ours, ids)
        ends = [np.percentile(drawn, [2.5, 97.5]).round(2) for drawn in (by_question, by_database)]
        print(f"{arm}: {ratio:.2f}, over questions {ends[0]}, over databases {ends[1]}")
    whole = [one for one in ids if rows[one, ours]["num_blocks"] == 1]
    for name, some in (("one block", whole), ("others", [i for i in ids if i not in whole])):
        means = {arm: round(seconds(arm, some) / len(some), 1) for arm in (*others, ours)}
        print(f"{name}, {len(some)} questions: {means}")


if __name__ == "__main__":
    main()
