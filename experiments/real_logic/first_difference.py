r"""At which token the texts of two arms of a whole ``cospec eval`` document first differ.

    python experiments/real_logic/first_difference.py FULL.json TOKENIZER.json \
        ARM OTHER_ARM OUT.json

By the number of the token, from 0: how many problems differ there first, and how many of them only
the first arm got right. Texts that do not differ are counted as such.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from itertools import zip_longest
from pathlib import Path

from tokenizers import Tokenizer

from cospec.results import write_json


def main(full: str, tokenizer_file: str, arm: str, other: str, out: str) -> None:
    """Count, and write the counts with the command."""
    tokenizer = Tokenizer.from_file(tokenizer_file)
    document = json.loads(Path(full).read_text(encoding="utf-8"))
    rows = {(row["arm"], row["id"]): row for row in document["rows"]}
    differ: Counter[int] = Counter()
    lost: Counter[int] = Counter()
    ids = [problem for name, problem in rows if name == arm]
    for problem in ids:
        row, other_row = rows[arm, problem], rows[other, problem]
        pairs = zip_longest(*(tokenizer.encode(r["text"]).ids for r in (row, other_row)))
        place = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
        if place is not None:
            differ[place] += 1
            lost[place] += row["correct"] and not other_row["correct"]
    result = {
        "argv": sys.argv,
        "eval_argv": document["argv"],
        "num_problems": len(ids),
        "num_differing": differ.total(),
        "num_only_first_right": lost.total(),
        "by_token": {
            str(place): {"differ": differ[place], "only_first_right": lost[place]}
            for place in sorted(differ)
        },
    }
    write_json(Path(out), result)


if __name__ == "__main__":
    if len(sys.argv) != 6:
        sys.exit(__doc__)
    main(*sys.argv[1:])
