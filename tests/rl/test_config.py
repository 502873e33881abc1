"""Settings of a training run: what is refused, and the way to a file and back."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cospec.arbiters.policy import PolicyConfig
from cospec.config import DecodeConfig
from cospec.errors import ConfigError
from cospec.rl.config import RolloutConfig, TrainConfig
from cospec.settings import flat
from tests.rl.conftest import train_config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_rounds": 0}, "num_rounds is 0; it must be at least 1"),
        ({"prompts_per_round": 0}, "prompts_per_round is 0"),
        ({"group_size": 0}, "group_size is 0"),
        ({"num_epochs": -1}, "num_epochs is -1"),
        ({"num_speculative_tokens": 0}, "num_speculative_tokens is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"adaptive": True}, "adaptive is on and adaptive_cost is None: each process would"),
        ({"tune_every": 0}, "tune_every is 0"),
        ({"num_tune": 0}, "num_tune is 0"),
        ({"patience": 0}, "patience is 0"),
        ({"branches_per_rollout": -1.0}, "branches_per_rollout is -1.0; it must be at least 0"),
        ({"cost_weight": -0.1}, "cost_weight is -0.1"),
        ({"group_weight": -1.0}, "group_weight is -1.0"),
        (
            {"group_weight": 0.5, "group_size": 2, "method": "gold"},
            "group_weight is 0.5, and gold learns from labels",
        ),
        (
            {"group_weight": 0.5, "group_size": 2, "method": "one_step"},
            "group_weight is 0.5, and in one_step the target plays",
        ),
        (
            {"group_weight": 0.5, "group_size": 2, "method": "reinforce"},
            "group_weight is 0.5, and that of reinforce is always 1.0",
        ),
        ({"entropy_bonus": -1e-3}, "entropy_bonus is -0.001"),
        ({"kl_weight": -1.0}, "kl_weight is -1.0"),
        (
            {"kl_weight": 0.1, "method": "policy_iteration"},
            "kl_weight is 0.1, and policy_iteration fits its policy anew",
        ),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"replay_decay": 1.0}, r"replay_decay is 1.0; it must be in \[0, 1\)"),
        ({"replay_decay": -0.1}, "replay_decay is -0.1"),
        ({"clip": 1.0}, r"clip is 1.0; it must be in \[0, 1\)"),
        ({"clip": math.nan}, "clip is nan"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be positive"),
        ({"group_weight": 0.1}, "a group of one has no advantage; raise it to 2"),
        ({"branches_per_rollout": 0.0, "group_weight": 0.0}, "nothing to learn"),
        ({"branches_per_rollout": 0.0, "method": "gold"}, "gold learns from branches"),
        ({"branches_per_rollout": 0.0, "method": "autojudge"}, "autojudge learns from branches"),
        ({"branches_per_rollout": 0.0, "method": "r2r"}, "r2r learns from branches"),
        (
            {"branches_per_rollout": 0.0, "method": "policy_iteration", "group_weight": 0.0},
            "policy_iteration learns from branches",
        ),
        (
            {"method": "reinforc"},
            r"unknown method 'reinforc'; did you mean 'reinforce'\? Allowed: autojudge, gold,",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train_config(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"learning_rate": math.nan},
        {"cost_weight": math.nan},
        {"entropy_bonus": math.inf},
        {"max_new_tokens": 0},
        {"max_new_tokens": -3},
    ],
    ids=str,
)
def test_settings_that_are_no_numbers_or_no_lengths_are_refused_too(values) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        train_config(**values)


def test_groups_of_one_are_allowed_where_they_are_not_used() -> None:
    config = train_config(group_size=1, group_weight=0.0, policy=PolicyConfig(kind="linear"))
    train_config(method="reinforce", branches_per_rollout=0.0)
    assert config.to_dict()["policy"]["kind"] == "linear"


def test_a_correction_without_solutions_is_refused() -> None:
    with pytest.raises(ConfigError, match="correction is on and num_solutions is 0"):
        train_config(policy=PolicyConfig(correction=True))


def test_a_file_of_solutions_needs_their_number() -> None:
    with pytest.raises(ConfigError, match="solutions is x and num_solutions is 0"):
        train_config(solutions="x")


@pytest.mark.parametrize(
    "changes", [{"warm_start": "x"}, {"method": "policy_iteration"}, {"num_solutions": -1}]
)
def test_settings_that_do_not_go_together_are_refused(changes) -> None:
    with pytest.raises(ConfigError, match="num_solutions is"):
        train_config(**{"num_solutions": 5} | changes)


def test_no_rounds_are_allowed_only_behind_solutions() -> None:
    assert train_config(num_rounds=0, num_solutions=5).num_rounds == 0
    with pytest.raises(ConfigError, match="num_rounds is 0"):
        train_config(num_rounds=0)


def test_blocks_end_by_a_cost_that_is_the_same_in_all_processes() -> None:
    """Found: it was measured by the clock, so that a resumed run and replicas ended elsewhere."""
    values = {"rollouts": {"adaptive": True, "adaptive_cost": 0.3}}
    assert TrainConfig.from_dict(values).rollouts.adaptive_cost == 0.3
    with pytest.raises(ConfigError, match=r'"adaptive_cost": 0\.3'):
        TrainConfig.from_dict({"rollouts": {"adaptive": True}})
    with pytest.raises(ConfigError, match="and adaptive is off"):
        TrainConfig.from_dict({"rollouts": {"adaptive_cost": 0.3}})


def test_what_no_policy_can_use_is_refused_before_anything_is_decoded() -> None:
    """Found: 640 baselines came first, or the whole training, whose arbiter could not be loaded."""
    with pytest.raises(ConfigError, match="drafter is 'suffix', and a policy sees what a draft"):
        train_config(drafter="suffix")
    with pytest.raises(ConfigError, match="num_speculative_tokens is 1500; an arbiter can be"):
        train_config(num_speculative_tokens=1500)
    assert train_config(drafter="suffix+model", num_speculative_tokens=1024)


def test_a_home_folder_in_a_config_file_is_expanded() -> None:
    """Found: a folder named ~ was made."""
    values = {"warmup": {"num_solutions": 5, "solutions": "~/cache.safetensors"}}
    solutions = TrainConfig.from_dict(values).warmup.solutions
    assert solutions == Path.home() / "cache.safetensors"


# --- as JSON -----------------------------------------------------------------------------------


def test_numpys_numbers_become_plain_ones() -> None:
    """Found: such a run could not be resumed, and its arbiter not be saved."""
    config = replace(train_config(seed=np.int64(3)), rollouts=RolloutConfig(batch_size=np.int32(2)))
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert type(DecodeConfig(num_speculative_tokens=np.int64(4)).k) is int


def test_settings_go_to_json_and_back() -> None:
    config = train_config(
        method="gold", warm_start=Path("audit.safetensors"), max_new_tokens=9, clip=0.1, seed=4
    )
    values = json.loads(json.dumps(config.to_dict()))
    assert values["warmup"]["warm_start"] == "audit.safetensors"
    assert TrainConfig.from_dict(values) == config
    assert TrainConfig.from_dict({}) == TrainConfig()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sed": 1}, "unknown setting 'sed'; did you mean 'seed'"),
        ({"objective": {"clp": 1}}, "unknown setting of objective 'clp'; did you mean 'clip'"),
        ({"clip": 0.1, "objective": {"clip": 0.1}}, "clip stands inside 'objective' and beside it"),
        ({"objective": 3}, "objective is 3; it must be an object of settings"),
        ([], r"settings is \[\]; it must be an object of settings"),
        ({"seed": "1"}, "seed is '1'; it must be a whole number"),
        ({"seed": True}, "seed is True; it must be a whole number"),
        ({"objective": {"clip": None}}, "objective.clip is None; it must be a number"),
        ({"policy": {"correction": 1}}, "policy.correction is 1; it must be true or false"),
        ({"warmup": {"solutions": 1}}, "warmup.solutions is 1; it must be a path"),
        ({"ridge": {"scalars": "gap_p"}}, "ridge.scalars is 'gap_p'; it must be a list"),
        ({"ridge": {"scalars": [1]}}, r"ridge.scalars\[0\] is 1; it must be a string"),
        ({"ridge": {"scalars": ["gap"]}}, "unknown scalar of ridge.scalars: 'gap'; did you mean"),
        ({"method": "golt"}, "unknown method 'golt'; did you mean 'gold'"),
        ({"objective": {"clip": 1.0}}, r"clip is 1.0; it must be in \[0, 1\)"),
    ],
)
def test_a_config_file_with_an_error_is_refused_by_name(values: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig.from_dict(values)


def test_a_setting_has_one_name_in_all_groups_and_in_what_older_versions_recorded() -> None:
    values = TrainConfig().to_dict()
    names = [name for group in values.values() if isinstance(group, dict) for name in group]
    assert len(set(names)) == len(names) and not set(names) & set(values)
    assert flat(values) == flat(flat(values)) and flat(values)["num_tune"] == 500
