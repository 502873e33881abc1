"""What an 8-bit draft costs in acceptance and saves in time, measured on the draft alone.

The texts are the target's own, stored by ``experiments/text_to_sql/collect.py``, so that no target
is loaded: a drafted token stands where the draft's choice is the next token of the text. Time is
CPU time of single-token steps on one thread, which other jobs beside disturb less than the clock.

Usage: python experiments/speed_real/draft_cost.py DRAFT DATA TEXTS --json OUT [--count 24]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from cospec.evaluation.audit.costs import num_blocks
from cospec.models.cache import CachedModel
from cospec.models.load import load_model, load_tokenizer
from cospec.models.packed import pack_weights
from cospec.models.quantized import quantize_weights
from cospec.results import Provenance, check_writable, document, write_json
from cospec.tasks import load_task

K = 4


def main() -> None:
    """Measure both kinds of weights one after the other, and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("draft", "data", "texts"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--overwrite", action="store_true")
    options = parser.parse_args()
    check_writable(options.json, options.overwrite)
    torch.set_num_threads(1)
    provenance = Provenance()
    texts = read_texts(options)
    kinds = {}
    for kind, change in (("packed", pack_weights), ("int8", quantize_weights)):
        model: Any = load_model(options.draft, dtype="float32", device="cpu").eval()
        change(model)
        kinds[kind] = measure(model, texts)
        print(kind, kinds[kind], flush=True)
        del model
    config = {"count": len(texts), "k": K}
    where = provenance.to_dict("cpu", "torch.float32")
    write_json(options.json, document("draft_cost", config, where, kinds=kinds))


def read_texts(options: argparse.Namespace) -> list[tuple[list[int], list[int]]]:
    """Return token ids of prompts and of the target's answers, those of short prompts."""
    task, tokenizer = load_task("spider", data_dir=options.data), load_tokenizer(options.draft)
    examples = {one.id: one for one in task.examples("train", 512)}
    found = []
    for path in sorted(options.texts.glob("train-*.jsonl")):
        for row in map(json.loads, path.read_text().splitlines()):
            if row["id"] in examples:
                prompt = task.prompt(examples[row["id"]], tokenizer)
                assert isinstance(prompt, list), "the draft has a chat template"
                text = tokenizer(row["text"], add_special_tokens=False)["input_ids"]
                found.append((prompt, [*text, tokenizer.eos_token_id]))
    return sorted(found, key=lambda pair: len(pair[0]))[: options.count]


@torch.inference_mode()
def measure(model: Any, texts: list[tuple[list[int], list[int]]]) -> dict[str, float]:
    """Read each answer token by token, as drafting does, and compare the choices with it."""
    accepted, times = [], []
    for prompt, answer in texts:
        cached = CachedModel(model)
        cached.reserve(1, len(prompt) + len(answer))
        cached.prefill([prompt[:-1]], 0)
        ids = prompt[-1:] + answer[:-1]
        digits = ""
        for i, (token, expected) in enumerate(zip(ids, answer, strict=True)):
            starts = torch.tensor([len(prompt) - 1 + i])
            start = time.process_time()
            window = cached.window(starts, 1, len(prompt) + i)
            logits = cached.read(torch.tensor([[token]]), window).logits
            times.append(time.process_time() - start)
            digits += str(int(int(logits[0, -1].argmax()) == expected))
        accepted.append(digits)
    num_tokens = sum(map(len, accepted))
    return {
        "num_tokens": num_tokens,
        "accepted_share": sum(digits.count("1") for digits in accepted) / num_tokens,
        f"mean_acceptance_length_k{K}": num_tokens / sum(num_blocks(one, K) for one in accepted),
        "step_cpu_ms": 1e3 * statistics.median(times),
    }


if __name__ == "__main__":
    main()
