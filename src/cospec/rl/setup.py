"""Parts of a training run: models, problems and settings, checked, and the state so far."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cospec.arbiters.guard import PromptGuard
from cospec.arbiters.learned import LearnedArbiter
from cospec.arbiters.policy import Policy
from cospec.errors import ConfigError, TaskError
from cospec.evaluation.audit.dataset import notes_on_decoding, read_origin
from cospec.evaluation.problems import encode_problems, prompt_ids
from cospec.features import make_features
from cospec.rl.checkpoint import TrainState, hash_data
from cospec.rl.collect import Collector
from cospec.rl.methods import METHODS
from cospec.rl.solutions import check_solutions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cospec.backends.base import RolloutBackend
    from cospec.models import ModelPair
    from cospec.results import Json
    from cospec.rl.config import TrainConfig
    from cospec.tasks import Example, Task

_NUM_GUARD_PROMPTS = 2048
"""Most training prompts that the prompt guard is made from."""


@dataclass
class TrainingRun:
    """A run on the problems of a task, about to begin or to go on.

    Args:
        pair: The models, which are not changed.
        backend: Decodes rollouts and branches of that pair.
        task: Makes prompts and scores answers.
        config: Settings.
        train: Problems of the train split; a round takes the next ones, over and over.
        tune: Problems of the tune split.
        folder: Folder of the saved state, made if it does not exist; None to save nothing. A state
            in it is resumed.
        solved: Problems of the train split whose worked solutions are trained on first.
        on_read: Called with the number of worked solutions that were read.

    Attributes:
        notes: Minor differences between the rollouts and the audit that training starts from.

    Raises:
        ConfigError: The folder holds a run with other settings, or on another pair or other data;
            or the audit to start from was made with another pair or from test problems.
        PromptError: A prompt fills the context.
        TaskError: Two problems with different questions or answers have the same id, or a problem
            has no worked solution to read.
    """

    pair: ModelPair
    backend: RolloutBackend
    task: Task
    config: TrainConfig
    train: Sequence[Example]
    tune: Sequence[Example]
    folder: str | Path | None = None
    solved: Sequence[Example] = ()
    on_read: Callable[[int], None] = lambda _: None

    def __post_init__(self) -> None:
        features = make_features(self.config.features, self.pair)
        shape = len(features.names), self.config.policy_shape, self.config.seed, features.num_hidden
        self.method = METHODS[self.config.method]
        self.collector = Collector(self.backend, self.pair, self.task, self.config, shape[0])
        self._check_problems()
        self.notes: tuple[str, ...] = ()
        if (audit := self.config.warmup.warm_start) is not None:
            read_origin(audit, self.pair.fingerprint)
            self.notes = notes_on_decoding(audit, self.config.rollouts)
        about = self._about()
        hashes = hash_data(self.train, self.tune, self.solved)
        self.state = TrainState(Policy(*shape), Policy(*shape), made_from=about | hashes)
        self._is_mid_round = False  # if True, training cannot go on from the state in memory
        self._folder = None if self.folder is None else Path(self.folder).expanduser()
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self.state.restore(self._folder)
        self.arbiter = LearnedArbiter(self.state.policy, features, label="policy")

    @property
    def is_finished(self) -> bool:
        """True once all rounds are done, or the tune split has stopped improving."""
        state, evaluation = self.state, self.config.evaluation
        num_since_best = state.round - state.best.get("round", 0)
        is_stale = num_since_best >= evaluation.patience * evaluation.tune_every
        return state.round >= self.config.num_rounds or (bool(state.best) and is_stale)

    def take_best(self) -> LearnedArbiter:
        """Go back to the best policy on the tune split; return it with its guards and history."""
        state, guard = self.state, self._prompt_guard()
        state.policy.load_state_dict(state.best_policy)
        rate = state.best.get("max_mismatch_rate")
        about = self._about() | {
            "best": state.best,
            "history": [*state.history],
            "max_mismatch_rate": rate,
            "min_prompt_likeness": guard.min_likeness,
        }
        rate = math.inf if rate is None else rate
        return replace(self.arbiter, max_mismatch_rate=rate, prompt_guard=guard, about=about)

    def _about(self) -> Json:
        """Return the pair's fingerprint, the task and the settings."""
        return {
            "pair": {"fingerprint": self.pair.fingerprint},
            "training": {"task": {"task": self.task.name}, "train": self.config.to_dict()},
        }

    def _prompt_guard(self) -> PromptGuard:
        """Return the guard that knows the prompts of this task."""
        known = [*self.train, *self.solved][:_NUM_GUARD_PROMPTS] or self.tune
        return PromptGuard.of(
            prompt_ids(self.pair, self.task, known), prompt_ids(self.pair, self.task, self.tune)
        )

    def _check_problems(self) -> None:
        """Refuse problems that would stop the run halfway, or be mistaken for one another."""
        known: dict[str, Example] = {}
        for one in (*self.train, *self.tune):
            other = known.setdefault(one.id, one)
            if (one.question, one.answer) != (other.question, other.answer):
                raise TaskError(
                    f"two problems that differ have the id {one.id!r}: {other.question[:60]!r} "
                    f"and {one.question[:60]!r}; give each an id of its own, by which results are "
                    "kept."
                )
        num_played = self.config.num_rounds * self.config.rollouts.prompts_per_round
        self.collector.items([*self.train[:num_played], *self.tune])
        warmup = self.config.warmup
        if warmup.play_forks or warmup.solutions_from == "samples":  # else long ones are cut
            encode_problems(self.pair, self.task, self.solved)
        if warmup.num_solutions and warmup.solutions_from == "task":
            check_solutions(self.solved)
        if any(self.task.part_of(example).draft_shots is not None for example in self.solved):
            raise ConfigError(
                "draft_shots gives the draft a prompt of its own, and both models read worked "
                "solutions after one; leave it out, or set num_solutions to 0."
            )
