"""Train the bundled models from scratch, evaluate them and export them.

    python tools/train_bundled.py --work-dir ../train

Four models over one tokenizer: a target on a broad mixture of tasks and a draft on more of the same
(``bundled:family``); a target on the same mixture without drills in bare equations and a draft on a
narrow mixture with them (``bundled:specialist``). The targets train one after the other in one
process, the drafts in a second one, each on a single thread, so two cores are busy; ``--model
NAME`` trains one of them alone. The same command resumes after any interruption: checkpoints are
written atomically and hold model, optimisers and the position in the data, and the data is a
function of the seeds. ``--stage export`` exports what the last checkpoints hold, also while
training runs.

Optimiser: Muon (Jordan et al., 2024; torch.optim.Muon) for the matrices inside the layers, AdamW
for the tied embedding and the norms; warm-up, constant rates, then a straight line to zero.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bundled_data import problems
from bundled_export import export_models
from bundled_models import (
    MicroBatch,
    ModelSpec,
    batches,
    collate,
    encode,
    orthogonalizing,
    teacher_forced,
    train_tokenizer,
    weighted_loss,
)
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

TUNE_SEED = 1_900_000_000  # tune-split problems watched during training


@dataclass(frozen=True, slots=True)
class TrainSpec:
    """How one model is trained."""

    model: ModelSpec
    base_seed: int
    mixture: str
    num_tokens: int
    constant_share: float = 0.6
    """Share of the token budget after which the learning rates fall to zero."""
    tokens_per_micro: int = 2_048
    num_micro: int = 2
    prompt_weight: float = 0.1
    muon_lr: float = 0.02
    adam_lr: float = 0.003
    weight_decay: float = 0.1
    """On Muon's matrices only."""
    num_warmup_steps: int = 100
    later_cycles: tuple[int, ...] = ()
    """Tokens of each further cycle: from half the peak rates in a straight line to zero."""
    is_compiled: bool = False
    """By torch.compile: half as fast again, but needs a C++ compiler."""

    @property
    def num_all_tokens(self) -> int:
        """Of all cycles."""
        return self.num_tokens + sum(self.later_cycles)

    def lr_scale(self, step: int, num_tokens: int) -> float:
        """Share of the peak learning rates at ``step``, after ``num_tokens``."""
        if num_tokens < self.num_tokens:
            left = 1 - num_tokens / self.num_tokens
            return min(1.0, (step + 1) / self.num_warmup_steps, left / (1 - self.constant_share))
        done = num_tokens - self.num_tokens
        for length in self.later_cycles:
            if done < length:
                return 0.5 * (1 - done / length)
            done -= length
        return 0.0


TARGET = ModelSpec(num_layers=12, hidden_size=192, intermediate_size=448, num_heads=3, init_seed=1)
DRAFT = ModelSpec(num_layers=2, hidden_size=144, intermediate_size=256, num_heads=3, init_seed=2)
MODELS = {
    "target": TrainSpec(TARGET, base_seed=1_000_000_000, mixture="broad", num_tokens=15_000_000),
    "family": TrainSpec(
        DRAFT,
        base_seed=1_300_000_000,
        mixture="broad",
        num_tokens=36_000_000,
        constant_share=0.2,
        is_compiled=True,
    ),
    "specialist": TrainSpec(
        DRAFT,
        base_seed=1_300_000_000,
        mixture="narrow",
        num_tokens=36_000_000,
        constant_share=0.2,
        is_compiled=True,
    ),
    "generalist": TrainSpec(
        TARGET,
        base_seed=1_000_000_000,
        mixture="general",
        num_tokens=12_000_000,
        constant_share=0.2,
        later_cycles=(5_000_000, 6_000_000),
        is_compiled=True,
    ),
}
LANES = (
    ("target", "generalist"),
    ("family", "specialist"),
)  # processes, and what each trains in turn


def make_optimizers(model: LlamaForCausalLM, spec: TrainSpec) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embedding and the norms."""
    layers = model.model.layers
    matrices = [weight for weight in layers.parameters() if weight.ndim == 2]
    inside = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in inside]
    return [
        torch.optim.Muon(matrices, lr=spec.muon_lr, weight_decay=spec.weight_decay),
        torch.optim.AdamW(others, lr=spec.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train_step(
    model: LlamaForCausalLM,
    optimizers: list[torch.optim.Optimizer],
    micro_batches: list[MicroBatch],
    spec: TrainSpec,
    scale: float,
) -> float:
    """One step at this share of the peak rates; returns the mean loss over weighted tokens."""
    total = sum(float(batch.weights[:, 1:].sum()) for batch in micro_batches)
    loss_sum = 0.0
    for batch in micro_batches:
        loss = weighted_loss(model, batch)
        (loss / total).backward()
        loss_sum += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer, rate in zip(optimizers, (spec.muon_lr, spec.adam_lr), strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate * scale
        with orthogonalizing():
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss_sum / total


class Learner:
    """One model in training: weights, optimisers, place in the data, and counters."""

    def __init__(self, spec: TrainSpec, tokenizer: PreTrainedTokenizerFast) -> None:
        self.spec, self.tokenizer = spec, tokenizer
        self.model = spec.model.build()
        if spec.is_compiled:
            self.model.compile(dynamic=True)
        self.optimizers = make_optimizers(self.model, spec)
        self.position, self.step, self.num_tokens = (0, 0), 0, 0
        self.stream = self._open_stream()

    def _open_stream(self) -> Any:
        spec = self.spec
        return batches(
            self.tokenizer,
            spec.mixture,
            spec.base_seed,
            start=self.position,
            tokens_per_micro=spec.tokens_per_micro,
            num_micro=spec.num_micro,
            prompt_weight=spec.prompt_weight,
        )

    @property
    def is_finished(self) -> bool:
        """Whether the token budget is spent."""
        return self.num_tokens >= self.spec.num_all_tokens

    def train_step(self) -> float:
        """One optimiser step; returns the mean loss over weighted tokens."""
        self.position, micro_batches = next(self.stream)
        self.num_tokens += sum(batch.num_tokens for batch in micro_batches)
        scale = self.spec.lr_scale(self.step, self.num_tokens)
        loss = train_step(self.model, self.optimizers, micro_batches, self.spec, scale)
        self.step += 1
        return loss

    def state(self) -> dict[str, Any]:
        """Everything that resuming needs."""
        return {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "position": self.position,
            "step": self.step,
            "num_tokens": self.num_tokens,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state`` as if nothing had happened."""
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.position = tuple(state["position"])
        self.step, self.num_tokens = state["step"], state["num_tokens"]
        self.stream = self._open_stream()


def write_atomically(path: Path, payload: dict[str, Any]) -> None:
    """Write a checkpoint so that a kill at any moment leaves the old or the new one."""
    scratch = path.with_suffix(".tmp")
    with scratch.open("wb") as file:
        torch.save(payload, file)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The shared tokenizer, trained once per work folder (the result is the same every time)."""
    if not (folder / "tokenizer_config.json").exists():
        train_tokenizer().save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def watched_batches(tokenizer: PreTrainedTokenizerFast, count: int = 160) -> list[MicroBatch]:
    """Batches of tune-split problems of the home task."""
    tune = list(problems("gsm_symbolic", TUNE_SEED, 13 * count, split="tune"))[:count]
    encoded = sorted(encode(tokenizer, tune, 0.0), key=lambda row: len(row[0]))
    return [collate(encoded[start : start + 8]) for start in range(0, len(encoded), 8)]


def train(name: str, work_dir: Path, save_every: int, watch_every: int) -> None:
    """Train the model ``name``, or go on from its last checkpoint."""
    learner = Learner(MODELS[name], load_tokenizer(work_dir / "tokenizer"))
    folder = work_dir / name
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.pt"
    seconds, curve = 0.0, []
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        learner.restore(saved["learner"])
        seconds, curve = saved["cpu_seconds"], saved["curve"]
    tune_batches = watched_batches(learner.tokenizer)

    started = time.process_time() - seconds
    losses: list[float] = []
    while not learner.is_finished:
        losses.append(learner.train_step())
        is_last = learner.is_finished
        if learner.step % 25 == 0 or is_last:
            row: dict[str, Any] = {"step": learner.step, "num_tokens": learner.num_tokens}
            row["cpu_seconds"] = round(time.process_time() - started)
            row["loss"] = round(sum(losses) / len(losses), 4)
            losses = []
            if learner.step % watch_every == 0 or is_last:
                row["tune_exact"] = round(teacher_forced(learner.model, tune_batches), 4)
            curve.append(row)
            print(json.dumps({"model": name, **row}), flush=True)
        if learner.step % save_every == 0 or is_last:
            seconds = time.process_time() - started
            state = {"learner": learner.state(), "cpu_seconds": seconds, "curve": curve}
            write_atomically(checkpoint, state)


def train_lanes(names: list[str], args: argparse.Namespace) -> None:
    """Train ``names``, each lane in a process of its own."""
    command = [sys.executable, __file__, "--stage", "train", "--work-dir", str(args.work_dir)]
    command += ["--save-every", str(args.save_every), "--watch-every", str(args.watch_every)]
    load_tokenizer(args.work_dir / "tokenizer")
    lanes = [[name for name in lane if name in names] for lane in LANES]
    workers = [subprocess.Popen([*command, "--model", *lane]) for lane in lanes if lane]
    try:
        codes = [worker.wait() for worker in workers]  # all of them, whichever fails
        if any(codes):
            raise SystemExit("a training process failed; its message is above")
    finally:
        for worker in workers:
            worker.terminate()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work-dir", type=Path, required=True, help="checkpoints go here")
    parser.add_argument("--model", choices=list(MODELS), nargs="+", help="all by default")
    parser.add_argument("--stage", choices=["all", "train", "export"], default="all")
    parser.add_argument("--out", type=Path, default=Path("src/cospec/bundled"))
    parser.add_argument("--num-eval", type=int, default=1_000, help="tune problems to evaluate on")
    parser.add_argument("--save-every", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--watch-every", type=int, default=200, help="steps between tune figures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.stage == "train" and args.model:
        for name in args.model:
            train(name, args.work_dir, args.save_every, args.watch_every)
    elif args.stage != "export":
        train_lanes(args.model or list(MODELS), args)
    if args.stage != "train":
        export_models(MODELS, args.work_dir, args.out, args.num_eval)


if __name__ == "__main__":
    main()
