"""Policy iteration: a linear policy fitted to all branches, round after round."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from cospec.arbiters.policy import Policy, PolicyConfig
from cospec.errors import ConfigError
from cospec.evaluation.audit.dataset import write_dataset
from cospec.features import SCALAR_NAMES, HiddenFeatures, ScalarFeatures
from cospec.rl.config import RidgeConfig, TrainConfig
from cospec.rl.methods import Labels
from cospec.rl.ridge import TRUSTED, fit, fit_reward, penalties
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


def answers() -> tuple[torch.Tensor, list[int], torch.Tensor, torch.Tensor]:
    """Sixty problems of one to four mismatches, whose rewards follow from the first feature."""
    random = torch.Generator().manual_seed(1)
    sizes = torch.randint(1, 5, (60,), generator=random).tolist()
    x = torch.randn(sum(sizes), 6, generator=random)
    corrected = (x[:, 0] + torch.randn(len(x), generator=random) < -0.3).float()
    kept = (torch.rand(60, generator=random) < 0.4).float()
    return x, sizes, corrected, kept


def expected_by_hand(keep: list[float], corrected: list[float], kept: float) -> float:
    """Expected reward of one problem: the draft's tokens stand up to the first correction."""
    total, reached = 0.0, 1.0
    for p, reward in zip(keep, corrected, strict=True):
        total += reached * (1 - p) * reward
        reached *= p
    return total + reached * kept


def test_the_expected_reward_is_that_of_all_answers_and_cannot_be_raised() -> None:
    """It equals the sum over answers, and no small step along any weight improves it."""
    x, sizes, corrected, kept = answers()
    penalty = torch.tensor([0.1] * 5 + [math.inf])
    policy = linear(6, 0)
    fit(policy, x, Labels(corrected == 0, torch.ones(len(x))), penalty)
    ends = [0, *torch.tensor(sizes).cumsum(0).tolist()]

    def by_hand() -> float:
        keep = policy(x).sigmoid().tolist()
        parts = [
            expected_by_hand(keep[a:b], corrected[a:b].tolist(), one)
            for (a, b), one in zip(pairwise(ends), kept.tolist(), strict=True)
        ]
        return sum(parts) / len(parts)

    def objective() -> float:
        weights = policy.layers[0].weight[0].detach()
        used = penalty < math.inf
        return 4 * 60 * by_hand() - float((penalty * weights.square())[used].sum()) / 2

    before = by_hand()
    found = fit_reward(policy, x, sizes, corrected, kept, penalty)
    assert found == pytest.approx(by_hand(), abs=1e-5) and found > before
    assert policy.layers[0].weight[0, 5] == 0, "a feature that is left out"
    best, weights = objective(), policy.layers[0].weight.detach().clone()
    for i in range(5):
        for step in (-0.05, 0.05):
            with torch.no_grad():
                policy.layers[0].weight[0, i] += step
            assert objective() < best + 1e-3
            with torch.no_grad():
                policy.layers[0].weight.copy_(weights)


def test_a_policy_gives_back_the_weights_that_it_was_set_to() -> None:
    for num_hidden in (0, 9):
        policy = linear(12, num_hidden)
        weights, bias = torch.randn(12), torch.randn(())
        policy.set_linear(weights, bias)
        found, found_bias = policy.linear()
        torch.testing.assert_close(found, weights)
        assert found_bias == bias


def test_an_audit_of_whole_answers_makes_an_arbiter_of_one_correction(pair, task, tmp_path) -> None:
    x, sizes, corrected, kept = answers()
    x = torch.cat([x, torch.zeros(len(x), len(SCALAR_NAMES) - 6)], dim=1)
    path = tmp_path / "whole.safetensors"
    config = dict(method="one_correction", warm_start=path, max_corrections=1, num_rounds=0)
    config |= dict(group_size=1, group_weight=0.0, scalar_penalty=0.1)

    def write(outcomes: list[bool]) -> None:
        rows = iter(zip(x.tolist(), outcomes, corrected.bool().tolist(), strict=True))
        records = [
            {"id": str(i), "mismatches": [mismatch(*next(rows)) for _ in range(size)]}
            for i, size in enumerate(sizes)
        ]
        write_dataset(path, records, SCALAR_NAMES, {})

    write([bool(one) for one, size in zip(kept, sizes, strict=True) for _ in range(size)])
    it = tiny(pair, task, **config)
    it.run()
    (only,) = it.state.history
    assert 0.5 < only["expected_accuracy"] < 1
    assert it.arbiter.policy.linear()[0][0] > 0, "the target is wrong where the feature is large"
    write([i % 2 == 0 for i in range(len(x))])
    with pytest.raises(ConfigError, match="does not hold all answers with one correction"):
        tiny(pair, task, **config).run()


def mismatch(features: list[float], kept: bool, corrected: bool) -> dict[str, object]:
    found = {"position": 0, "draft_id": 1, "target_id": 2, "features": features}
    return found | {"draft_correct": kept, "target_correct": corrected}


@pytest.mark.parametrize(
    "changes", [{"warm_start": None, "num_rounds": 1}, {"max_corrections": None}, {"num_rounds": 2}]
)
def test_one_correction_says_what_it_needs(changes) -> None:
    settings = dict(method="one_correction", warm_start="x", max_corrections=1, num_rounds=0)
    with pytest.raises(ConfigError, match=r"--warm-start FILE --max-corrections 1 --num-rounds 0"):
        train_config(group_weight=0.0, **settings | changes)
