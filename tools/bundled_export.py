"""Export of the trained models: bf16 weights, figures on the tune split, model card, checksums.

Knows what the shipped folder holds and how its figures are measured. Everything is measured on the
exported files, reloaded: bf16-rounded weights, computed in float32, one thread.
"""

import hashlib
import json
import math
import platform
import shutil
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from bundled_card import write_card
from bundled_data import CHUNK_SIZE, MIXTURES, Problem, problems
from bundled_models import encode
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from cospec.models.bundled import BUNDLED_PAIRS
from cospec.tasks import load_task
from cospec.tasks.base import Example
from cospec.tasks.jsonl import score_exact
from cospec.tasks.math_sets import score_number

if TYPE_CHECKING:
    from train_bundled import TrainSpec

HOME_TASK = "gsm_symbolic"
EVAL_SEED = 1_950_000_000  # tune-split problems that the figures of the card are measured on
DEMO_SEED = 20_261  # test-split problems of problems.jsonl: for the demo and the vLLM comparison
NUM_DEMO_PROBLEMS = 400
NUM_TASK_PROBLEMS = 100  # of each task besides the home task
MAX_NEW_TOKENS = 320
BATCH_SIZE = 32

Figures = dict[str, Any]  # as in figures.json


def export_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write one model folder that the Auto classes load, weights in bfloat16."""
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


def tune_problems(task: str, count: int) -> list[Problem]:
    """The first ``count`` different tune-split problems of the evaluation seed (or all)."""
    found: dict[str, Problem] = {}
    for row in problems(task, EVAL_SEED, 50 * count, "tune"):
        found[row.question] = row
        if len(found) == count:
            break
    return list(found.values())


@torch.no_grad()
def solve(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list[Problem], label: str
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
            outputs[index] = [token for token in ids.tolist() if token != tokenizer.pad_token_id]
        print(f"{label}: {len(outputs)} of {len(rows)} problems", flush=True)
    return [outputs[index] for index in range(len(rows))]


def grade(
    task: str, tokenizer: PreTrainedTokenizerFast, rows: list[Problem], outputs: list[list[int]]
) -> list[bool]:
    """Which outputs are right: by value for the home task, by the exact answer for the others."""
    score = score_number if task == HOME_TASK else score_exact
    texts = tokenizer.batch_decode(outputs, skip_special_tokens=True)
    return [
        score(Example("", row.question, row.answer), text).correct
        for row, text in zip(rows, texts, strict=True)
    ]


def accuracy(right: list[bool]) -> Figures:
    """The share that is right, with its 95 % Wilson interval."""
    z, count = 1.96, len(right)
    share = sum(right) / count
    middle = share + z * z / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    low, high = (end / (1 + z * z / count) for end in (middle - half, middle + half))
    interval = [max(low, 0.0), min(high, 1.0)]  # rounding can step over the ends
    return {"num_right": sum(right), "accuracy": share, "accuracy_ci95": interval}


@torch.no_grad()
def agreement(
    draft: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rows: list[Problem],
    outputs: list[list[int]],
) -> Figures:
    """Share of the positions of the target's greedy path at which the draft's argmax is its."""
    same, places = 0, 0
    for row, output in zip(rows, outputs, strict=True):
        prompt = tokenizer(row.prompt).input_ids
        logits = draft(input_ids=torch.tensor([prompt + output])).logits[0]  # (T, V)
        choice = logits[len(prompt) - 1 : -1].argmax(-1)
        same += int((choice == torch.tensor(output)).sum())
        places += len(output)
    return {"agreement": same / places, "num_positions": places}


@torch.no_grad()
def step_times(
    models: dict[str, LlamaForCausalLM], ids: Tensor, num_trials: int = 60
) -> dict[str, float]:
    """Median milliseconds of a single-token step after ``ids`` (1, T), the models taking turns."""
    caches = {
        name: model(input_ids=ids, use_cache=True).past_key_values for name, model in models.items()
    }
    trials: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(num_trials):
        for name, model in models.items():
            started = time.perf_counter()
            model(input_ids=ids[:, -1:], past_key_values=caches[name], use_cache=True)
            trials[name].append(1_000 * (time.perf_counter() - started))
    return {name: median(times) for name, times in trials.items()}


def measure(out: Path, names: list[str], num_problems: int) -> Figures:
    """Figures of the exported models and of the pairs they make, on the tune split."""
    tokenizer = AutoTokenizer.from_pretrained(out / names[0])
    models = {
        name: AutoModelForCausalLM.from_pretrained(out / name, dtype=torch.float32).eval()
        for name in names
    }
    rows = tune_problems(HOME_TASK, num_problems)
    outputs = {name: solve(model, tokenizer, rows, name) for name, model in models.items()}
    right = {name: grade(HOME_TASK, tokenizer, rows, outputs[name]) for name in models}
    sample = torch.tensor([(tokenizer(rows[0].prompt).input_ids * 4)[:200]])
    step_ms = step_times(models, sample)
    pairs = {}
    for pair, (target, draft) in BUNDLED_PAIRS.items():
        if not {target, draft} <= models.keys():
            continue
        both = list(zip(right[target], right[draft], strict=True))
        pairs[f"bundled:{pair}"] = {
            "only_target_right": both.count((True, False)),
            "only_draft_right": both.count((False, True)),
            "both_right": both.count((True, True)),
            **agreement(models[draft], tokenizer, rows, outputs[target]),
            "step_ratio": step_ms[draft] / step_ms[target],
        }
    return {
        "seed": EVAL_SEED,
        "num_problems": len(rows),
        "models": {name: accuracy(right[name]) | {"step_ms": step_ms[name]} for name in models},
        "pairs": pairs,
        "tasks": measure_tasks(models, tokenizer, min(num_problems, NUM_TASK_PROBLEMS)),
    }


def measure_tasks(
    models: dict[str, LlamaForCausalLM], tokenizer: PreTrainedTokenizerFast, num_problems: int
) -> dict[str, Figures]:
    """Share of right answers of each model on the other tasks of the broad mixture."""
    found = {}
    for task in [name for name in MIXTURES["broad"] if name not in (HOME_TASK, "gsm_drill")]:
        rows = tune_problems(task, num_problems)
        found[task] = {"num_problems": len(rows)}
        for name, model in models.items():
            outputs = solve(model, tokenizer, rows, f"{name}, {task}")
            found[task][name] = sum(grade(task, tokenizer, rows, outputs)) / len(rows)
    return found


def token_shares(mixture: str, base_seed: int, tokenizer: PreTrainedTokenizerFast) -> Figures:
    """Each task's share of a mixture's tokens, from a tenth of the first chunk."""
    counts = {}
    for task, share in MIXTURES[mixture].items():
        rows = list(problems(task, base_seed, round(share * CHUNK_SIZE / 10)))
        counts[task] = sum(len(ids) for ids, _ in encode(tokenizer, rows, 0.0))
    return {task: count / sum(counts.values()) for task, count in counts.items()}


def write_problems(path: Path) -> None:
    """Test-split problems of the home task, for the demo."""
    task = load_task(f"reasoning_gym:{HOME_TASK}")
    lines = [
        json.dumps({"id": row.id, "question": row.question, "answer": row.answer}) + "\n"
        for row in task.examples("test", NUM_DEMO_PROBLEMS, seed=DEMO_SEED)
    ]
    path.write_text("".join(lines))


def write_checksums(folder: Path) -> None:
    """SHA256SUMS over every other file of the folder, as ``sha256sum --check`` reads it."""
    lines = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "SHA256SUMS":
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            lines.append(f"{digest}  {path.relative_to(folder).as_posix()}\n")
    (folder / "SHA256SUMS").write_text("".join(lines))


def export_checkpoint(
    spec: "TrainSpec", work_dir: Path, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> Figures:
    """Export the model of the last checkpoint in ``work_dir``; returns how far its training is."""
    saved = torch.load(work_dir / "checkpoint.pt", weights_only=True)
    model = spec.model.build()
    weights = saved["learner"]["model"]
    model.load_state_dict({k.removeprefix("_orig_mod."): v for k, v in weights.items()})
    export_model(model, tokenizer, folder)
    curve = "".join(json.dumps(row) + "\n" for row in saved["curve"])
    (folder.parent / f"training_curve_{folder.name}.jsonl").write_text(curve)
    return {
        "num_parameters": model.num_parameters(),
        "num_tokens": saved["learner"]["num_tokens"],
        "num_steps": saved["learner"]["step"],
        "num_chunks": saved["learner"]["position"][0] + 1,
        "cpu_hours": saved["cpu_seconds"] / 3600,
    }


def export_models(specs: dict[str, "TrainSpec"], work_dir: Path, out: Path, num_eval: int) -> None:
    """Export every model that has a checkpoint to ``out``, with figures unless num_eval is 0.

    Models without one stay as an earlier export left them, with its figures if these are of as many
    problems.
    """
    new = [name for name in specs if (work_dir / name / "checkpoint.pt").exists()]
    if not new:
        raise SystemExit(f"{work_dir} holds no checkpoint of {', '.join(specs)}; train first")
    old: Figures = {}
    if len(new) < len(specs) and (out / "figures.json").exists():
        old = json.loads((out / "figures.json").read_text())
    for name in new:
        shutil.rmtree(out / name, ignore_errors=True)
    tokenizer = AutoTokenizer.from_pretrained(work_dir / "tokenizer")
    training = old.get("training", {}) | {
        name: export_checkpoint(specs[name], work_dir / name, tokenizer, out / name) for name in new
    }
    names = [name for name in specs if name in training]
    libraries = ("torch", "transformers", "tokenizers", "reasoning-gym")
    mixtures = {specs[name].mixture: specs[name].base_seed for name in names}
    figures = {
        "versions": {"python": platform.python_version()} | {n: version(n) for n in libraries},
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "training": {name: training[name] for name in names},
        "token_shares": {m: token_shares(m, seed, tokenizer) for m, seed in mixtures.items()},
    }
    if num_eval:
        if old.get("num_problems") != num_eval:
            old = {}
        pairs = [pair for pair in BUNDLED_PAIRS.values() if set(pair) & set(new)]
        touched = {name for pair in pairs for name in pair} if old else set(names)
        figures |= _joined(old, measure(out, [n for n in names if n in touched], num_eval))
    (out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    write_problems(out / "problems.jsonl")
    write_card(specs, figures, out / "README.md")
    write_checksums(out)


def _joined(old: Figures, new: Figures) -> Figures:
    """New figures, and the old ones of what was not measured again."""
    if not old:
        return new
    joined = {key: old[key] | new[key] for key in ("models", "pairs")}
    tasks = {task: old["tasks"][task] | row for task, row in new["tasks"].items()}
    return new | joined | {"tasks": tasks}
