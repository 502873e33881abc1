"""Prompts whose answers copy from them, for speed.py: Spec-Bench's summaries and retrieval rows.

Usage: python experiments/speed_real/copy_heavy.py DATA OUT --count 10

DATA is the folder of data sets, OUT a folder: it gets ``summarization.jsonl`` and ``rag.jsonl``,
with the first rows of each kind that are not longer than --longest characters. Spec-Bench (Xia et
al., 2401.07851) has no answers that a program can check, so nothing counts as right::

    speed.py --tasks jsonl:OUT/rag.jsonl,scorer=copy_heavy:nothing --read-first --prefix-caching
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from cospec.tasks import Score

if TYPE_CHECKING:
    from cospec.tasks import Example

KINDS = "summarization", "rag"


def nothing(_: Example, text: str) -> Score:
    """Score of a text that nobody can judge."""
    return Score(0.0, text)


def main() -> None:
    """Write the problems."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=10, help="of each kind")
    parser.add_argument("--longest", type=int, default=3_000, help="characters of a prompt")
    options = parser.parse_args()
    lines = (options.data / "spec_bench" / "question.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in lines.splitlines()]
    options.out.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        asked = [
            {"id": row["question_id"], "question": row["turns"][0], "answer": "none"}
            for row in rows
            if row["category"] == kind and len(row["turns"][0]) <= options.longest
        ][: options.count]
        text = "".join(json.dumps(row) + "\n" for row in asked)
        (options.out / f"{kind}.jsonl").write_text(text, encoding="utf-8")
        print(f"{kind}: {len(asked)} prompts")


if __name__ == "__main__":
    main()
