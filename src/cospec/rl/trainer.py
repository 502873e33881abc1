"""The training loop: roll out, branch, update, evaluate, save; one round after another.

A round's problems and draws follow from the seed and the round's number alone, and the state is
written whole after each round. So a run that was killed resumes with the round it was in, and ends
with the same arbiter as one that was not.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from cospec.errors import ConfigError
from cospec.rl.credit import assign_credit
from cospec.rl.metrics import branch_gain, guard, round_metrics, tune_metrics
from cospec.rl.setup import TrainingRun
from cospec.rl.updates import known_branches, normalize_first, refit, round_seed, update
from cospec.rl.warmstart import warm_start

if TYPE_CHECKING:
    from collections.abc import Callable

    from cospec.arbiters.learned import LearnedArbiter
    from cospec.results import Json


class Trainer(TrainingRun):
    """Trains a policy on the problems of a task: `TrainingRun` says what it takes and raises."""

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
        return self.take_best()

    def warm_up(self) -> Json:
        """Train on an audit or on worked solutions, if there are any; return the metrics."""
        learned = warm_start(
            self.state.policy,
            self.arbiter.features,
            self.pair,
            self.task,
            self.solved,
            self.config,
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
