"""How like the prompts of an arbiter's task other prompts are, and how many it stands back from.

Usage: python experiments/guard/likeness.py TOKENIZER DATA ARBITER OUT

TOKENIZER is a folder of the target, ARBITER one that was trained on `experiments/text_to_sql`'s
known databases. No model is loaded.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).parent.parent / "text_to_sql"))
from halves import known, one_wording, short_schemas

from cospec.arbiters.learned import LearnedArbiter
from cospec.tasks import load_task


def main(target: str, data: str, folder: str, out: str) -> None:
    """Print and write a row for each kind of prompts."""
    tokenizer, guard = AutoTokenizer.from_pretrained(target), LearnedArbiter.load(Path(folder))
    guard = guard.prompt_guard

    def measured(task, examples):
        found = torch.tensor([guard.likeness(task.prompt(e, tokenizer)) for e in examples])
        return {
            "num_prompts": len(found),
            "lowest": round(float(found.min()), 3),
            "median": round(float(found.median()), 3),
            "highest": round(float(found.max()), 3),
            "num_foreign": int((found < guard.min_likeness).sum()),
        }

    spider = load_task("spider", data_dir=Path(data))
    schemas = short_schemas(spider.examples("train"), spider, tokenizer)
    rows = {
        f"spider, known databases, {part}": measured(spider, one_wording(known(schemas, part)))
        for part in ("arbiter", "test")
    }
    rows["spider, other databases (tune)"] = measured(spider, spider.examples("tune"))
    for name in ("gsm8k", "mbpp"):
        task = load_task(name, data_dir=Path(data), allow_code_execution=True)
        rows[name] = measured(task, task.examples("test", 150))
    found = {
        "command": "python experiments/guard/likeness.py TARGET DATA ARBITER OUT",
        "min_prompt_likeness": round(guard.min_likeness, 3),
        "prompts": rows,
    }
    Path(out).write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
