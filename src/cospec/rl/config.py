"""Settings of a training run, grouped by concern.

A setting has one name in all groups, so that the command line shows it without its group. A run
writes `TrainConfig.to_dict`, which `TrainConfig.from_dict` reads.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from cospec import settings
from cospec.arbiters.checkpoint import MAX_BLOCK_LENGTH
from cospec.arbiters.policy import PolicyConfig
from cospec.config import DecodeConfig, DrafterName
from cospec.errors import ConfigError, check_least, unknown_name
from cospec.features import SCALAR_NAMES, FeatureSpec
from cospec.rl.methods import METHODS, Method, MethodName


@dataclass(frozen=True)
class RolloutConfig(DecodeConfig):
    """Problems of a round, and how they are decoded."""

    prompts_per_round: int = 640
    """Problems of a round."""
    prompts_per_chunk: tyro.conf.Suppress[int] = 128
    """Problems of a round that are played together, and whose caches are held until their branches
    are played. Raise it to fill many replicas. Another number draws other branches."""
    group_size: tyro.conf.Suppress[int] = 1
    """Rollouts of a problem (G); group advantages take at least 2."""
    num_speculative_tokens: Annotated[int | None, tyro.conf.arg(aliases=["-k"])] = 4
    """Drafted tokens a block (k)."""
    temperature: float = 0.0
    """Temperature of rollouts, branches, worked solutions and the tune split; 0 is greedy. Train at
    the temperature that you will serve at."""
    batch_size: int = 64
    """Most completions decoded together."""
    max_new_tokens: int | None = None
    """Most tokens of an answer; by default the task's."""
    adaptive: tyro.conf.Suppress[bool] = False
    """As in `DecodeConfig`; set in a config file, like others below."""
    adaptive_cost: tyro.conf.Suppress[float | None] = None
    """As in `DecodeConfig`, and needed by adaptive blocks."""
    max_corrections: int | None = None
    """After this many corrections by the target, decode the rest of a text losslessly."""
    cascade: tyro.conf.Suppress[bool] = False
    """As in `DecodeConfig`."""
    drafter: tyro.conf.Suppress[DrafterName] = "model"
    """As in `DecodeConfig`."""
    prompt_lookup_max: tyro.conf.Suppress[int] = 4
    """As in `DecodeConfig`."""
    prompt_lookup_min: tyro.conf.Suppress[int] = 2
    """As in `DecodeConfig`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(1, prompts_per_round=self.prompts_per_round, group_size=self.group_size)
        check_least(1, prompts_per_chunk=self.prompts_per_chunk, max_new_tokens=self.max_new_tokens)
        check_least(0, temperature=self.temperature)
        if self.num_speculative_tokens is None or not self.keep_trace:
            raise ConfigError("training needs a block length (-k) and keep_trace.")
        if self.num_speculative_tokens > MAX_BLOCK_LENGTH:
            raise ConfigError(
                f"num_speculative_tokens is {self.num_speculative_tokens}; an arbiter can be "
                f"trained with up to {MAX_BLOCK_LENGTH}."
            )
        if "model" not in self.drafter:
            raise ConfigError(
                f"drafter is {self.drafter!r}, and a policy sees what a draft model says; take one "
                "with a model, such as 'ngram+model'."
            )
        if self.adaptive and self.adaptive_cost is None:
            raise ConfigError(
                "adaptive is on and adaptive_cost is None: each process would measure its own, and "
                "a run that is resumed, or replicas, would end blocks elsewhere; give a number, "
                'such as "adaptive_cost": 0.3 beside it in the file of --config.'
            )


@dataclass(frozen=True)
class BranchConfig:
    """Branches: decisions of a rollout whose other ruling is decoded as well."""

    branches_per_rollout: float = 4.0
    """Branches of a rollout, on average."""
    replay_decay: tyro.conf.Suppress[float] = 0.9
    """Weight of replayed branches, multiplied by this per round of age; 0 keeps only the latest
    round."""

    def __post_init__(self) -> None:
        check_least(0, branches_per_rollout=self.branches_per_rollout)
        _check_share(self, "replay_decay")


@dataclass(frozen=True)
class ObjectiveConfig:
    """Reward, and the terms of the loss."""

    cost_weight: float = 0.05
    """Price of time (lambda): reward lost per target forward, as a share of lossless decoding's.
    Methods other than rl, one_step and reinforce only choose the round by it."""
    partial_reward: tyro.conf.Suppress[float] = 0.0
    """Weight of the scorer's reward for answers that are not right; 0 counts right answers alone.
    Evaluations always do."""
    group_weight: tyro.conf.Suppress[float] = 0.0
    """Weight of the group advantages beside the branches; 0 leaves them out."""
    entropy_bonus: tyro.conf.Suppress[float] = 0.05
    """Reward for an undecided policy, per nat of entropy."""
    kl_weight: tyro.conf.Suppress[float] = 0.0
    """Penalty for leaving the starting policy, per nat of divergence. Not for policy_iteration and
    one_correction."""
    clip: tyro.conf.Suppress[float] = 0.2
    """Epsilon of the clipped ratio."""

    def __post_init__(self) -> None:
        check_least(0, cost_weight=self.cost_weight, group_weight=self.group_weight)
        check_least(0, entropy_bonus=self.entropy_bonus, kl_weight=self.kl_weight)
        _check_share(self, "clip")
        _check_share(self, "partial_reward")


@dataclass(frozen=True)
class OptimizerConfig:
    """Updates of the policy in a round."""

    num_epochs: int = 60
    """Updates of a round, each on all stored decisions."""
    learning_rate: float = 3e-3
    """Adam learning rate for RL rounds."""
    weight_decay: float = 1e-2
    """Decoupled weight decay of the policy."""

    def __post_init__(self) -> None:
        check_least(1, num_epochs=self.num_epochs)
        check_least(0, weight_decay=self.weight_decay)
        if not 0 < self.learning_rate < float("inf"):
            raise ConfigError(f"learning_rate is {self.learning_rate}; it must be positive.")


@dataclass(frozen=True)
class RidgeConfig:
    """Settings of linear policies: their features, and the penalties of squared weights."""

    scalars: tuple[str, ...] = ()
    """Names of the scalars that the policy sees: with few decisions it overfits many. By default
    all, or beside hidden states log_p_draft alone."""
    scalar_penalty: float = 300.0
    """Penalty of each scalar's squared weight in a policy on scalars alone."""
    trusted_penalty: float = 10.0
    """Penalty of each scalar's squared weight in a policy on hidden states."""
    state_penalty: float = 10_000.0
    """Penalty of the squared weight of each number of a hidden state."""

    def __post_init__(self) -> None:
        for name in self.scalars:
            if name not in SCALAR_NAMES:
                raise ConfigError(unknown_name("scalar of ridge.scalars:", name, SCALAR_NAMES))
        for name in ("scalar_penalty", "trusted_penalty", "state_penalty"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be positive.")


@dataclass(frozen=True)
class WarmupConfig:
    """Training data for the policy before the first round."""

    warm_start: Path | None = None
    """Data set of a cospec audit of this pair to train on first (rl, one_step, policy_iteration,
    one_correction, gold)."""
    num_solutions: int = 0
    """Problems of the train split whose worked solutions are trained on first: one forward of each
    model tells whose token is the solution's wherever the models differ. Hidden states need tens of
    thousands. All seeds use the same ones. Not for policy_iteration and one_correction."""
    solutions: Path | None = None
    """File that caches the decisions read from solutions; by default in the run's folder. Further
    runs can use it too, and ask for more solutions."""
    solutions_from: Literal["task", "samples"] = "task"
    """task reads the worked solutions that come with the problems; samples lets both models answer
    them and reads those answers, weighed by the task's scores: it works for any task."""
    play_forks: tyro.conf.Suppress[bool] = False
    """Let the target go on from both tokens of each decision of a solution, and learn from the
    scores: where they are the same, nothing is learned. Costs a completion or two a decision, and
    makes few solutions go further (solutions_from task)."""
    num_samples: tyro.conf.Suppress[int] = 4
    """Answers of each model to a problem, the first one greedy (solutions_from samples)."""
    sample_temperature: tyro.conf.Suppress[float] = 0.7
    """Temperature of the answers after the first one."""
    num_solution_epochs: tyro.conf.Suppress[int] = 40
    """Passes over the decisions of the worked solutions."""

    def __post_init__(self) -> None:
        for name in ("warm_start", "solutions"):
            if (path := getattr(self, name)) is not None:
                # A string is taken as well, and no shell expands what a config file holds.
                object.__setattr__(self, name, Path(path).expanduser())
        check_least(0, num_solutions=self.num_solutions)
        check_least(1, num_solution_epochs=self.num_solution_epochs, num_samples=self.num_samples)
        if self.solutions_from not in ("task", "samples"):
            raise ConfigError(
                f"solutions_from is {self.solutions_from!r}; it must be task or samples."
            )
        if self.play_forks and (self.solutions_from != "task" or not self.num_solutions):
            raise ConfigError(
                "play_forks is set, and there are no worked solutions to leave; set num_solutions, "
                "with solutions_from task."
            )
        if not 0 < self.sample_temperature < float("inf"):
            raise ConfigError(
                f"sample_temperature is {self.sample_temperature}; it must be positive."
            )
        if self.solutions is not None and not self.num_solutions:
            raise ConfigError(
                f"solutions is {self.solutions} and num_solutions is 0: say how many to read."
            )


@dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation on the tune split, which picks the policy that is kept."""

    tune_every: int = 2
    """Rounds between evaluations on the tune split."""
    num_tune: int = 500
    """Problems of the tune split."""
    patience: tyro.conf.Suppress[int] = 3
    """Number of evaluations without an improvement after which training stops."""

    def __post_init__(self) -> None:
        check_least(1, tune_every=self.tune_every, num_tune=self.num_tune, patience=self.patience)


@dataclass(frozen=True)
class TrainConfig:
    """Training of an arbiter."""

    method: MethodName = "rl"
    """rl; one_step (as rl, off the target's own path: for a start that is too bold, and tasks that
    the draft does not know); policy_iteration (a linear policy, fitted to all branches so far: for
    few of them); one_correction (a linear policy for --max-corrections 1, trained on an audit of
    all answers that it can write, by their expected reward); or a control on the same features and
    problems. Controls: gold (predicts which branch off the target's path has the right answer),
    autojudge (predicts whether the target's own answer stays, 2504.20039), r2r (predicts whether
    the sentence keeps its meaning, from the draft's features alone, 2505.21600), reinforce (no
    branches, a running baseline, as DIVERSED, 2604.07622)."""
    num_rounds: int = 6
    """Rounds of rollouts and updates."""
    seed: int = 0
    """Seed of problems, policy and rollouts."""
    features: FeatureSpec = "scalar"
    """Input of the policy: scalar, or hidden (the models' states as well, for this pair only)."""
    policy: tyro.conf.Suppress[PolicyConfig] = field(default_factory=PolicyConfig)
    rollouts: RolloutConfig = field(default_factory=RolloutConfig)
    branches: BranchConfig = field(default_factory=BranchConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: tyro.conf.Suppress[OptimizerConfig] = field(default_factory=OptimizerConfig)
    ridge: tyro.conf.Suppress[RidgeConfig] = field(default_factory=RidgeConfig)
    warmup: WarmupConfig = field(default_factory=WarmupConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(unknown_name("method", self.method, METHODS))
        method = METHODS[self.method]
        # No round at all: the policy that worked solutions or an audit give, and no more.
        has_start = self.warmup.num_solutions or self.warmup.warm_start is not None
        check_least(int(not has_start), num_rounds=self.num_rounds)
        if self.objective.group_weight and self.rollouts.group_size < 2:
            raise ConfigError(
                "group_size is 1: a group of one has no advantage; raise it to 2, or "
                "set group_weight to 0."
            )
        if self.objective.group_weight and method.labels is not None:
            raise ConfigError(
                f"group_weight is {self.objective.group_weight}, and {self.method} learns from "
                "labels, which have no advantages; set it to 0."
            )
        if self.objective.group_weight and method.on_target_path:
            raise ConfigError(
                f"group_weight is {self.objective.group_weight}, and in {self.method} the target "
                "plays, whose rulings are no draws of the policy; set it to 0."
            )
        if self.objective.group_weight and method.group_weight is not None:
            raise ConfigError(
                f"group_weight is {self.objective.group_weight}, and that of {self.method} is "
                f"always {method.group_weight}; set it to 0."
            )
        if self.objective.kl_weight and method.is_ridge:
            raise ConfigError(
                f"kl_weight is {self.objective.kl_weight}, and {self.method} fits its policy anew "
                "each round, wherever it started; set it to 0."
            )
        self._check_warmup(method)
        if not method.has_branches or self.branches.branches_per_rollout:
            return
        if method.labels is not None:
            raise ConfigError(f"branches_per_rollout is 0: {self.method} learns from branches.")
        if not self.objective.group_weight:
            raise ConfigError("branches_per_rollout and group_weight are both 0: nothing to learn.")

    @property
    def policy_shape(self) -> PolicyConfig:
        """Shape of the policy; linear for a method that fits it in closed form."""
        if METHODS[self.method].is_ridge:
            return replace(self.policy, kind="linear", hidden_projection=1)
        return self.policy

    @property
    def branches_per_rollout(self) -> float:
        """Branches for each rollout; 0 for a method that plays none."""
        has_branches = METHODS[self.method].has_branches
        return self.branches.branches_per_rollout if has_branches else 0.0

    def _check_warmup(self, method: Method) -> None:
        warmup = self.warmup
        if warmup.warm_start is not None and not method.takes_audit:
            takers = ", ".join(name for name, one in METHODS.items() if one.takes_audit)
            raise ConfigError(
                f"warm_start is for the methods {takers}, and the method is {self.method}: an "
                "audit has no labels for it."
            )
        if self.policy.correction and not warmup.num_solutions:
            raise ConfigError(
                "correction is on and num_solutions is 0: there is nothing to correct; switch it "
                "off, or train on worked solutions first."
            )
        if warmup.num_solutions and (warmup.warm_start is not None or method.is_ridge):
            raise ConfigError(
                f"num_solutions is {warmup.num_solutions}, which goes without warm_start and not "
                "with the methods policy_iteration and one_correction; set it to 0, or leave those."
            )
        if not method.has_one_correction:
            return
        settings = {"max_corrections": self.rollouts.max_corrections, "num_rounds": self.num_rounds}
        if warmup.warm_start is None or settings != {"max_corrections": 1, "num_rounds": 0}:
            told = ", ".join(f"{name} is {value}" for name, value in settings.items())
            raise ConfigError(
                f"{told}, and warm_start is {warmup.warm_start}: {self.method} trains on an audit "
                "(cospec audit --arbiter always_draft --max-corrections 1 --dataset FILE) and "
                "plays no rounds; pass --warm-start FILE --max-corrections 1 --num-rounds 0."
            )

    def to_dict(self) -> dict[str, Any]:  # Any: a JSON object
        """Return the settings as the JSON object that `from_dict` takes."""
        return settings.to_dict(self)

    @classmethod
    def from_dict(cls, values: object) -> TrainConfig:
        """Build from a JSON object, such as the config file that a run wrote.

        Raises:
            ConfigError: A key is unknown or a value is not allowed.
        """
        return settings.from_dict(cls, values)


def _check_share(config: object, name: str) -> None:
    """Refuse a number outside of [0, 1)."""
    if not 0 <= getattr(config, name) < 1:
        raise ConfigError(f"{name} is {getattr(config, name)}; it must be in [0, 1).")
