"""Give trained arbiters the guard that ``cospec train`` sets, if they were trained without one.

    python experiments/guard/guard.py FOLDER [FOLDER ...]

Decodes the tune problems that the training was watched on and writes ``max_mismatch_rate`` into
``config.json``. An operating point that was certified without a guard has to be calibrated again.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

from cospec.arbiters.learned import LearnedArbiter
from cospec.arbiters.policy import PolicyConfig
from cospec.backends.engine import EngineBackend
from cospec.cli.common.options import PairOptions, set_threads
from cospec.results import write_text
from cospec.rl.config import ObjectiveConfig, RolloutConfig, TrainConfig
from cospec.rl.trainer import Trainer
from cospec.tasks import load_task


def guard_of(folder: Path) -> float | None:
    """The guard that training would have set."""
    training = json.loads((folder / "config.json").read_text(encoding="utf-8"))["training"]
    settings = training["train"]
    config = TrainConfig(
        seed=settings["seed"],
        policy=PolicyConfig(**settings["policy"]),
        rollouts=RolloutConfig(
            num_speculative_tokens=settings["num_speculative_tokens"],
            batch_size=settings["batch_size"],
            max_new_tokens=settings["max_new_tokens"],
        ),
        objective=ObjectiveConfig(cost_weight=settings["cost_weight"]),
    )
    pair = PairOptions(**training["pair"]).load()
    task = load_task(training["task"]["task"])
    tune = task.examples("tune", settings["num_tune"], config.seed)
    backend = EngineBackend(pair, config.rollouts)
    trainer = Trainer(pair, backend, task, config, tune, tune)
    arbiter = LearnedArbiter.load(folder, pair, threshold=0.5, max_mismatch_rate=math.inf)
    trainer.state.policy.load_state_dict(arbiter.policy.state_dict())
    found = trainer.evaluate()
    right = f"{found['tune_accuracy']:.1%} right, {found['tune_accuracy_target']:.1%} by the target"
    rate: float | None = trainer.state.best["max_mismatch_rate"]
    print(f"{folder}: {right}; max_mismatch_rate {rate}", flush=True)
    return rate


def main() -> None:
    """Command line."""
    set_threads(1)
    for folder in map(Path, sys.argv[1:]):
        path = folder / "config.json"
        rate = guard_of(folder)
        config = json.loads(path.read_text(encoding="utf-8")) | {"max_mismatch_rate": rate}
        write_text(path, json.dumps(config, indent=1) + "\n")


if __name__ == "__main__":
    main()
