"""The training loop: roll out, branch, update, evaluate, save; one round after another.

A round's problems and draws follow from the seed and the round's number alone, and the state is
written whole after each round: a run that was killed resumes with the round it was in and ends with
the same arbiter as one that was not.
"""

from __future__ import annotations

import math
import time
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
from cospec.rl.credit import assign_credit
from cospec.rl.methods import METHODS
from cospec.rl.metrics import branch_gain, guard, round_metrics, tune_metrics
from cospec.rl.solutions import check_solutions
from cospec.rl.updates import known_branches, normalize_first, refit, round_seed, update
from cospec.rl.warmstart import warm_start

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cospec.backends.base import RolloutBackend
    from cospec.models import ModelPair
    from cospec.results import Json
    from cospec.rl.config import TrainConfig
    from cospec.tasks import Example, Task

_NUM_GUARD_PROMPTS = 2048
"""Most prompts of training that the prompt guard is made of."""


@dataclass
class Trainer:
    """Trains a policy on the problems of a task.

    Args:
        pair: The models, which are not changed.
        backend: Decodes rollouts and branches of that pair.
        task: Makes prompts and scores answers.
        config: Settings.
        train: Problems of the train split; a round takes the next ones, over and over.
        tune: Problems of the tune split.
        folder: Where the state is kept, made if it does not exist; None for nowhere. A state that
            is there is resumed.
        solved: Problems of the train split whose worked solutions are trained on first.
        on_read: Called with the number of worked solutions that were read.

    Attributes:
        notes: Differences between an audit that training starts from and the rollouts, which do no
            great harm.

    Raises:
        ConfigError: The folder holds a run with other settings, or on another pair or other data;
            or the audit to start from is of another pair, or of test problems.
        PromptError: A prompt fills the context.
        TaskError: Two problems with other questions or answers have one id, or one whose worked
            solution is to be read has none.
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
        shape = len(features.names), self.config.policy, self.config.seed, features.num_hidden
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
        self._is_mid_round = False  # then what is in memory is no state to go on from
        self._folder = None if self.folder is None else Path(self.folder).expanduser()
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self.state.restore(self._folder)
        self.arbiter = LearnedArbiter(self.state.policy, features, label="policy")

    def _check_problems(self) -> None:
        """Refuse problems that would end the run in the middle, or be taken for one another."""
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

    def _about(self) -> Json:
        """Return what is trained, and for which pair."""
        return {
            "pair": {"fingerprint": self.pair.fingerprint},
            "training": {"task": {"task": self.task.name}, "train": self.config.to_dict()},
        }

    @property
    def is_finished(self) -> bool:
        """True once all rounds are done, or the tune split has stopped improving."""
        state, evaluation = self.state, self.config.evaluation
        num_since_best = state.round - state.best.get("round", 0)
        is_stale = num_since_best >= evaluation.patience * evaluation.tune_every
        return state.round >= self.config.num_rounds or (bool(state.best) and is_stale)

    def run(self, report: Callable[[Json], None] = lambda _: None) -> LearnedArbiter:
        """Train to the end; return the best policy on the tune split. `report` takes metrics.

        Raises:
            ConfigError: An earlier call was interrupted in the middle of a round.
        """
        state = self.state
        if self._is_mid_round:
            raise ConfigError(
                "this Trainer was interrupted in the middle of a round; make a new one, which "
                "resumes from its folder if it has one."
            )
        if not state.replay and not state.best:
            self._is_mid_round = True
            started = time.perf_counter()
            if metrics := self.warm_up():
                seconds = {"round": 0, "seconds": time.perf_counter() - started}
                self.keep(metrics | self.evaluate() | seconds, report)
        while not self.is_finished:
            self._is_mid_round = True
            metrics = self.play_round()
            state.round += 1
            is_last = state.round == self.config.num_rounds
            if is_last or state.round % self.config.evaluation.tune_every == 0:
                metrics |= self.evaluate()
            self.keep(metrics, report)
        state.policy.load_state_dict(state.best_policy)
        prompt_guard, rate = self._prompt_guard(), state.best.get("max_mismatch_rate")
        about = self._about() | {
            "best": state.best,
            "history": [*state.history],
            "max_mismatch_rate": rate,
            "min_prompt_likeness": prompt_guard.min_likeness,
        }
        rate = math.inf if rate is None else rate
        return replace(self.arbiter, max_mismatch_rate=rate, prompt_guard=prompt_guard, about=about)

    def _prompt_guard(self) -> PromptGuard:
        """Return the guard that knows the prompts of this task."""
        known = [*self.train, *self.solved][:_NUM_GUARD_PROMPTS] or self.tune
        return PromptGuard.of(
            prompt_ids(self.pair, self.task, known), prompt_ids(self.pair, self.task, self.tune)
        )

    def warm_up(self) -> Json:
        """Train on an audit or on worked solutions, if there are any; return the metrics."""
        features, config = self.arbiter.features, self.config
        learned = warm_start(
            self.state.policy,
            features,
            self.pair,
            self.task,
            self.solved,
            config,
            self._folder,
            self.on_read,
        )
        self.state.take(learned)
        return learned.metrics

    def play_round(self) -> Json:
        """Play one round: rollouts under the current policy, branches, and updates."""
        started, state = time.perf_counter(), self.state
        size = self.config.rollouts.prompts_per_round
        examples = [self.train[(state.round * size + i) % len(self.train)] for i in range(size)]
        if not (self.method.on_target_path or (self.method.is_ridge and not state.replay)):
            self.collector.baseline(examples, state.baselines)  # else most rollouts are lossless
        player, seed = self.method.player(self.arbiter), round_seed(self.config, state.round)
        played, branches = self.collector.round(player, examples, state.baselines, seed)
        if not state.replay:
            normalize_first(state.policy, played, self.arbiter.features, self.config)
            state.start.load_state_dict(state.policy.state_dict())
        gain = branch_gain(state.policy, branches) / size
        state.replay.append(branches)
        played_s = time.perf_counter() - started
        credit = assign_credit(played, self.config, state.running_reward)
        state.running_reward = credit.running_reward
        metrics: Json = {"round": state.round + 1, **credit.metrics}
        known = known_branches(state.replay, self.config)
        if self.method.is_ridge:
            metrics["loss"] = refit(state.policy, self.arbiter.features, known, self.config)
        elif credit.decisions is not None:
            metrics |= update(state.policy, state.start, credit.decisions, known, self.config, seed)
        return metrics | {
            **round_metrics(played, branches, [state.baselines[one.id] for one in examples]),
            "branch_gain": gain,
            "rollout_s": played_s,
            "seconds": time.perf_counter() - started,
        }

    def evaluate(self) -> Json:
        """Decode the tune split at threshold 0.5, and keep the policy if it is the best so far."""
        base = self.collector.baseline(self.tune, self.state.baselines)
        done = self.collector.complete(self.arbiter, self.tune)
        metrics = tune_metrics(base, done, self.config.objective.cost_weight)
        is_best = metrics["tune_reward"] > self.state.best.get("tune_reward", -math.inf)
        if is_best:
            self.state.keep_best(metrics["tune_reward"], guard(base, done))
        return metrics | {"is_best": is_best}

    def keep(self, metrics: Json, report: Callable[[Json], None]) -> None:
        """Save the state with the metrics of the round that made it."""
        self.state.history.append(metrics)
        self.state.save(self._folder)
        self._is_mid_round = False
        report(metrics)
