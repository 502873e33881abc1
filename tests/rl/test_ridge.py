"""Policy iteration: a linear policy fitted to all branches, round after round."""

from __future__ import annotations

import math

import pytest
import torch

from cospec.arbiters.policy import Policy, PolicyConfig
from cospec.errors import ConfigError
from cospec.features import HiddenFeatures, ScalarFeatures
from cospec.rl.config import RidgeConfig, TrainConfig
from cospec.rl.methods import Labels
from cospec.rl.ridge import TRUSTED, fit, penalties
from tests.rl.conftest import train_config
from tests.rl.helpers import X_SPOILS, Y_WINS, assert_same_state, audit_file, learner, letters
from tests.rl.helpers import trainer as tiny

HIDDEN = HiddenFeatures(torch.zeros(5, dtype=torch.int64), (4, 3), torch.empty(0, 6))
METHOD = dict(method="policy_iteration", group_size=1, group_weight=0.0, scalar_penalty=100.0)


def linear(num_features: int, num_hidden: int) -> Policy:
    return Policy(num_features, PolicyConfig("linear", hidden_projection=1), 0, num_hidden)


def test_hidden_states_leave_out_embeddings_and_all_scalars_but_one() -> None:
    found = penalties(HIDDEN, RidgeConfig(trusted_penalty=2.0, state_penalty=50.0))
    used = [name for name, one in zip(HIDDEN.names, found.tolist(), strict=True) if one < math.inf]
    assert used[0] == TRUSTED and len(used) == 1 + 4 + 4 + 3
    assert not any("embedding" in name for name in used)
    assert found[HIDDEN.names.index(TRUSTED)] == 2.0 and found[-13:-12].tolist() == [50.0]


def test_scalars_alone_are_all_used() -> None:
    features = ScalarFeatures(HIDDEN.kinds)
    found = penalties(features, RidgeConfig(scalar_penalty=7.0))
    assert found.tolist() == [7.0] * len(features.names)


@pytest.mark.parametrize("features", [HIDDEN, ScalarFeatures(HIDDEN.kinds)])
def test_scalars_can_be_chosen_by_name(features) -> None:
    chosen = ("block_mean_log_q", "lookahead_share")
    found = penalties(features, RidgeConfig(scalars=chosen, scalar_penalty=7, trusted_penalty=7))
    scalars = dict(zip(features.names, found.tolist()[: len(features.scalars)], strict=False))
    assert {name for name, one in scalars.items() if one == 7} == set(chosen)
    assert sum(one < math.inf for one in scalars.values()) == 2


@pytest.mark.parametrize("num_hidden", [0, 9])
def test_the_fit_is_the_minimum_of_the_penalised_loss(num_hidden) -> None:
    """No step along any weight lowers it; the policy gives the logits that were fitted."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(60, 12, generator=random) * 3 + 1
    labels = Labels(x[:, 0] + x[:, 11] > 2, torch.rand(60, generator=random))
    labels.weight[:20] = 0.0
    penalty = torch.tensor([1.0] * 5 + [20.0] * 6 + [5.0])
    policy = linear(12, num_hidden)
    assert 0 < fit(policy, x, labels, penalty) < math.log(2)
    seen = ((x[20:] - x[20:].mean(0)) / x[20:].std(0)).double()

    head, bias = policy.layers[0].weight[0].detach(), policy.layers[0].bias.detach()
    weight = (
        head if not num_hidden else torch.cat([head[:-1], policy.projection.weight[0].detach()])
    )
    found = torch.cat([weight, bias]).double().requires_grad_()
    logits = seen @ found[:-1] + found[-1]
    torch.testing.assert_close(policy(x)[20:].double(), logits, rtol=0, atol=1e-5)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, labels.keep[20:].double(), labels.weight[20:].double(), reduction="sum"
    )
    (loss + (penalty * found[:-1].square()).sum() / 2).backward()
    assert found.grad.abs().max() < 2e-2


def test_where_nothing_matters_the_policy_stays_as_it_was() -> None:
    policy = linear(4, 0)
    before = {name: one.clone() for name, one in policy.state_dict().items()}
    assert (
        fit(policy, torch.randn(6, 4), Labels(torch.ones(6) > 0, torch.zeros(6)), before["std"])
        == 0
    )
    assert all(torch.equal(one, before[name]) for name, one in policy.state_dict().items())


def test_the_first_round_is_the_targets_path_and_later_ones_win(table, tmp_path) -> None:
    """Half of the problems need a y, which only the draft proposes; none bears its x."""
    it = learner(
        table, letters(tmp_path, Y_WINS, X_SPOILS), branches_per_rollout=9.0, num_rounds=4, **METHOD
    )
    it.run()
    first, last = it.state.history[0], it.state.history[-1]
    assert first["override_rate"] == 0 and first["accuracy"] == first["accuracy_target"] < 0.7
    assert last["accuracy"] == last["tune_accuracy"] == 1 and last["relative_cost"] <= 1
    shape = it.state.policy.config
    assert (shape.kind, shape.hidden_projection) == ("linear", 1)
    again = TrainConfig.from_dict(it.config.to_dict() | {"method": "rl"})
    assert again.policy_shape.kind == "mlp", "found: train.json of this run made it linear"


def test_overrides_that_spoil_answers_are_not_learnt(table, tmp_path) -> None:
    it = learner(
        table, letters(tmp_path, X_SPOILS), branches_per_rollout=9.0, num_rounds=2, **METHOD
    )
    it.run()
    assert it.state.history[-1]["accuracy"] == 1


def test_an_audit_is_fitted_before_the_rounds_and_replayed_in_them(table, tmp_path) -> None:
    """With no round at all, the policy is what the audit gives."""
    it = learner(
        table,
        letters(tmp_path, Y_WINS),
        warm_start=audit_file(tmp_path),
        num_rounds=0,
        **METHOD,
    )
    it.run()
    features, delta, *_ = it.state.replay[0].columns
    with torch.no_grad():
        keep = it.state.policy(features) > 0
    assert len(delta) == 40 and ((keep == (delta > 0)).float().mean()) > 0.9
    assert it.state.history[0]["num_branches"] == 40


def test_a_killed_run_resumes(pair, task, tmp_path) -> None:
    settings = {**METHOD, "num_rounds": 2, "branches_per_rollout": 4.0}
    whole = tiny(pair, task, None, **settings)
    whole.run()
    half = tiny(pair, task, tmp_path, **settings)
    metrics = half.play_round()
    half.state.round += 1
    half.keep(metrics | half.evaluate(), lambda _: None)
    again = tiny(pair, task, tmp_path, **settings)
    again.run()
    assert_same_state(whole, again)


def test_penalties_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="state_penalty is 0"):
        train_config(state_penalty=0.0)
