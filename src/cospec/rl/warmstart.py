"""Training before the first round: on an audit's branches, or on worked solutions."""

from __future__ import annotations

import copy
import json
import math
import time
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from cospec.engine import Engine
from cospec.errors import ConfigError
from cospec.evaluation.audit.dataset import read_dataset, read_tensors
from cospec.evaluation.problems import encode_problems
from cospec.results import write_json, write_tensors
from cospec.rl.forks import ForkPlayer
from cospec.rl.methods import METHODS
from cospec.rl.ridge import fit_reward, penalties
from cospec.rl.samples import sample_solutions
from cospec.rl.solutions import Solution, encode_solutions, solution_decisions
from cospec.rl.types import BranchData, Decisions, SolutionData
from cospec.rl.updates import imitate, known_branches, refit, round_seed, update
from cospec.types import Needs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

    from cospec.arbiters.policy import Policy
    from cospec.features import ScalarFeatures
    from cospec.models import ModelPair
    from cospec.results import Json
    from cospec.rl.config import TrainConfig
    from cospec.tasks import Example, Task


_SLICE = 128
"""Problems that are read together; the models' own answers are weighed within their slice."""
_WRITE_EVERY = 60.0
"""Least seconds between two writes of the cache; a killed run loses the work since the last."""


class WarmStart(NamedTuple):
    """A policy trained before the first round."""

    policy: Policy
    start: Policy
    """Policy that the rounds' divergence is measured from."""
    branches: BranchData | None = None
    """Branches that the rounds replay like those of an earlier round."""
    metrics: Json = {}  # noqa: RUF012  # never changed
    """Loss and number of decisions; empty without training before the rounds."""


def warm_start(
    policy: Policy,
    features: ScalarFeatures,
    pair: ModelPair,
    task: Task,
    solved: Sequence[Example],
    config: TrainConfig,
    folder: Path | None,
    on_read: Callable[[int], None],
) -> WarmStart:
    """Train a copy of a policy on the audit or the solutions that the settings name, if any."""
    if config.warmup.warm_start is not None:
        return from_audit(policy, features, config)
    if not config.warmup.num_solutions:
        return WarmStart(policy, policy)
    path = config.warmup.solutions
    if path is None and folder is not None:
        path = folder / "solutions.safetensors"
    data = read_solutions(pair, task, features, solved, config, path, on_read)
    return from_solutions(policy, features, data, config)


def from_audit(policy: Policy, features: ScalarFeatures, config: TrainConfig) -> WarmStart:
    """Train a copy of a policy on the branches of an audit.

    Costs are not known and count as 0. Where only some mismatches of a problem were played, a
    branch is weighted by the number of mismatches that it stands for, relative to the mean. Rounds
    that replay it use the same weight.

    Raises:
        ConfigError: The data set cannot be used, or has no mismatches.
    """
    path = config.warmup.warm_start
    assert path is not None
    data = read_dataset(path, features.names)
    if not len(data["features"]):
        raise ConfigError(
            f"{path} has no mismatches to train on: its models agree, or its features "
            "are not finite; audit more problems, or leave the warm start out."
        )
    x, delta = data["features"], data["draft_correct"].float() - data["target_correct"].float()
    delta = delta * data["weight"] / data["weight"].mean()
    none = torch.zeros_like(delta)
    branches = BranchData(x, delta, none, delta == 0)
    learned = copy.deepcopy(policy)
    known = known_branches([branches], config)
    if METHODS[config.method].is_ridge:
        loss = refit(learned, features, known, config)
        metrics = {"loss": loss, "num_branches": len(branches)}
        if METHODS[config.method].has_one_correction:
            penalty = penalties(features, config.ridge)
            metrics["expected_accuracy"] = fit_reward(learned, x, *_answers_of(data, path), penalty)
        return WarmStart(learned, copy.deepcopy(learned), branches, metrics)
    learned.normalize_by(x, math.inf)
    start = copy.deepcopy(learned)
    update(learned, start, Decisions(x, none.bool(), none), known, config, round_seed(config, 0))
    return WarmStart(learned, start, branches, {"num_branches": len(branches)})


def _answers_of(data: dict[str, Tensor], path: Path) -> tuple[list[int], Tensor, Tensor]:
    """Return what `fit_reward` takes of an audit under `always_draft` with one correction.

    Raises:
        ConfigError: The audit is another one.
    """
    _, counts = torch.unique_consecutive(data["problem"], return_counts=True)
    sizes = counts.tolist()
    kept = torch.split(data["draft_correct"].float(), sizes)
    if any(one.min() < one.max() for one in kept) or (data["weight"] != 1).any():
        raise ConfigError(
            f"{path} does not hold all answers with one correction; make it with cospec audit "
            "--arbiter always_draft --max-corrections 1 --dataset FILE, without "
            "--branches-per-problem."
        )
    return sizes, data["target_correct"].float(), torch.stack([one[0] for one in kept])


def from_solutions(
    policy: Policy, features: ScalarFeatures, data: SolutionData, config: TrainConfig
) -> WarmStart:
    """Train a copy of a policy to pick the tokens of worked solutions, on its method's features.

    The rounds do not train on them again: `kl_weight` keeps the policy close to its start.

    Raises:
        ConfigError: There are no decisions.
    """
    if not len(data.delta):
        raise ConfigError(
            "the worked solutions have no training examples: the models agree on every token of "
            "them, or neither predicts it, or the context holds none; set num_solutions to 0."
        )
    learned = copy.deepcopy(policy)
    seen = METHODS[config.method].features(features)
    learned.normalize_by(data.features, math.inf, seen)
    loss = imitate(learned, data, config)
    metrics = {"loss": loss, "num_solution_decisions": len(data.delta)}
    return WarmStart(learned, copy.deepcopy(learned), metrics=metrics)


def num_texts(config: TrainConfig) -> int:
    """Return how many texts are decoded or read for each worked solution."""
    # Both models write each sample, and then all are read.
    is_sampled = config.warmup.solutions_from == "samples"
    return 4 * config.warmup.num_samples if is_sampled else 1


def num_cached(path: Path | None) -> int:
    """Return the number of solutions that a file of their decisions holds; 0 if it cannot tell."""
    if path is None or not path.exists():
        return 0
    try:
        with safe_open(path, "pt") as file:
            return int((file.metadata() or {}).get("num_read", 0))
    except (OSError, SafetensorError):
        return 0


def read_solutions(
    pair: ModelPair,
    task: Task,
    features: ScalarFeatures,
    solved: Sequence[Example],
    config: TrainConfig,
    path: Path | None,
    on_read: Callable[[int], None],
) -> SolutionData:
    """Read the decisions of worked solutions, through a cache on disk.

    The solutions of a smaller number are the first ones of a larger number, so that a later run can
    extend the same file.

    Raises:
        ConfigError: The cache does not fit the run.
    """
    warmup, temperature = config.warmup, config.rollouts.temperature
    about = _about(pair, task, features, config)
    num_read, parts = 0, [SolutionData(torch.empty(0, len(features.names)), torch.empty(0))]
    if path is not None and path.exists():
        num_read, found = _read_cache(path, about, solved, warmup.num_solutions)
        parts = [found]
        on_read(num_read * num_texts(config))
    elif path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    answers = None if path is None else path.with_name(f"{path.name}.answers")
    if warmup.solutions_from == "samples" and num_read % _SLICE and num_read < len(solved):
        raise ConfigError(
            f"{path} holds the answers to {num_read} problems. Their worths are relative to those "
            f"of up to {_SLICE} problems around them, and more can follow only a multiple of "
            f"{_SLICE}; name another file, or set num_solutions to {num_read}."
        )
    written = time.monotonic()
    while num_read < len(solved):
        some = solved[num_read : num_read + _SLICE]
        if warmup.solutions_from == "samples":
            solutions = _answers(pair, task, some, config, num_read, answers, about, on_read)
        else:
            solutions = encode_solutions(pair, task, some, num_read)
        worth_of = None
        if warmup.play_forks:
            worth_of = _player(pair, task, some, config, num_read)
            solutions = worth_of.judged(solutions)
        parts.append(solution_decisions(pair, features, solutions, on_read, temperature, worth_of))
        num_read += len(some)
        is_due = num_read == len(solved) or time.monotonic() > written + _WRITE_EVERY
        if path is not None and is_due:
            parts, written = [SolutionData.joined(parts)], time.monotonic()
            read = {"num_read": str(num_read), "problems": _digest(solved[:num_read])}
            write_tensors(path, parts[0]._asdict(), about | read)
            if answers is not None:
                answers.unlink(missing_ok=True)
    return SolutionData.joined(parts)


def _answers(
    pair: ModelPair,
    task: Task,
    examples: Sequence[Example],
    config: TrainConfig,
    start: int,
    path: Path | None,
    about: dict[str, str],
    on_read: Callable[[int], None],
) -> list[Solution]:
    """Return weighed answers to a slice of problems, kept on disk until they are read.

    With a real pair a slice takes an hour to write and as long to read.
    """
    made_for = about | {"problems": _digest(examples), "start": str(start)}
    if path is not None and path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["made_for"] == made_for:
            on_read(2 * config.warmup.num_samples * len(examples))
            return [Solution(*one) for one in kept["answers"]]
    found = sample_solutions(pair, task, examples, config, start, on_read)
    if path is not None:
        answers = [[one.ids, one.num_prompt_tokens, one.place, one.worth] for one in found]
        write_json(path, {"made_for": made_for, "answers": answers})
    return found


def _about(
    pair: ModelPair, task: Task, features: ScalarFeatures, config: TrainConfig
) -> dict[str, str]:
    """Return all that a cache of decisions depends on."""
    about = {
        "pair": f"{pair.fingerprint} {pair.target.dtype}",
        "task": task.name,
        "features": json.dumps(features.to_dict()),
        "temperature": str(config.rollouts.temperature),
        **_source(config),
    }
    if Needs.BLOCK_LOG_Q in features.needs:  # caches without this entry hold other values there
        about["block"] = "left out"
    return about


def _player(
    pair: ModelPair, task: Task, examples: Sequence[Example], config: TrainConfig, start: int
) -> ForkPlayer:
    """Return a player of the forks in the solutions of some problems."""
    rollouts = config.rollouts
    _, settings = encode_problems(
        pair, task, examples, rollouts.max_new_tokens, config.seed, rollouts.temperature
    )
    engine = Engine.target_only(pair, batch_size=rollouts.batch_size)
    return ForkPlayer(engine, task, examples, settings, start)


def _source(config: TrainConfig) -> dict[str, str]:
    """Return the settings of own answers or of forks in a cache; empty for plain solutions."""
    warmup = config.warmup
    if warmup.solutions_from == "task":
        seed = f", seed {config.seed}" if config.rollouts.temperature else ""
        return {"forks": f"of {config.rollouts.max_new_tokens}{seed}"} if warmup.play_forks else {}
    known = warmup.num_samples, warmup.sample_temperature, config.rollouts.max_new_tokens
    return {"solutions_from": f"samples {known}"}


def _digest(examples: Sequence[Example]) -> str:
    """Return a hash of problems with their worked solutions."""
    rows = [[e.id, e.question, e.answer, e.metadata.get("solution")] for e in examples]
    return sha256(json.dumps(rows, default=str).encode()).hexdigest()


def _read_cache(
    path: Path, about: dict[str, str], solved: Sequence[Example], wanted: int
) -> tuple[int, SolutionData]:
    """Return the number of solutions in a cache, and their decisions."""
    tensors, kept = read_tensors(path, "what was read of solutions")
    kept = {"temperature": "0.0"} | kept  # older files do not say
    keys = {*about, "solutions_from", "forks", "block"}
    if unlike := sorted(key for key in keys if kept.get(key) != about.get(key)):
        raise ConfigError(
            f"{path} holds decisions from solutions with another {' and '.join(unlike)}; "
            "delete it, name another file (--solutions), or repeat the command that made it."
        )
    if (num_read := int(kept["num_read"])) > wanted:
        raise ConfigError(
            f"{path} holds the decisions of {num_read} solutions, and num_solutions is {wanted}; "
            "delete it, name another file (--solutions), or train on all that it holds."
        )
    ours = _digest(solved[:num_read])
    if kept.get("problems", ours) != ours:  # older files do not say
        raise ConfigError(
            f"{path} holds decisions from the solutions of {num_read} other problems; delete "
            "it, name another file (--solutions), or pass the problems that it was made from."
        )
    return num_read, SolutionData(tensors["features"], tensors["delta"])
