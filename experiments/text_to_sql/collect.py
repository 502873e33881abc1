"""Play the target's path and every branch off it on Spider questions, and keep what happened.

Usage: python experiments/text_to_sql/collect.py TARGET DRAFT DATA OUT [--split train] [--count 512]

`cospec audit` does the same and keeps features as text, which is too much for hidden states. Here a
chunk of questions makes two files: OUT/SPLIT-00000.safetensors with the features of each mismatch
in half precision, and .jsonl with texts and outcomes. A chunk that is there is skipped, so that a
run that was killed resumes.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from cospec import Engine, ModelPair, SamplingConfig
from cospec.arbiters import AlwaysTarget
from cospec.arbiters.observed import Observed
from cospec.engine import Branch
from cospec.evaluation.audit.auditor import reached
from cospec.features import make_features
from cospec.tasks import load_task


def main() -> None:
    """Collect chunk by chunk."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("target", "draft", "data", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--split", default="train", choices=["train", "tune"])
    parser.add_argument("--count", type=int, default=512, help="questions")
    parser.add_argument("--chunk", type=int, default=64, help="questions decoded together")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-k", type=int, default=4)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    task = load_task("spider", data_dir=options.data)
    examples = task.examples(options.split, options.count)
    pair = ModelPair.from_pretrained(options.target, options.draft, dtype=options.dtype)
    features = make_features("hidden", pair)
    is_kept = torch.tensor(["embedding" not in name for name in features.names])
    observed = Observed(AlwaysTarget(), features)
    paths = Engine(pair, observed, num_speculative_tokens=options.k, batch_size=options.chunk)
    target, draft = (
        make(pair, batch_size=options.chunk) for make in (Engine.target_only, Engine.draft_only)
    )
    options.out.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(examples), options.chunk):
        stem = options.out / f"{options.split}-{start:05d}"
        if not stem.with_suffix(".safetensors").exists():
            some = examples[start : start + options.chunk]
            print(start, collect(pair, task, some, paths, target, draft, is_kept, stem), flush=True)


def collect(pair, task, examples, paths, target, draft, is_kept, stem) -> str:
    """Play some questions, write their files, and say what was found."""
    started = time.perf_counter()
    prompts = [task.prompt(example, pair.tokenizer) for example in examples]
    sampling = SamplingConfig(max_new_tokens=task.max_new_tokens)
    texts = paths.rollouts(prompts, sampling)
    places = [
        (i, m)
        for i, text in enumerate(texts)
        for m in reached(text.completion)
        if not {m.draft_id, m.target_id} & pair.eos_token_ids
    ]
    # After a branch the lossless arbiter is the target alone, which is cheaper in large batches.
    ends = target.branches([Branch(texts[i], m.position, m.draft_id) for i, m in places])
    drafts = draft.generate(prompts, sampling)
    right, draft_right, branch_right = (
        [task.score(example, c.text).correct for example, c in zip(some, done, strict=True)]
        for some, done in (
            (examples, [text.completion for text in texts]),
            (examples, drafts),
            ([examples[i] for i, _ in places], [end.completion for end in ends]),
        )
    )
    rows = [
        {
            "id": example.id,
            "correct": right[i],
            "draft_correct": draft_right[i],
            "text": texts[i].completion.text,
            "draft_text": drafts[i].text,
            "branches": [
                {"position": m.position, "draft_id": m.draft_id, "target_id": m.target_id}
                | {"correct": ok, "text": end.completion.text}
                for (j, m), end, ok in zip(places, ends, branch_right, strict=True)
                if j == i
            ],
        }
        for i, example in enumerate(examples)
    ]
    stem.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tensors = {
        "features": torch.stack([m.features[is_kept] for _, m in places]).half(),
        "problem": torch.tensor([i for i, _ in places]),
        "draft_correct": torch.tensor(branch_right),
        "target_correct": torch.tensor([right[i] for i, _ in places]),
    }
    save_file(tensors, stem.with_suffix(".safetensors"))
    outcomes = list(zip(branch_right, (right[i] for i, _ in places), strict=True))
    return (
        f"of {len(examples)}: target right {sum(right)}, draft {sum(draft_right)}; "
        f"{len(places)} branches, only draft right {sum(d and not t for d, t in outcomes)}, "
        f"only target {sum(t and not d for d, t in outcomes)}; "
        f"{time.perf_counter() - started:.0f} s"
    )


if __name__ == "__main__":
    main()
