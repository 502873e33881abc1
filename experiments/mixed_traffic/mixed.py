"""Gather the answers of a pair in mixed traffic; `experiments/readme.py` makes the table from them.

    python experiments/mixed_traffic/mixed.py limit TARGET DRAFT ARBITER OUT
    python experiments/mixed_traffic/mixed.py rounds TARGET DRAFT ARBITER OUT
    python experiments/mixed_traffic/mixed.py gather FOLDER
    python experiments/mixed_traffic/mixed.py gather_mixture FOLDER

``limit`` copies an arbiter that was trained on `gsm_symbolic` to OUT with the limit on mismatches
that ``cospec train`` would have given it. ``rounds`` trains it further on the mixture. FOLDER holds
the evaluations that `run.sh` makes: for each task, TASK.json (the pair) and, for `gsm_symbolic`,
taught.json (the taught target alone). The taught target's answers to the other tasks are those of
`experiments/equal_teaching`. ``gather_mixture`` does the same for models that were taught all five
tasks: TASK.json is of the pair with the taught draft, taught_TASK.json of the taught target.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from cospec.arbiters.learned import LearnedArbiter
from cospec.backends.engine import EngineBackend
from cospec.cli.common.options import set_threads
from cospec.evaluation.stats import accuracy_delta_interval, mcnemar_p
from cospec.models import ModelPair
from cospec.results import read_text
from cospec.rl.config import (
    EvaluationConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RolloutConfig,
    TrainConfig,
    WarmupConfig,
)
from cospec.rl.trainer import Trainer
from cospec.tasks import load_task

sys.path.append(str(Path(__file__).parents[1] / "equal_teaching"))

from other_tasks import RESULT as TAUGHT_ELSEWHERE
from other_tasks import TASKS as OTHERS
from other_tasks import bits

if TYPE_CHECKING:
    from collections.abc import Sequence

RESULT = Path(__file__).parent / "mixed_traffic.json.gz"
MIXTURE_RESULT = Path(__file__).parent / "mixture_taught.json.gz"
HOME = "gsm_symbolic"
LABELS = {
    "target": "target",
    "draft": "taught draft alone",
    "rule": "pair, best rule on the mixture",
    "solutions": "pair, arbiter that read 8,000 solutions of `gsm_symbolic`",
    "solutions_limited": "the same, with its limit on mismatches",
    "scalar": "pair, arbiter trained on the mixture, scalars",
    "hidden": "pair, arbiter trained on the mixture, hidden states",
    "one_step": "pair, arbiter of the 8,000 solutions, then trained on the mixture",
    "taught": "taught target alone",
}
ROUTED = {
    "router: taught target at home, target elsewhere": ("taught", "target"),
    "router: arbiter of the 8,000 solutions at home, target elsewhere": ("solutions", "target"),
}
"""Arms that send each prompt by its task: to one arm at home, and to another elsewhere."""
MIXTURE_LABELS = {
    "target": "target",
    "draft": "taught draft alone",
    "rule": "pair, best rule on the mixture",
    "one_step": "pair, arbiter trained on the mixture by `one_step`, scalars",
    "scalar": "pair, arbiter trained on the mixture by `rl`, scalars",
    "taught": "taught target alone",
}

ARMS = tuple(LABELS)

Json = dict[str, Any]


def trainer_of(args: argparse.Namespace, task_name: str, config: TrainConfig) -> Trainer:
    """A trainer whose policy is that of an arbiter with hidden states."""
    set_threads(1)
    pair = ModelPair.from_pretrained(str(args.target), str(args.draft), dtype="float32")
    policy = LearnedArbiter.load(args.arbiter, pair, threshold=0.5).policy
    config = replace(
        config,
        features="hidden",
        policy=replace(policy.config, correction=False),
        rollouts=RolloutConfig(num_speculative_tokens=16),
        warmup=WarmupConfig(num_solutions=1),  # they were read before
    )
    task = load_task(task_name)
    train = task.examples(
        "train", config.num_rounds * config.rollouts.prompts_per_round, config.seed
    )
    tune = task.examples("tune", config.evaluation.num_tune, config.seed)
    backend = EngineBackend(pair, config.rollouts)
    trainer = Trainer(pair, backend, task, config, train, tune, Path(f"{args.out}-state"))
    if not trainer.state.best:  # a correction that had no rounds is 0
        weights = {k: v for k, v in policy.state_dict().items() if not k.startswith("correction")}
        trainer.state.policy.load_state_dict(weights)
        trainer.state.start.load_state_dict(weights)
        trainer.keep(trainer.evaluate() | {"round": 0}, print)
    return trainer


def limit(args: argparse.Namespace) -> None:
    """Give an arbiter of `gsm_symbolic` its limit, from tune problems of that task."""
    trainer = trainer_of(args, f"reasoning_gym:{HOME}", TrainConfig())
    replace(trainer.take_best(), prompt_guard=None).save(args.out)


def rounds(args: argparse.Namespace) -> None:
    """Train an arbiter of `gsm_symbolic` further on the mixture, off the target's own path."""
    others = "+".join(f"reasoning_gym:{task}@1" for task in OTHERS)
    config = TrainConfig(
        method="one_step",
        num_rounds=3,
        objective=ObjectiveConfig(entropy_bonus=0.0),
        optimizer=OptimizerConfig(weight_decay=0.1, learning_rate=1e-3),
        evaluation=EvaluationConfig(tune_every=1),
    )
    trainer = trainer_of(args, f"mix:reasoning_gym:{HOME}@4+{others}", config)
    replace(trainer.run(print), prompt_guard=None).save(args.out)


def gather(folder: Path) -> Json:
    """The bits of all arms on each task."""
    elsewhere = json.loads(TAUGHT_ELSEWHERE.read_text(encoding="utf-8"))["tasks"]
    tasks = {}
    for task in (HOME, *OTHERS):
        one = json.loads((folder / f"{task}.json").read_text(encoding="utf-8"))
        names = [arm["name"] for arm in one["arms"]]
        ours = ["target", "draft", *names[-6:]]
        tasks[task] = {arm: bits(one, name) for arm, name in zip(ARMS, ours, strict=False)}
        tasks[task]["names"] = names[-6:]
        if task == HOME:
            rows = {row["id"]: row["group"] for row in one["rows"]}
            tasks[task]["templates"] = [int(rows[name].split()[1]) for name in sorted(rows)]
            taught = json.loads((folder / "taught.json").read_text(encoding="utf-8"))
            key = "problems_sha256"
            assert taught["config"]["evaluation"][key] == one["config"]["evaluation"][key]
            tasks[task]["taught"] = bits(taught, "target")
        else:
            assert tasks[task]["target"] == elsewhere[task]["target"]
            tasks[task]["taught"] = elsewhere[task]["taught"]
    return {
        "schema": 1,
        "command": "mixed_traffic",
        "tasks": tasks,
        "provenance": one["provenance"],
    }


def gather_mixture(folder: Path) -> Json:
    """The bits of all arms of the models that were taught all five tasks."""
    tasks = {}
    for task in (HOME, *OTHERS):
        pair, taught = (
            json.loads((folder / name).read_text(encoding="utf-8"))
            for name in (f"{task}.json", f"taught_{task}.json")
        )
        key = "problems_sha256"
        assert taught["config"]["evaluation"][key] == pair["config"]["evaluation"][key]
        names = [arm["name"] for arm in pair["arms"]]
        arms = zip(MIXTURE_LABELS, ["target", "draft", *names[-3:]], strict=False)
        tasks[task] = {arm: bits(pair, name) for arm, name in arms}
        tasks[task] |= {"names": names[-3:], "taught": bits(taught, "target")}
        if task == HOME:
            rows = {row["id"]: row["group"] for row in pair["rows"]}
            tasks[task]["templates"] = [int(rows[name].split()[1]) for name in sorted(rows)]
    return {
        "schema": 1,
        "command": "mixed_traffic",
        "tasks": tasks,
        "provenance": pair["provenance"],
    }


def against_target(tasks: Sequence[Json], arm: str) -> str:
    """Won, lost and exact p against the target, over the problems of some tasks together."""
    changes = [
        int(a) - int(b) for one in tasks for a, b in zip(one[arm], one["target"], strict=True)
    ]
    won, lost = changes.count(1), changes.count(-1)
    low, high = (100 * end for end in accuracy_delta_interval(won, lost, len(changes)))
    return f"{low:+.1f} to {high:+.1f}; {won} / {lost}, p {mcnemar_p(won, lost):.2g}"


def over_mixture(tasks: Json, arm: str, other: str) -> str:
    """Difference of two arms over the mixture, half of it home, with a 95 % interval.

    At home it is over the templates: problems of one may depend on each other.
    """
    mean = variance = 0.0
    for task in (HOME, *OTHERS):
        weight = 0.5 if task == HOME else 0.5 / len(OTHERS)
        bits_of = zip(tasks[task][arm], tasks[task][other], strict=True)
        changes = [int(a) - int(b) for a, b in bits_of]
        units = tasks[task].get("templates", range(len(changes)))
        sums: Counter[int] = Counter()
        for unit, change in zip(units, changes, strict=True):
            sums[unit] += change - fmean(changes)
        spread = sum(x * x for x in sums.values()) * len(sums) / (len(sums) - 1)
        mean += weight * fmean(changes)
        variance += weight**2 * spread / len(changes) ** 2
    low, middle, high = (100 * (mean + side * 1.96 * math.sqrt(variance)) for side in (-1, 0, 1))
    return f"{middle:+.1f} ({low:+.1f} to {high:+.1f})"


def table() -> str:
    """The arms of the pair whose draft was taught one task, and routers between them."""
    tasks = json.loads(read_text(RESULT))["tasks"]
    for label, (home, elsewhere) in ROUTED.items():
        for task, arms in tasks.items():
            arms[label] = arms[home if task == HOME else elsewhere]
    return table_of(tasks, LABELS | {label: label for label in ROUTED})


def mixture_table() -> str:
    """The arms of models that were taught all five tasks."""
    return table_of(json.loads(read_text(MIXTURE_RESULT))["tasks"], MIXTURE_LABELS)


def table_of(tasks: Json, labels: dict[str, str]) -> str:
    """Share right of each arm at home, elsewhere and over the mixture, with differences."""
    parts = [tasks[HOME]], [tasks[task] for task in OTHERS]
    header = "", "at home", "on the four others", "mixture", "over the target", "over the rule"
    lines = [header, ["---"] * len(header)]
    for arm, label in labels.items():
        shares = [fmean(fmean(map(int, one[arm])) for one in part) for part in parts]
        cells = [f"{share:.1%}" for share in shares]
        if arm != "target":
            told = zip(cells, (against_target(part, arm) for part in parts), strict=True)
            cells = [f"{cell} ({how})" for cell, how in told]
        over = [
            "" if arm == other else over_mixture(tasks, arm, other) for other in ("target", "rule")
        ]
        lines.append((label, *cells, f"{fmean(shares):.1%}", *over))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(path: Path, result: Json) -> None:
    """Write a result without a time, so that the same run gives the same file."""
    path.write_bytes(gzip.compress(json.dumps(result).encode(), 9, mtime=0))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    stages = parser.add_subparsers(dest="stage", required=True)
    for stage in ("limit", "rounds"):
        trained = stages.add_parser(stage)
        for name in ("target", "draft", "arbiter", "out"):
            trained.add_argument(name, type=Path)
    for stage in ("gather", "gather_mixture"):
        stages.add_parser(stage).add_argument("folder", type=Path)
    args = parser.parse_args()
    if args.stage == "limit":
        limit(args)
    elif args.stage == "rounds":
        rounds(args)
    elif args.stage == "gather":
        write(RESULT, gather(args.folder))
        print(table())
    else:
        write(MIXTURE_RESULT, gather_mixture(args.folder))
        print(mixture_table())


if __name__ == "__main__":
    main()
