"""What a policy learns before its first round: from an audit, or from worked solutions."""

from __future__ import annotations

import json
import math
import time
from typing import TYPE_CHECKING

import torch

from cospec.errors import ConfigError
from cospec.evaluation.audit.dataset import read_dataset, read_tensors, write_tensors
from cospec.rl.config import ON_TARGET_PATH
from cospec.rl.controls import is_used
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


def look_at_first(trainer: Trainer, seen: list[Tensor]) -> None:
    """Normalise the policy by the decisions of the first round, as far as nothing else has.

    Args:
        trainer: Of a run in its first round.
        seen: Features of the decisions, (F,) each.

    Raises:
        ConfigError: There are none.
    """
    method, policy = trainer.config.method, trainer.policy
    if trainer.config.num_solutions:
        if trainer.config.policy.correction and seen:
            policy.take_up(torch.stack(seen))
            trainer.start.load_state_dict(policy.state_dict())
        return
    if not seen:
        raise ConfigError(
            "no mismatch was left to the arbiter in the first round: these two models agree on "
            "these problems; pass other problems or another draft."
        )
    # No override precedes what the target's path shows; once the policy rules, some do.
    spread = math.inf if method in ON_TARGET_PATH else 1.0
    policy.normalise_by(torch.stack(seen), spread, is_used(method, trainer.arbiter.features))
    trainer.start.load_state_dict(policy.state_dict())


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

    Raises:
        ConfigError: They settle nothing, or the file that keeps them does not fit.
    """
    features, delta = _decisions(trainer)
    if not len(delta):
        raise ConfigError(
            "the worked solutions settle no mismatch: these two models agree along them, or write "
            "neither's tokens, or the context holds none; set num_solutions to 0."
        )
    trainer.policy.normalise_by(features, math.inf)
    loss = imitate(trainer.policy, features, delta, trainer.config)
    trainer.start.load_state_dict(trainer.policy.state_dict())
    return {"loss": loss, "num_solution_decisions": len(delta)}


def _decisions(trainer: Trainer) -> tuple[Tensor, Tensor]:
    """Those of all solutions, from the file that keeps them as far as they were read.

    More solutions begin with those that fewer are, so that a later run can go on in the same file.
    """
    path = trainer.config.solutions
    if path is None and trainer.folder is not None:
        path = trainer.folder / "solutions.safetensors"
    pair, features = trainer.pair, trainer.arbiter.features
    about = {
        "pair": f"{pair.fingerprint} {pair.target.dtype}",
        "task": trainer.task.name,
        "features": json.dumps(features.to_dict()),
        "temperature": str(trainer.config.temperature),
    }
    num_read, seen, delta = 0, torch.empty(0, len(features.names)), torch.empty(0)
    if path is not None and path.exists():
        tensors, kept = read_tensors(path, "what was read of solutions")
        kept = {"temperature": "0.0"} | kept  # older files do not say
        if unlike := [key for key, value in about.items() if kept.get(key) != value]:
            raise ConfigError(
                f"{path} holds what was read of solutions with another {' and '.join(unlike)}; "
                "name another file, or repeat the command that made it."
            )
        num_read, seen, delta = int(kept["num_read"]), tensors["features"], tensors["delta"]
    if num_read > trainer.config.num_solutions:
        raise ConfigError(
            f"{path} holds what was read of {num_read} solutions, and num_solutions is "
            f"{trainer.config.num_solutions}; name another file, or learn from all that it holds."
        )
    while num_read < len(trainer.solved):
        some = trainer.solved[num_read : num_read + _SLICE]
        solutions = encode_solutions(pair, trainer.task, some, num_read)
        on_read, temperature = trainer.player.on_finished, trainer.config.temperature
        found = solution_decisions(pair, features, solutions, on_read, temperature)
        seen, delta = torch.cat([seen, found[0]]), torch.cat([delta, found[1]])
        num_read += len(some)
        if path is not None:
            tensors = {"features": seen, "delta": delta}
            write_tensors(path, tensors, about | {"num_read": str(num_read)})
    return seen, delta
