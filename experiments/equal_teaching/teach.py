"""Train a bundled model further on the worked solutions that an arbiter learns from.

    python experiments/equal_teaching/teach.py bundled:family target OUT --tiers 10

The solutions are those of `experiments/heldout_templates/heldout.py`: ``--tiers`` and ``--fold``
mean the same, and without ``--fold`` they are of all templates. With ``--others`` there are
solutions of the four tasks of `other_tasks.py` as well, written as for the models when they were
made. Optimisers, loss and batches are
those that the models were made with (`tools/train_bundled.py`), at a share of the peak rates
(``--rate``) that falls to zero in a straight line. OUT becomes a model folder, in float32, with a
``taught.json`` beside the weights: the losses, the cost, and the accuracy on tune problems. A run
that was killed resumes from OUT/steps.pt, which has the state of every fiftieth step.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM

from cospec.engine import Engine
from cospec.evaluation.problems import encode_problems
from cospec.models import ModelPair
from cospec.models.bundled import bundled_models
from cospec.results import write_json
from cospec.rl.solutions import encode_solutions
from cospec.tasks import load_task

REPOSITORY = Path(__file__).parents[2]
sys.path[:0] = [str(REPOSITORY / "tools"), str(REPOSITORY / "experiments" / "heldout_templates")]

from bundled_data import WRITERS  # noqa: E402
from bundled_models import collate, grouped, has_bfloat16  # noqa: E402
from heldout import SOLUTION_SEED, TIER, parts_of, task_of  # noqa: E402
from other_tasks import TASKS as OTHERS  # noqa: E402
from train_bundled import TARGET, TrainSpec, make_optimizers, train_step  # noqa: E402

Row = tuple[list[int], list[float]]

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

    from cospec.tasks import Example, Task

SPEC = TrainSpec(TARGET, base_seed=0, mixture="", num_tokens=0)
"""Rates, loss weights and batch sizes of the bundled models; the rest of it is not used."""
NUM_WARMUP_STEPS = 20
TUNE_SEED = 96


def solved_problems(fold: int | None, num_tiers: int) -> list[Example]:
    """The problems whose solutions the arbiters of a fold (None: of ``seen``) learn from."""
    found = []
    for each in sorted({each for each, _ in parts_of(fold, num_tiers)}):
        solved = task_of(each, held_out=True).examples("train", num_tiers * TIER, SOLUTION_SEED)
        for part, tier in parts_of(fold, num_tiers):
            if part == each:
                found += solved[tier * TIER : (tier + 1) * TIER]
    return found


def solved_others(name: str, count: int) -> list[Example]:
    """Problems of another task with their worked solutions; the few without one are left out."""
    found = []
    for example in load_task(f"reasoning_gym:{name}").examples("train", count, SOLUTION_SEED):
        item = {"metadata": example.metadata, "answer": example.answer}
        if solution := WRITERS[name](item):
            found.append(replace(example, metadata={"solution": solution}))
    return found


def rows_of(pair: ModelPair, task: Task, examples: list[Example]) -> list[Row]:
    """Ids and loss weights of each solution after its prompt."""
    return [
        (s.ids, [SPEC.prompt_weight] * s.num_prompt_tokens + [1.0] * len(s.rest[1:]))
        for s in encode_solutions(pair, task, examples)
    ]


def teach(
    model: PreTrainedModel, rows: list[Row], args: argparse.Namespace
) -> tuple[list[float], float]:
    """Train on the rows; returns the mean loss of each tenth of the steps, and CPU seconds."""
    optimizers = make_optimizers(model, SPEC)
    losses, seconds = resumed(model, optimizers, args)
    num_done, started = len(losses), time.process_time() - seconds
    model.compile(dynamic=True)
    groups, random = grouped(rows, SPEC.tokens_per_micro), Random(args.seed)
    num_epoch_steps = -(-len(groups) // SPEC.num_micro)
    num_steps = args.epochs * num_epoch_steps
    for step in range(num_steps):
        place = step % num_epoch_steps * SPEC.num_micro
        if not place:  # also of the epochs that were taken before, for the same order
            random.shuffle(groups)
        if step < num_done:
            continue
        batches = [collate(group) for group in groups[place : place + SPEC.num_micro]]
        scale = args.rate * min((step + 1) / NUM_WARMUP_STEPS, 1 - step / num_steps)
        losses.append(train_step(model, optimizers, batches, SPEC, scale))
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}/{num_steps}, loss {sum(losses[-50:]) / 50:.4f}", flush=True)
            keep(model, optimizers, args, losses, time.process_time() - started)
    cuts = [num_steps * part // 10 for part in range(11)]
    means = [sum(losses[a:b]) / max(1, b - a) for a, b in pairwise(cuts)]
    return means, time.process_time() - started


def keep(
    model: PreTrainedModel,
    optimizers: Sequence[torch.optim.Optimizer],
    args: argparse.Namespace,
    losses: list[float],
    seconds: float,
) -> None:
    """Write the state of a run, in place of the last one once it is whole."""
    state = {
        "settings": settings(args),
        "model": model.state_dict(),
        "optimizers": [one.state_dict() for one in optimizers],
        "losses": losses,
        "seconds": seconds,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    torch.save(state, args.out / "steps.part")
    (args.out / "steps.part").replace(args.out / "steps.pt")


def resumed(
    model: PreTrainedModel, optimizers: Sequence[torch.optim.Optimizer], args: argparse.Namespace
) -> tuple[list[float], float]:
    """Load the state of a run that was killed; returns the losses so far and their CPU seconds."""
    path = args.out / "steps.pt"
    if not path.exists():
        return [], 0.0
    state = torch.load(path)
    if state["settings"] != settings(args):
        raise SystemExit(f"{path} is of {state['settings']}; name another OUT, or delete it.")
    model.load_state_dict(state["model"])
    for optimizer, one in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(one)
    print(f"resuming after step {len(state['losses'])}", flush=True)
    return state["losses"], state["seconds"]


def settings(args: argparse.Namespace) -> dict[str, object]:
    """Return what a run's steps depend on."""
    names = ("pair", "model", "tiers", "fold", "others", "rate", "epochs", "seed")
    return {name: getattr(args, name) for name in names}


def accuracy(pair: ModelPair, which: str, fold: int | None, count: int) -> float:
    """Share of tune problems, of the templates taught, that the model solves greedily."""
    task = task_of(fold)
    examples = task.examples("tune", count, TUNE_SEED)
    alone = {"target": Engine.target_only, "draft": Engine.draft_only}[which]
    prompts, samplings = encode_problems(pair, task, examples)
    done = alone(pair, batch_size=100).generate(prompts, samplings)
    scores = (task.score(e, c.text).correct for e, c in zip(examples, done, strict=True))
    return sum(scores) / count


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pair", choices=["bundled:family", "bundled:specialist"])
    parser.add_argument("model", choices=["target", "draft"])
    parser.add_argument("out", type=Path, help="folder of the model; a finished one is kept")
    parser.add_argument("--tiers", type=int, default=5, help="200 solutions of each fold")
    parser.add_argument("--fold", type=int, help="whose templates are left out")
    parser.add_argument("--others", type=int, default=0, help="solutions of each other task")
    parser.add_argument("--rate", type=float, default=0.1, help="share of the peak learning rates")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the order of the batches")
    parser.add_argument("--num-tune", type=int, default=500)
    args = parser.parse_args()
    if (args.out / "taught.json").exists():
        print(f"{args.out} is finished")
        return
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    pair = ModelPair.from_pretrained(args.pair)
    folders = dict(zip(("target", "draft"), bundled_models(args.pair), strict=True))
    model = AutoModelForCausalLM.from_pretrained(
        folders[args.model], dtype=torch.float32, attn_implementation="eager"
    )  # eager attention is faster on short rows
    before = accuracy(pair, args.model, args.fold, args.num_tune)
    rows = rows_of(pair, task_of(None), solved_problems(args.fold, args.tiers))
    for name in OTHERS if args.others else ():
        task = load_task(f"reasoning_gym:{name}")
        rows += rows_of(pair, task, solved_others(name, args.others))
    losses, seconds = teach(model, rows, args)
    model.set_attn_implementation("sdpa")
    model.save_pretrained(args.out)
    pair.tokenizer.save_pretrained(args.out)
    taught = ModelPair.from_pretrained(**folders | {args.model: args.out}, dtype="float32")
    about = {
        **{name: value for name, value in settings(args).items() if name != "tiers"},
        "bfloat16_products": has_bfloat16(),
        "num_solutions": len(rows),
        "num_tokens": args.epochs * sum(len(ids) for ids, _ in rows),
        "cpu_seconds": round(seconds),
        "losses": losses,
        "num_tune": args.num_tune,
        "tune_accuracy_before": before,
        "tune_accuracy": accuracy(taught, args.model, args.fold, args.num_tune),
    }
    write_json(args.out / "taught.json", about)
    (args.out / "steps.pt").unlink(missing_ok=True)
    print(f"{args.out}: tune {before:.1%} -> {about['tune_accuracy']:.1%}, {seconds:.0f} CPU s")


if __name__ == "__main__":
    main()
