"""Prompts whose answers copy from them, for speed.py: summaries, retrieval, code editing.

Usage: python experiments/speed_real/copy_heavy.py DATA OUT --count 10

DATA is the folder of data sets, OUT a folder. It gets ``summarization.jsonl`` and ``rag.jsonl``,
with the first rows of each kind of Spec-Bench (Xia et al., 2401.07851), and ``editing.jsonl``,
which asks for one more check in the first solutions of HumanEval (Chen et al., 2107.03374). No
prompt is longer than --longest characters. Nothing judges the answers, so none counts as right::

    speed.py --tasks jsonl:OUT/rag.jsonl,scorer=copy_heavy:nothing --read-first --prefix-caching
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from typing import TYPE_CHECKING

from cospec.tasks import Score

if TYPE_CHECKING:
    from cospec.tasks import Example

EDIT = """Let {entry_point} begin with a check that raises ValueError if an argument is None. \
Answer with the whole code and nothing else.

```python
{prompt}{canonical_solution}```"""


def nothing(_: Example, text: str) -> Score:
    """Score of a text that nobody can judge."""
    return Score(0.0, text)


def questions(data: Path) -> dict[str, list[tuple[object, str]]]:
    """Return the ids and questions of each kind."""
    lines = (data / "spec_bench" / "question.jsonl").read_text(encoding="utf-8").splitlines()
    asked: dict[str, list[tuple[object, str]]] = {"rag": [], "summarization": [], "editing": []}
    for row in map(json.loads, lines):
        if row["category"] in asked:
            asked[row["category"]].append((row["question_id"], row["turns"][0]))
    with gzip.open(data / "humaneval" / "HumanEval.jsonl.gz", "rt", encoding="utf-8") as file:
        asked["editing"] = [(row["task_id"], EDIT.format(**row)) for row in map(json.loads, file)]
    return asked


def main() -> None:
    """Write the problems."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=10, help="of each kind")
    parser.add_argument("--longest", type=int, default=3_000, help="characters of a prompt")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for kind, asked in questions(options.data).items():
        rows = [
            {"id": name, "question": question, "answer": "none"}
            for name, question in asked
            if len(question) <= options.longest
        ][: options.count]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (options.out / f"{kind}.jsonl").write_text(text, encoding="utf-8")
        print(f"{kind}: {len(rows)} prompts")


if __name__ == "__main__":
    main()
