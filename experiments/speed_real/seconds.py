"""Seconds a question, and a token, of the last arm of `speed.py` against the others.

Usage: python experiments/speed_real/seconds.py experiments/speed_real/sql_cascade.json.gz \
           experiments/text_to_sql/test_known.json.gz

The second file tells the database of each question. Intervals are those of
`cospec.evaluation.stats.speedup_interval`: questions are drawn, then databases.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

from cospec.evaluation.stats import speedup, speedup_interval
from cospec.results import read_document


def main() -> None:
    """Print a line an arm, then the means where the last arm wrote one block, and elsewhere."""
    result, known = (read_document(Path(name)) for name in sys.argv[1:3])
    *others, ours = [arm["arm"] for arm in result["arms"]]
    rows = {(row["id"], row["arm"]): row for row in result["rows"]}
    ids = list(dict.fromkeys(question for question, _ in rows))
    place = dict(zip(known["ids"], known["databases"], strict=True))
    databases: dict[str, list[str]] = {}
    for one in ids:
        databases.setdefault(place[one], []).append(one)
    units = {"questions": [[one] for one in ids], "databases": list(databases.values())}

    def seconds(
        arm: str, groups: list[list[str]], unit: str = "question"
    ) -> list[tuple[float, int]]:
        def number(one: str) -> int:
            return 1 if unit == "question" else rows[one, arm]["num_tokens"]

        return [
            (sum(rows[one, arm]["seconds"] for one in some), sum(map(number, some)))
            for some in groups
        ]

    print(f"against {ours}:")
    for arm, unit in itertools.product(others, ("question", "token")):
        ratio = speedup(seconds(arm, [ids], unit), seconds(ours, [ids], unit))
        shown = [f"{arm} takes {ratio:.2f} times as long a {unit}"]
        for name, groups in units.items():
            both = seconds(arm, groups, unit), seconds(ours, groups, unit)
            low, high = speedup_interval(*both) or (0, 0)
            shown.append(f"{low:.2f} to {high:.2f} over {len(groups)} {name}")
        print(", ".join(shown))
    whole = [one for one in ids if rows[one, ours]["num_blocks"] == 1]
    for name, some in (("one block", whole), ("others", [i for i in ids if i not in whole])):
        means = {arm: seconds(arm, [some])[0][0] / max(1, len(some)) for arm in (*others, ours)}
        shown = [f"{arm} {mean:.1f}" for arm, mean in means.items()]
        print(f"{name}, {len(some)} questions, seconds: {'; '.join(shown)}")


if __name__ == "__main__":
    main()
