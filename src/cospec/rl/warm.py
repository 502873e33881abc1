"""What a policy learns before its first round: from an audit, or from worked solutions."""

from __future__ import annotations

import json
import math
import time
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from cospec.bench.dataset import read_dataset
from cospec.errors import ConfigError
from cospec.rl.solutions import encode_solutions, solution_decisions
from cospec.rl.updates import Decisions, imitate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from cospec.results import Json
    from cospec.rl.loop import Trainer


_SLICE = 5000
"""Solutions between two savings of what was read."""


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
    """Those of all solutions, from the file that keeps them if it is whole.

    Raises:
        ConfigError: The file is of another pair, task or number, or shows other features.
    """
    path = trainer.config.solutions
    if path is None and trainer.folder is not None:
        path = trainer.folder / "solutions.safetensors"
    features = trainer.arbiter.features
    about = {
        "pair": trainer.pair.fingerprint,
        "task": trainer.task.name,
        "num_solutions": str(trainer.config.num_solutions),
        "features": json.dumps(features.to_dict()),
    }
    solutions = encode_solutions(trainer.pair, trainer.task, trainer.solved)
    num_read, seen, delta = _kept(path, about)
    parts = [(seen, delta)] if num_read else []
    while num_read < len(solutions):
        some = solutions[num_read : num_read + _SLICE]
        found = solution_decisions(trainer.pair, features, some, trainer.player.on_finished)
        seen, delta = (torch.cat(both) for both in zip(*parts, found, strict=True))
        parts, num_read = [(seen, delta)], num_read + len(some)
        if path is not None:
            part = path.with_name(path.name + ".part")
            tensors = {"features": seen, "delta": delta}
            save_file(tensors, part, about | {"num_read": str(num_read)})
            part.replace(path)
    return seen, delta


def _kept(path: Path | None, about: dict[str, str]) -> tuple[int, Tensor, Tensor]:
    """How many solutions a file holds the decisions of, and these."""
    if path is None or not path.exists():
        return 0, torch.empty(0), torch.empty(0)
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} does not hold what was read of solutions: {error}.") from error
    if unlike := [key for key, value in about.items() if metadata.get(key) != value]:
        raise ConfigError(
            f"{path} holds what was read of solutions with another {' and '.join(unlike)}; name "
            "another file, or repeat the command that made it."
        )
    return int(metadata["num_read"]), tensors["features"], tensors["delta"]
