"""What a policy learns before its first round: from an audit, or from worked solutions."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file

from cospec.bench.dataset import read_dataset
from cospec.rl.solutions import encode_solutions, solution_decisions
from cospec.rl.updates import Decisions, imitate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from cospec.results import Json
    from cospec.rl.loop import Trainer


def warm_up(trainer: Trainer, report: Callable[[Json], None]) -> None:
    """Let the policy learn what the run's settings say that it should know before its first round.

    Args:
        trainer: Of a run that has not begun.
        report: Called with the metrics, as of a round 0, if worked solutions were learnt from.
    """
    if trainer.config.warm_start is not None:
        learn_from_audit(trainer, trainer.config.warm_start)
    elif trainer.config.num_solutions:
        started = time.perf_counter()
        metrics = learn_from_solutions(trainer) | trainer.evaluate()
        trainer.keep(metrics | {"round": 0, "seconds": time.perf_counter() - started}, report)


def learn_from_audit(trainer: Trainer, path: Path) -> None:
    """Learn from the branches of an audit, as if they were those of a round before the first.

    What they cost is not known and counts as nothing.
    """
    data = read_dataset(path, trainer.arbiter.features.names)
    features, right = data["features"], data["draft_correct"].float()
    delta = right - data["target_correct"].float()
    trainer.replay.append((features, delta, torch.zeros_like(delta), delta == 0))
    trainer.policy.normalise_by(features, math.inf)
    trainer.start.load_state_dict(trainer.policy.state_dict())
    trainer.learn(Decisions(features, torch.zeros_like(delta).bool(), torch.zeros_like(delta)))


def learn_from_solutions(trainer: Trainer) -> Json:
    """Learn whose token is that of the worked solutions; the result is what rounds start from.

    They are not learnt from again in the rounds: `TrainConfig.kl_weight` holds on to them.
    """
    features, delta = _decisions(trainer)
    trainer.policy.normalise_by(features, math.inf)
    loss = imitate(trainer.policy, features, delta, trainer.config)
    trainer.start.load_state_dict(trainer.policy.state_dict())
    return {"loss": loss, "num_solution_decisions": len(delta)}


def _decisions(trainer: Trainer) -> tuple[Tensor, Tensor]:
    """Those of all solutions, read once and kept in the run's folder."""
    path = None if trainer.folder is None else trainer.folder / "solutions.safetensors"
    if path is not None and path.exists():
        found = load_file(path)
        return found["features"], found["delta"]
    solutions = encode_solutions(trainer.pair, trainer.task, trainer.solved)
    features, delta = solution_decisions(
        trainer.pair, trainer.arbiter.features, solutions, trainer.player.on_finished
    )
    if path is not None:
        part = path.with_name(path.name + ".part")
        save_file({"features": features, "delta": delta}, part)
        part.replace(path)
    return features, delta
