"""Settings of a training run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path  # noqa: TC003  # the command line resolves it
from typing import Annotated, Any, Literal, TypeAlias, get_args

import tyro

from cospec.arbiters.policy import PolicyConfig
from cospec.config import DecodeConfig
from cospec.errors import ConfigError, unknown_name
from cospec.features import FeatureSpec  # noqa: TC001  # the command line resolves it

Method: TypeAlias = Literal["rl", "gold", "autojudge", "r2r", "reinforce"]
"""How an arbiter can be trained: ours, and the controls."""
ON_TARGET_PATH: tuple[Method, ...] = ("gold", "autojudge", "r2r")
"""Methods that learn from branches off the target's own path, played out by the target alone."""


@dataclass(frozen=True)
class TrainConfig(DecodeConfig):
    """How the arbiter is trained."""

    method: Method = "rl"
    """rl, or a control on the same features and problems: gold (classifier of which branch of the
    target's path has the right answer), autojudge (of whether the target's own answer stays,
    2504.20039), r2r (of whether the sentence means the same, from the draft's features alone,
    2505.21600), reinforce (no branches, a running baseline, as DIVERSED, 2604.07622)."""
    num_rounds: int = 6
    """Rounds of rollouts and updates."""
    prompts_per_round: int = 640
    """Problems of a round."""
    group_size: int = 1
    """Rollouts of a problem (G); group advantages take at least 2."""
    branches_per_rollout: float = 4.0
    """Decisions of a rollout whose other ruling is played out as well, on average."""
    cost_weight: float = 0.05
    """Price of time (lambda): reward lost per target forward, as a share of lossless decoding's."""
    group_weight: float = 0.0
    """Weight of the group advantages beside the branch credit; 0 leaves them out."""
    replay_decay: float = 0.9
    """What an older round's branches count, per round of age; 0 learns from the last round only."""
    num_epochs: int = 60
    """Updates on the stored decisions of a round, each on all of them."""
    learning_rate: float = 3e-3
    """Of Adam, in the rounds."""
    weight_decay: float = 1e-2
    """Of the policy's weights (decoupled)."""
    clip: float = 0.2
    """Epsilon of the clipped ratio."""
    entropy_bonus: float = 0.05
    """Reward for an undecided coin, in nats."""
    kl_weight: float = 0.0
    """Price of leaving the starting policy, per nat."""
    features: FeatureSpec = "scalar"
    """What the policy sees: scalar, or hidden (the models' states as well, for this pair only)."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    """Shape of the policy."""
    num_speculative_tokens: Annotated[int | None, tyro.conf.arg(aliases=["-k"])] = 4
    """Drafted tokens a block (k)."""
    temperature: float = 0.0
    """Of rollouts, branches, worked solutions and the tune split: what the arbiter will serve at; 0
    is greedy."""
    batch_size: int = 64
    """Most completions decoded together."""
    max_new_tokens: int | None = None
    """Most tokens of an answer; by default the task's."""
    tune_every: int = 2
    """Rounds between evaluations on the tune split."""
    num_tune: int = 500
    """Problems of the tune split."""
    patience: int = 3
    """Evaluations without a better one after which training stops."""
    warm_start: Path | None = None
    """Data set of a cospec audit of this pair, learnt from before the first round (rl and gold)."""
    num_solutions: int = 0
    """Problems of the train split whose worked solutions are learnt from before the first round:
    one reading of each tells whose token is the solution's wherever the models differ. Tens of
    thousands of them let hidden states pay. They are the same for every seed."""
    solutions: Path | None = None
    """File that keeps what was read of them, for other runs as well, which can ask for more; by
    default in the run's folder."""
    num_solution_epochs: int = 40
    """Passes over what the worked solutions tell."""
    seed: int = 0
    """Of problems, policy and rollouts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in get_args(Method):
            raise ConfigError(unknown_name("method", self.method, get_args(Method)))
        least = {
            "num_rounds": int(self.num_solutions == 0),  # none: what solutions teach, and no more
            "prompts_per_round": 1,
            "group_size": 1,
            "num_epochs": 1,
            "tune_every": 1,
            "num_tune": 1,
            "patience": 1,
            "branches_per_rollout": 0,
            "cost_weight": 0,
            "group_weight": 0,
            "entropy_bonus": 0,
            "kl_weight": 0,
            "weight_decay": 0,
            "temperature": 0,
            "num_solutions": 0,
            "num_solution_epochs": 1,
        }
        for name, lowest in least.items():
            if not lowest <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least {lowest}.")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1.")
        for name in ("replay_decay", "clip"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be in [0, 1).")
        if not 0 < self.learning_rate < float("inf"):
            raise ConfigError(f"learning_rate is {self.learning_rate}; it must be positive.")
        if self.group_weight and self.group_size < 2:
            raise ConfigError(
                "group_size is 1: a group of one has no advantage; raise it to 2, or "
                "set group_weight to 0."
            )
        self._check_warm_start()
        if self.method == "reinforce":
            return
        if self.method in ON_TARGET_PATH and not self.branches_per_rollout:
            raise ConfigError(f"branches_per_rollout is 0: {self.method} learns from branches.")
        if not self.branches_per_rollout and not self.group_weight:
            raise ConfigError("branches_per_rollout and group_weight are both 0: nothing to learn.")

    def _check_warm_start(self) -> None:
        if self.warm_start is not None and self.method not in ("rl", "gold"):
            raise ConfigError(
                f"warm_start is for the methods rl and gold, and the method is {self.method}: an "
                "audit does not tell what else it is taught."
            )
        if self.policy.correction and not self.num_solutions:
            raise ConfigError(
                "correction is on and num_solutions is 0: there is nothing to correct; switch it "
                "off, or learn from worked solutions first."
            )
        if self.solutions is not None and not self.num_solutions:
            raise ConfigError(
                f"solutions is {self.solutions} and num_solutions is 0: say how many it keeps."
            )
        if self.num_solutions and (self.warm_start is not None or self.method != "rl"):
            raise ConfigError(
                f"num_solutions is {self.num_solutions}, which goes with the method rl and without "
                "warm_start; set it to 0, or leave those."
            )

    def to_dict(self) -> dict[str, Any]:  # Any: a JSON object
        """The settings as a JSON object."""
        from dataclasses import asdict  # noqa: PLC0415

        return asdict(self)
