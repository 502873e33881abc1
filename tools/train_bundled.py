"""Train the models of a bundled pair from scratch, evaluate them and export them.

    python tools/train_bundled.py --pair family --work-dir ../train

The same command resumes after any interruption: checkpoints are written atomically and hold
models, optimisers and the position in the data, and the data is a function of the seeds.
``--stage export`` exports what the last checkpoint holds, also while training runs. Target and
draft take turns, a step each, in one process on one thread; each follows its own data stream.

Optimiser: Muon (Jordan et al., 2024; torch.optim.Muon) for the matrices inside the layers, AdamW
for the tied embedding and the norms; warm-up, then a piecewise
linear schedule over the tokens seen that ends at zero.
"""

import argparse
import itertools
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from bundled_data import problems
from bundled_export import export_pair
from bundled_models import (
    MicroBatch,
    ModelSpec,
    batches,
    collate,
    encode,
    teacher_forced,
    train_tokenizer,
    weighted_loss,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

ROLES = ("target", "draft")
TUNE_SEED = 1_900_000_000  # tune-split problems watched during training


@dataclass(frozen=True, slots=True)
class TrainSpec:
    """How one model is trained."""

    model: ModelSpec
    base_seed: int
    mixtures: tuple[tuple[int, str], ...]
    """(First chunk, mixture), in order."""
    lr_knots: tuple[tuple[int, float], ...]
    """(Tokens seen, share of the peak learning rates), joined by straight lines; ends at 0."""
    tokens_per_micro: int = 2_048
    num_micro: int = 2
    prompt_weight: float = 0.1
    muon_lr: float = 0.02
    adam_lr: float = 0.003
    num_warmup_steps: int = 100
    init_from: str = ""
    """Pair whose finished model of the same role is the starting point; empty: random weights."""

    @property
    def num_tokens(self) -> int:
        """The token budget."""
        return self.lr_knots[-1][0]

    def mixture_of(self, chunk: int) -> str:
        """The mixture that a chunk is drawn from."""
        return [name for first, name in self.mixtures if first <= chunk][-1]

    def lr_share(self, num_tokens: int) -> float:
        """Share of the peak learning rates after ``num_tokens``."""
        for (left, start), (right, end) in itertools.pairwise(self.lr_knots):
            if num_tokens < right:
                return start + (end - start) * (num_tokens - left) / (right - left)
        return self.lr_knots[-1][1]


TARGET = ModelSpec(num_layers=12, hidden_size=192, intermediate_size=448, num_heads=3, init_seed=1)
DRAFT = ModelSpec(num_layers=2, hidden_size=144, intermediate_size=352, num_heads=3, init_seed=2)
# The home task alone, until both models copy numbers; then also the bare equations inside it,
# densely from chunk 10 on, because arithmetic is what small models learn last. The learning rates
# rise once more for that: with no weight decay the weights, and so the useful steps, have grown.
FAMILY: dict[str, Any] = {
    "base_seed": 1_000_000_000,
    "mixtures": ((0, "home"), (8, "narrow"), (10, "drilled")),
    "lr_knots": (
        (0, 1.0),
        (4_800_000, 0.4),
        (6_600_000, 0.4),
        (7_000_000, 0.7),
        (9_000_000, 0.7),
        (12_000_000, 0.0),
    ),
}
PAIRS: dict[str, dict[str, TrainSpec]] = {
    "family": {"target": TrainSpec(TARGET, **FAMILY), "draft": TrainSpec(DRAFT, **FAMILY)},
    # Both go on from the family's final weights: the target on a broad mixture, the draft for twice
    # as many tokens on the home task and the arithmetic inside it.
    "specialist": {
        "target": TrainSpec(
            TARGET,
            base_seed=1_200_000_000,
            mixtures=((0, "broad"),),
            lr_knots=((0, 0.5), (2_000_000, 0.5), (4_000_000, 0.0)),
            init_from="family",
        ),
        "draft": TrainSpec(
            DRAFT,
            base_seed=1_300_000_000,
            mixtures=((0, "drilled"),),
            lr_knots=((0, 0.7), (4_000_000, 0.7), (8_000_000, 0.0)),
            init_from="family",
        ),
    },
}


class Learner:
    """One model in training: weights, optimisers, place in the data, and counters."""

    def __init__(self, spec: TrainSpec, tokenizer: PreTrainedTokenizerFast) -> None:
        self.spec, self.tokenizer = spec, tokenizer
        self.model = spec.model.build()
        layers = self.model.model.layers
        matrices = [weight for weight in layers.parameters() if weight.ndim == 2]
        inside = {id(weight) for weight in matrices}
        others = [weight for weight in self.model.parameters() if id(weight) not in inside]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=spec.muon_lr, weight_decay=0.0),
            torch.optim.AdamW(others, lr=spec.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.position, self.step, self.num_tokens = (0, 0), 0, 0
        self.stream = self._open_stream()

    def _open_stream(self) -> Any:
        spec = self.spec
        return batches(
            self.tokenizer,
            spec.mixture_of,
            spec.base_seed,
            start=self.position,
            tokens_per_micro=spec.tokens_per_micro,
            num_micro=spec.num_micro,
            prompt_weight=spec.prompt_weight,
        )

    @property
    def is_finished(self) -> bool:
        """Whether the token budget is spent."""
        return self.num_tokens >= self.spec.num_tokens

    def lr_scale(self) -> float:
        """Linear warm-up times the schedule over tokens."""
        warm = min(1.0, (self.step + 1) / self.spec.num_warmup_steps)
        return warm * self.spec.lr_share(self.num_tokens)

    def train_step(self) -> float:
        """One optimiser step; returns the mean loss over weighted tokens."""
        self.position, micro_batches = next(self.stream)
        total = sum(float(batch.weights[:, 1:].sum()) for batch in micro_batches)
        loss_sum = 0.0
        for batch in micro_batches:
            loss = weighted_loss(self.model, batch)
            (loss / total).backward()
            loss_sum += loss.item()
            self.num_tokens += batch.num_tokens
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        scale = self.lr_scale()
        for optimizer, rate in zip(
            self.optimizers, (self.spec.muon_lr, self.spec.adam_lr), strict=True
        ):
            for group in optimizer.param_groups:
                group["lr"] = rate * scale
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return loss_sum / total

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


def start_from_other_pairs(learners: dict[str, Learner], work_dir: Path) -> None:
    """Load the weights that the specs name; those of unfinished pairs are refused."""
    for role, learner in learners.items():
        if pair := learner.spec.init_from:
            checkpoint = work_dir / pair / "checkpoint.pt"
            if not checkpoint.exists():
                raise FileNotFoundError(f"{checkpoint} is missing: train --pair {pair} first")
            saved = torch.load(checkpoint, weights_only=True)[role]
            if saved["num_tokens"] < PAIRS[pair][role].num_tokens:
                raise RuntimeError(f"{checkpoint} is unfinished: resume --pair {pair} first")
            learner.model.load_state_dict(saved["model"])


def watched_batches(tokenizer: PreTrainedTokenizerFast, count: int = 160) -> list[MicroBatch]:
    """Batches of tune-split problems of the home task."""
    tune = list(problems("gsm_symbolic", TUNE_SEED, 13 * count, split="tune"))[:count]
    encoded = sorted(encode(tokenizer, tune, 0.0), key=lambda row: len(row[0]))
    return [collate(encoded[start : start + 8]) for start in range(0, len(encoded), 8)]


def progress(learners: dict[str, Learner], losses: dict[str, list[float]]) -> dict[str, Any]:
    """Tokens seen and mean loss since the last call, whose record in ``losses`` is emptied."""
    row: dict[str, Any] = {}
    for role, learner in learners.items():
        row[f"{role}_tokens"] = learner.num_tokens
        if losses[role]:
            row[f"{role}_loss"] = round(sum(losses[role]) / len(losses[role]), 4)
        losses[role] = []
    return row


def watch(learners: dict[str, Learner], rows: list[MicroBatch]) -> dict[str, float]:
    """Teacher-forced figures on a few tune problems: exact solutions, and token agreement."""
    exact, choices = {}, {}
    for role, learner in learners.items():
        exact[f"{role}_tune_exact"], choices[role] = teacher_forced(learner.model, rows)
    same, places = 0, 0
    for batch, a, b in zip(rows, choices["target"], choices["draft"], strict=True):
        is_solution = batch.weights[:, 1:] == 1
        same += int(((a == b) & is_solution).sum())
        places += int(is_solution.sum())
    figures = {**exact, "tune_agreement": same / places}
    return {name: round(value, 4) for name, value in figures.items()}


def train(pair: str, work_dir: Path, save_every: int, watch_every: int) -> None:
    """Train both models of ``pair``, or go on from the last checkpoint."""
    tokenizer = load_tokenizer(work_dir / "tokenizer")
    learners = {role: Learner(PAIRS[pair][role], tokenizer) for role in ROLES}
    folder = work_dir / pair
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.pt"
    seconds, curve = 0.0, []
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        for role in ROLES:
            learners[role].restore(saved[role])
        seconds, curve = saved["cpu_seconds"], saved["curve"]
    else:
        start_from_other_pairs(learners, work_dir)
    tune_batches = watched_batches(tokenizer)

    started = time.process_time() - seconds
    losses: dict[str, list[float]] = {role: [] for role in ROLES}
    while not all(learner.is_finished for learner in learners.values()):
        for role, learner in learners.items():
            if not learner.is_finished:
                losses[role].append(learner.train_step())
        step = max(learner.step for learner in learners.values())
        is_last = all(learner.is_finished for learner in learners.values())
        if step % 25 == 0 or is_last:
            row = {"step": step, "cpu_seconds": round(time.process_time() - started)}
            row |= progress(learners, losses)
            if step % watch_every == 0 or is_last:
                row |= watch(learners, tune_batches)
            curve.append(row)
            lines = "".join(json.dumps(entry) + "\n" for entry in curve)
            (folder / "training_curve.jsonl").write_text(lines)
            print(json.dumps(row), flush=True)
        if step % save_every == 0 or is_last:
            state: dict[str, Any] = {role: learners[role].state() for role in ROLES}
            state |= {"cpu_seconds": time.process_time() - started, "curve": curve}
            write_atomically(checkpoint, state)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pair", choices=list(PAIRS), required=True)
    parser.add_argument("--work-dir", type=Path, required=True, help="checkpoints go here")
    parser.add_argument("--stage", choices=["all", "train", "export"], default="all")
    parser.add_argument("--out", type=Path, default=Path("src/cospec/bundled"))
    parser.add_argument("--num-eval", type=int, default=1_000, help="tune problems to evaluate on")
    parser.add_argument("--save-every", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--watch-every", type=int, default=200, help="steps between tune figures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.stage in ("all", "train"):
        train(args.pair, args.work_dir, args.save_every, args.watch_every)
    if args.stage in ("all", "export"):
        specs = {
            role: {**asdict(spec), "num_tokens": spec.num_tokens}
            for role, spec in PAIRS[args.pair].items()
        }
        models = {role: PAIRS[args.pair][role].model.build() for role in ROLES}
        export_pair(args.pair, specs, models, args.work_dir, args.out / args.pair, args.num_eval)


if __name__ == "__main__":
    main()
