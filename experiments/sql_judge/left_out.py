"""Finds the questions of ``spider`` that the judge cannot use, and writes the list that ships.

    python experiments/sql_judge/left_out.py --data-dir DATA --json left_out.json

Run it after every change of the fillings: `cospec.tasks.sql.trivial` says what is left out, and
``left_out.json`` of the package names it. The JSON file counts it by split and reason.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from unittest import mock

from cospec.tasks import SPLITS
from cospec.tasks.sql import spider
from cospec.tasks.sql.trivial import why_trivial


def main() -> None:
    """Judges every gold query once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with mock.patch.object(spider, "read_left_out", frozenset):
        task = spider.spider(options.data_dir)
    judge = task.scorer.__self__  # type: ignore[union-attr]  # the judge's own method
    reasons: dict[str, str | None] = {}
    counts: dict[str, Counter[str]] = {}
    for split in SPLITS:
        counts[split] = Counter()
        for example in sorted(task.examples(split), key=lambda e: e.metadata["db_id"]):
            name = spider.question_hash(example.metadata)
            if name not in reasons:
                db_id, query = example.metadata["db_id"], example.metadata["query"]
                reasons[name] = why_trivial(judge, db_id, query)
                if reasons[name]:
                    print(split, reasons[name], db_id, query, flush=True)
            counts[split][reasons[name] or "used"] += 1
    names = sorted(name for name, reason in reasons.items() if reason)
    text = "[\n" + ",\n".join(f'"{name}"' for name in names) + "\n]\n"
    Path(spider.__file__).with_name("left_out.json").write_text(text, encoding="utf-8")
    print(counts)
    if options.json:
        result = {"command": "left_out", "splits": counts}
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
