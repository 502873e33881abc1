"""Export of a trained pair: bf16 weights, figures on the tune split, model card, checksums.

Knows what a shipped folder holds and how its figures are measured. Everything is measured on the
exported files, reloaded: bf16-rounded weights, computed in float32, one thread.
"""

import hashlib
import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from bundled_card import Figures, write_card
from bundled_data import Problem, is_right, problems
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)

EVAL_SEED = 1_950_000_000  # tune-split problems that the figures of the card are measured on
MAX_NEW_TOKENS = 256
BATCH_SIZE = 32


def export_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write one model folder that the Auto classes load, weights in bfloat16."""
    if folder.exists():
        shutil.rmtree(folder)
    model.config.architectures = ["LlamaForCausalLM"]
    model.set_attn_implementation("sdpa")  # what training used is not the user's business
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # it is written for its owner alone
    tokenizer.save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    values = json.loads(settings.read_text())
    values["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name that transformers 4 knows too
    settings.write_text(json.dumps(values, indent=2) + "\n")


def tune_problems(count: int) -> list[Problem]:
    """The first ``count`` distinct tune-split problems of the evaluation seed."""
    found = {row.question: row for row in problems("gsm_symbolic", EVAL_SEED, 12 * count, "tune")}
    return list(found.values())[:count]


@torch.no_grad()
def solve(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, rows: list[Problem]
) -> list[list[int]]:
    """Greedy completions (ids without padding, with the final eos) in the order of ``rows``."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].prompt))
    outputs: dict[int, list[int]] = {}
    for start in range(0, len(order), BATCH_SIZE):
        chosen = order[start : start + BATCH_SIZE]
        inputs = tokenizer(
            [rows[index].prompt for index in chosen], return_tensors="pt", padding=True
        )
        inputs.pop("token_type_ids", None)
        room = model.config.max_position_embeddings - inputs["input_ids"].shape[1]
        generated = model.generate(**inputs, max_new_tokens=min(MAX_NEW_TOKENS, room))
        for index, ids in zip(chosen, generated[:, inputs["input_ids"].shape[1] :], strict=True):
            kept = [token for token in ids.tolist() if token != tokenizer.pad_token_id]
            outputs[index] = kept
    return [outputs[index] for index in range(len(rows))]


@torch.no_grad()
def agreement(
    draft: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[Problem],
    outputs: list[list[int]],
) -> tuple[int, int]:
    """(agreeing, all) positions of the target's greedy path at which the draft's argmax is it."""
    same, places = 0, 0
    for row, output in zip(rows, outputs, strict=True):
        prompt = tokenizer(row.prompt).input_ids
        logits = draft(input_ids=torch.tensor([prompt + output])).logits[0]  # (T, V)
        choice = logits[len(prompt) - 1 : -1].argmax(-1)
        same += int((choice == torch.tensor(output)).sum())
        places += len(output)
    return same, places


@torch.no_grad()
def step_times(models: list[LlamaForCausalLM], ids: Tensor, num_trials: int = 60) -> list[float]:
    """Median milliseconds of a single-token step after ``ids`` (1, T), the models taking turns."""
    caches = [model(input_ids=ids, use_cache=True).past_key_values for model in models]
    trials: list[list[float]] = [[] for _ in models]
    for _ in range(num_trials):
        for model, cache, times in zip(models, caches, trials, strict=True):
            started = time.perf_counter()
            model(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True)
            times.append(1_000 * (time.perf_counter() - started))
    return [median(times) for times in trials]


def measure(folder: Path, num_problems: int) -> Figures:
    """Figures of the exported pair in ``folder`` on the tune split."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "target")
    target, draft = (
        AutoModelForCausalLM.from_pretrained(folder / role, dtype=torch.float32).eval()
        for role in ("target", "draft")
    )
    rows = tune_problems(num_problems)
    outputs = {"target": solve(target, tokenizer, rows), "draft": solve(draft, tokenizer, rows)}
    right = {
        role: [
            is_right(tokenizer.decode(ids, skip_special_tokens=True), row.answer)
            for ids, row in zip(outputs[role], rows, strict=True)
        ]
        for role in outputs
    }
    pairs = list(zip(right["target"], right["draft"], strict=True))
    same, places = agreement(draft, tokenizer, rows, outputs["target"])
    sample = torch.tensor([(tokenizer(rows[0].prompt).input_ids * 4)[:200]])
    target_ms, draft_ms = step_times([target, draft], sample)
    return Figures(
        num_problems=len(rows),
        target_accuracy=sum(right["target"]) / len(rows),
        draft_accuracy=sum(right["draft"]) / len(rows),
        only_target_right=pairs.count((True, False)),
        only_draft_right=pairs.count((False, True)),
        agreement=same / places,
        num_positions=places,
        target_step_ms=target_ms,
        draft_step_ms=draft_ms,
    )


def write_checksums(folder: Path) -> None:
    """SHA256SUMS over every other file of the folder, as ``sha256sum --check`` reads it."""
    lines = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "SHA256SUMS":
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            lines.append(f"{digest}  {path.relative_to(folder).as_posix()}\n")
    (folder / "SHA256SUMS").write_text("".join(lines))


def export_pair(
    pair: str,
    specs: dict[str, dict[str, Any]],
    models: dict[str, LlamaForCausalLM],
    work_dir: Path,
    out: Path,
    num_eval: int,
) -> None:
    """Export the last checkpoint of ``pair`` to ``out``, with figures unless num_eval is 0."""
    saved = torch.load(work_dir / pair / "checkpoint.pt", weights_only=True)
    tokenizer = AutoTokenizer.from_pretrained(work_dir / "tokenizer")
    for role, model in models.items():
        model.load_state_dict(saved[role]["model"])
        export_model(model, tokenizer, out / role)
    curve = "".join(json.dumps(row) + "\n" for row in saved["curve"])
    (out / "training_curve.jsonl").write_text(curve)
    figures = measure(out, num_eval) if num_eval else None
    if figures:
        (out / "figures.json").write_text(json.dumps(asdict(figures), indent=2) + "\n")
        print(json.dumps(asdict(figures)))
    sizes = {role: sum(w.numel() for w in model.parameters()) for role, model in models.items()}
    write_card(pair, specs, sizes, saved, figures, out)
    write_checksums(out)
