"""Learning on a pair that is a table, where the best policy is known."""

from __future__ import annotations

import pytest
import torch

from cospec.arbiters.policy import PolicyConfig
from cospec.features import SCALAR_NAMES
from cospec.rl.types import BranchData
from tests.rl.helpers import Y_WINS, learner, letters


@pytest.mark.parametrize(
    "credit",
    [
        pytest.param({}, id="both"),
        pytest.param({"group_size": 1, "group_weight": 0.0}, id="branches"),
        pytest.param(
            {"branches_per_rollout": 0.0, "group_weight": 1.0, "group_size": 8},
            id="groups",
        ),
    ],
)
def test_the_arbiter_learns_which_of_the_drafts_tokens_the_answer_needs(
    table, tmp_path, credit
) -> None:
    """Right is an answer with a y, which only the draft proposes, and without its x."""
    it = learner(table, letters(tmp_path, "^[^x]*y[^x]*$"), **credit)
    it.run()
    first, last = it.state.history[0], it.state.history[-1]
    assert first["accuracy_target"] == 0 and first["accuracy"] < 0.45
    assert last["accuracy"] > 0.8 and last["reward"] > first["reward"] + 0.4
    assert last["tune_accuracy"] == 1 and last["tune_wins"] == 4 and last["tune_losses"] == 0


def test_where_overrides_spoil_every_answer_they_are_unlearnt(table, tmp_path) -> None:
    task = letters(tmp_path, "^[^xy]*$")
    it = learner(table, task, num_rounds=4, policy=PolicyConfig(hidden_size=8, init_logit=0.0))
    it.run()
    rates = [m["override_rate"] for m in it.state.history]
    assert rates[0] > 0.35 and rates[-1] < 0.1
    assert it.state.history[-1]["tune_accuracy"] == 1


def test_where_no_reward_differs_the_policy_stays_as_it_was(table, tmp_path) -> None:
    it = learner(table, letters(tmp_path, "a"), num_rounds=3, tune_every=3)
    it.run()
    assert all(m["branches_that_differ"] == 0 for m in it.state.history)
    assert all(m["frac_reward_zero_std"] == 1 for m in it.state.history)
    assert max(m["override_rate"] for m in it.state.history) < 0.25


def test_where_every_answer_is_right_a_price_of_time_teaches_to_override(table, tmp_path) -> None:
    it = learner(table, letters(tmp_path, "a"), num_rounds=4, tune_every=4, cost_weight=1.0)
    it.run()
    first, last = it.state.history[0], it.state.history[-1]
    assert first["accuracy"] == last["accuracy"] == 1
    assert first["override_rate"] < 0.25 and last["override_rate"] > 0.75
    assert last["relative_cost"] < first["relative_cost"] - 0.2


def test_reinforce_learns_without_a_branch(table, tmp_path) -> None:
    it = learner(
        table, letters(tmp_path, Y_WINS), method="reinforce", group_size=8, group_weight=0.0
    )
    it.run()
    first, last = it.state.history[0], it.state.history[-1]
    assert all(m["num_branches"] == m["branch_gain"] == 0 for m in it.state.history)
    assert all(len(part) == 0 for part in it.state.replay)
    assert last["reward"] > first["reward"] + 0.4 and last["tune_accuracy"] == 1


@pytest.mark.parametrize("group_weight", [0.0, 1.0])
def test_rewards_that_do_not_count_move_nothing(table, tmp_path, group_weight) -> None:
    """Found: with advantages of weight 0 the optimizer followed the entropy bonus alone."""
    changes = dict(branches_per_rollout=1e-9, group_weight=group_weight)
    policy = PolicyConfig(hidden_size=8, init_logit=-1.0)
    it = learner(table, letters(tmp_path, Y_WINS), policy=policy, **changes)
    assert it.play_round()["frac_reward_zero_std"] < 1
    assert len(it.state.replay[0].features) == 0
    moved = it.state.policy.layers[-1].weight - it.state.start.layers[-1].weight
    assert bool(moved.any()) == bool(group_weight)


def test_branches_that_have_aged_away_move_nothing(table, tmp_path) -> None:
    """Found: they let the optimizer follow the entropy bonus alone."""
    it = learner(table, letters(tmp_path, "a"), group_size=1, group_weight=0.0, replay_decay=0.0)
    x = torch.randn(4, len(SCALAR_NAMES))
    it.state.replay = [BranchData(x, torch.ones(4), torch.zeros(4), torch.ones(4).bool())]
    it.play_round()
    assert len(it.state.replay) == 2 and not it.state.replay[1].delta_reward.any()
    assert not (it.state.policy.layers[-1].weight - it.state.start.layers[-1].weight).any()
