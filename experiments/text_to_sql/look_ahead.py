"""How far an arbiter has to look ahead to tell whose answer is right.

Usage: python experiments/text_to_sql/look_ahead.py TARGET DATA ROWS OUT.json

ROWS is of `arms.py` with the arms lossless and draft_only. Where one of them is right and the other
is wrong, the target reads the draft's answer. OUT has, from the first token that the target would
not have written, 1 for each token that it would have and 0 for each other.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cospec.tasks import load_task

LENGTHS = (4, 8, 12, 16, 24, 32, 64)


def main() -> None:
    """Read, print the table and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("target", "data", "rows", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--split", default="tune", choices=["train", "tune"])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    task = load_task("spider", data_dir=options.data)
    questions = {example.id: example for example in task.examples(options.split)}
    tokenizer = AutoTokenizer.from_pretrained(options.target)
    model = AutoModelForCausalLM.from_pretrained(options.target, dtype=torch.float32)
    found = []
    for row in map(json.loads, options.rows.open()):
        target, draft = row["arms"]["lossless"], row["arms"]["draft_only"]
        if target["correct"] == draft["correct"]:
            continue
        prompt = task.prompt(questions[row["id"]], tokenizer)
        matches = agreed(model, tokenizer, prompt, draft["text"])
        found.append({"id": row["id"], "draft_right": draft["correct"], "agreed": matches})
        print(f"{len(found)}: {row['id']} {matches}", flush=True)
    is_draft = torch.tensor([bool(one["draft_right"]) for one in found])
    table = {n: round(area(shares(found, n), is_draft), 2) for n in LENGTHS}
    print(json.dumps(table))
    head = f'"schema": 1, "auc": {json.dumps(table)}'
    lines = ",\n".join(json.dumps(one) for one in found)
    options.out.write_text(f'{{{head}, "answers": [\n{lines}\n]}}\n')


@torch.inference_mode()
def agreed(model, tokenizer, prompt, text) -> str:
    """The target's agreement with each token of a text, from its first disagreement on."""
    answer = [*tokenizer.encode(text, add_special_tokens=False), model.config.eos_token_id]
    logits = model(torch.tensor([prompt + answer]), logits_to_keep=len(answer) + 1).logits[0, :-1]
    matches = "".join(map(str, (logits.argmax(dim=-1) == torch.tensor(answer)).int().tolist()))
    return matches[matches.find("0") :] if "0" in matches else ""


def shares(found, num_ahead) -> torch.Tensor:
    """Share of agreement among the tokens after the first disagreement, at most so many."""
    ahead = [one["agreed"][1 : 1 + num_ahead] for one in found]
    return torch.tensor([some.count("1") / max(len(some), 1) for some in ahead])


def area(score, is_draft) -> float:
    """Area under the curve; equal scores, of which there are many, count half."""
    more = score[is_draft][:, None] - score[~is_draft]
    return float((more > 0).float().mean() + (more == 0).float().mean() / 2)


if __name__ == "__main__":
    main()
