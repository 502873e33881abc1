"""The training loop: play, branch, update, watch, save; one round after another.

A round's problems and coins follow from the seed and the round's number alone, and the state is
written whole after each round: a run that was killed goes on with the round it was in and ends with
the same arbiter as one that was not.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from cospec.arbiters import AlwaysTarget
from cospec.arbiters.learned import LearnedArbiter
from cospec.arbiters.observed import Observed
from cospec.arbiters.policy import Policy
from cospec.features import make_features
from cospec.rl.config import ON_TARGET_PATH
from cospec.rl.losses import baseline_advantages, group_advantages, has_spread
from cospec.rl.metrics import branch_gain, guard, round_metrics
from cospec.rl.rollouts import Played, Player
from cospec.rl.updates import Decisions, known_branches, update
from cospec.rl.warm import look_at_first, warm_up

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

    from cospec.models import ModelPair
    from cospec.results import Json
    from cospec.rl.config import TrainConfig
    from cospec.tasks import Example, Task
    from cospec.types import Arbiter

_COIN_SEEDS = 10_000  # per round
_REPLAYED = ("features", "delta_right", "delta_cost", "is_harmless")
_STATE = ("round", "best", "best_policy", "history", "replay", "baselines", "running_reward")


@dataclass
class Trainer:
    """Trains a policy on the problems of a task.

    Args:
        pair: The models, which are not changed.
        task: What the problems and answers are.
        config: How.
        train: Problems of the train split; a round takes the next ones, over and over.
        tune: Problems of the tune split.
        folder: Where the state is kept; None for nowhere.
        solved: Problems of the train split whose worked solutions are learnt from first.
    """

    pair: ModelPair
    task: Task
    config: TrainConfig
    train: Sequence[Example]
    tune: Sequence[Example]
    folder: Path | None = None
    solved: Sequence[Example] = ()
    round: int = field(init=False, default=0)
    best: Json = field(init=False, default_factory=dict)
    history: list[Json] = field(init=False, default_factory=list)
    replay: list[tuple[Tensor, ...]] = field(init=False, default_factory=list)
    baselines: dict[str, tuple[bool, int]] = field(init=False, default_factory=dict)
    running_reward: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        features = make_features(self.config.features, self.pair)
        shape = len(features.names), self.config.policy, self.config.seed, features.num_hidden
        self.policy = Policy(*shape)
        self.arbiter = LearnedArbiter(self.policy, features, label="policy")
        self.player = Player(self.pair, self.task, self.config, len(features.names))
        self.start = Policy(*shape)
        self.best_policy = self.policy.state_dict()
        self.restore()

    @property
    def is_finished(self) -> bool:
        """Whether all rounds are done, or the tune split has stopped improving."""
        rounds_since_best = self.round - self.best.get("round", 0)
        is_stale = rounds_since_best >= self.config.patience * self.config.tune_every
        return self.round >= self.config.num_rounds or (bool(self.best) and is_stale)

    def run(self, report: Callable[[Json], None] = lambda _: None) -> LearnedArbiter:
        """Train to the end; the arbiter of the best evaluation on the tune split.

        Args:
            report: Called with the metrics of each round.
        """
        if not self.replay and not self.best:
            warm_up(self, report)
        while not self.is_finished:
            metrics = self.play_round()
            self.round += 1
            if self.round % self.config.tune_every == 0 or self.round == self.config.num_rounds:
                metrics |= self.evaluate()
            self.keep(metrics, report)
        self.policy.load_state_dict(self.best_policy)
        rate = self.best.get("max_mismatch_rate")
        return replace(self.arbiter, max_mismatch_rate=math.inf if rate is None else rate)

    def keep(self, metrics: Json, report: Callable[[Json], None]) -> None:
        """Save the state with the metrics of the round that made it."""
        self.history.append(metrics)
        self.save()
        report(metrics)

    def play_round(self) -> Json:
        """One round: rollouts under the current policy, branches, and updates."""
        started = time.perf_counter()
        size, seed = self.config.prompts_per_round, (self.config.seed * 10_007 + self.round)
        places = [(self.round * size + i) % len(self.train) for i in range(size)]
        examples = [self.train[i] for i in places]
        base = self.baseline(examples)
        forwards = [num for _, num in base]
        policy: Arbiter = replace(self.arbiter, is_stochastic=True)
        if self.config.method in ON_TARGET_PATH:
            policy = Observed(AlwaysTarget(), self.arbiter.features)
        played, branches = self.player.round(policy, examples, forwards, seed * _COIN_SEEDS)
        if not self.replay:
            look_at_first(self, [m.features for one in played for m in one.decisions])
        gain = branch_gain(self.policy, branches) / size
        self.replay.append(tuple(getattr(branches, name) for name in _REPLAYED))
        played_s = time.perf_counter() - started
        metrics: Json = {"round": self.round + 1, **self.update(played)}
        return metrics | {
            **round_metrics(played, branches),
            "accuracy_target": sum(ok for ok, _ in base) / len(base),
            "reward": sum(self.reward(one) for one in played) / len(played),
            "branch_gain": gain,
            "rollout_s": played_s,
            "seconds": time.perf_counter() - started,
        }

    def baseline(self, examples: Sequence[Example]) -> list[tuple[bool, int]]:
        """Lossless decoding of each problem, once."""
        new = [example for example in examples if example.id not in self.baselines]
        if new:
            found = self.player.lossless(new)
            self.baselines |= {e.id: base for e, base in zip(new, found, strict=True)}
        return [self.baselines[example.id] for example in examples]

    def reward(self, one: Played) -> float:
        """Of a rollout: right or wrong, minus the price of its cost."""
        return float(one.is_right) - self.config.cost_weight * one.cost

    def update(self, played: Sequence[Played]) -> Json:
        """Learn from the round's decisions and from the branches of all rounds."""
        rewards = torch.tensor([self.reward(one) for one in played])
        rewards = rewards.view(-1, self.config.group_size)  # (P, G)
        advantages = self._advantages(rewards)
        rows = [
            (m, a)
            for one, a in zip(played, advantages.tolist(), strict=True)
            for m in one.decisions
        ]
        if not rows:
            return {}
        decisions = Decisions(
            torch.stack([m.features for m, _ in rows]),
            torch.tensor([m.keep_draft for m, _ in rows]),
            torch.tensor([a for _, a in rows]),
        )
        metrics = self.learn(decisions)
        return metrics | {"frac_reward_zero_std": 1 - float(has_spread(rewards).float().mean())}

    def learn(self, decisions: Decisions) -> Json:
        """Update the policy on decisions, and on the branches of all rounds."""
        known = known_branches(self.replay, self.config)
        seed = self.config.seed * 10_007 + self.round
        return update(self.policy, self.start, decisions, known, self.config, seed)

    def _advantages(self, rewards: Tensor) -> Tensor:
        """Of each rollout, (P * G,), from rewards (P, G)."""
        if self.config.method != "reinforce":
            return group_advantages(rewards).flatten()
        found, self.running_reward = baseline_advantages(rewards, self.running_reward)
        return found.flatten()

    def evaluate(self) -> Json:
        """Decode the tune split at threshold 0.5 and keep the policy if it is the best so far."""
        base = self.baseline(self.tune)
        engine = self.player.engine(self.arbiter)
        done = engine.generate(*self.player.prompts(self.tune))
        right = [self.player.score(e, c).correct for e, c in zip(self.tune, done, strict=True)]
        cost = sum(c.stats.num_target_forwards for c in done) / sum(num for _, num in base)
        accuracy = sum(right) / len(right)
        reward = accuracy - self.config.cost_weight * cost
        if reward > self.best.get("tune_reward", -math.inf):
            won = [c for c, ok, (was_ok, _) in zip(done, right, base, strict=True) if ok > was_ok]
            self.best = {
                "round": self.round,
                "tune_reward": reward,
                "max_mismatch_rate": guard(won),
            }
            self.best_policy = {k: v.clone() for k, v in self.policy.state_dict().items()}
        return {
            "tune_accuracy": accuracy,
            "tune_accuracy_target": sum(ok for ok, _ in base) / len(base),
            "tune_wins": sum(a and not b for a, (b, _) in zip(right, base, strict=True)),
            "tune_losses": sum(b and not a for a, (b, _) in zip(right, base, strict=True)),
            "tune_relative_cost": cost,
            "tune_reward": reward,
            "is_best": self.best["round"] == self.round,
        }

    def save(self) -> None:
        """Write the state whole or not at all."""
        if self.folder is None:
            return
        part = self.folder / "state.pt.part"
        models = {name: getattr(self, name).state_dict() for name in ("policy", "start")}
        torch.save({name: getattr(self, name) for name in _STATE} | models, part)
        part.replace(self.folder / "state.pt")

    def restore(self) -> None:
        """Go on from the saved state, if there is one."""
        path = None if self.folder is None else self.folder / "state.pt"
        if path is None or not path.exists():
            return
        state = torch.load(path, weights_only=True)
        for name in _STATE:
            setattr(self, name, state[name])
        self.policy.load_state_dict(state["policy"])
        self.start.load_state_dict(state["start"])
