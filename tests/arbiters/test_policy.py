"""The network of a trained arbiter."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from cospec.arbiters.policy import Policy, PolicyConfig
from cospec.errors import ConfigError
from cospec.features import ScalarFeatures
from tests.arbiters.trained import (
    TOKEN_KINDS,
    F,
    mismatches,
    policy,
)


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_an_untrained_policy_says_the_same_of_everything(kind: str) -> None:
    network = Policy(F, PolicyConfig(kind=kind, init_logit=-1.5))
    assert network(torch.randn(7, F)).tolist() == [-1.5] * 7


def test_the_seed_decides_the_first_weights_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (Policy(F, PolicyConfig(), seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.layers[0].weight, again.layers[0].weight)
    assert not torch.equal(first.layers[0].weight, other.layers[0].weight)


def test_features_are_normalized_and_outliers_cut_at_ten_spreads() -> None:
    network = Policy(3, PolicyConfig(kind="linear", init_logit=0.0))
    seen = torch.tensor([[1.0, 5.0, 7.0], [3.0, -5.0, 7.0], [2.0, 0.0, 7.0]])
    network.normalize_by(seen)
    assert network.mean.tolist() == [2, 0, 7] and network.std.tolist() == [1, 5, 1]
    with torch.no_grad():
        network.layers[-1].weight.copy_(torch.tensor([[1.0, 10.0, 100.0]]))
    rows = torch.tensor([[3.0, 10.0, 7.0], [1e9, 0.0, 7.0], [2.0, -1e9, 7.5]])
    assert network(rows).tolist() == pytest.approx([21, 10, -50])


def test_a_feature_that_never_changes_can_be_left_out() -> None:
    network = Policy(2, PolicyConfig(kind="linear", init_logit=0.0))
    network.normalize_by(torch.tensor([[1.0, 7.0], [3.0, 7.0]]), constant_spread=math.inf)
    with torch.no_grad():
        network.layers[-1].weight.fill_(1.0)
    low, high = network(torch.tensor([[3.0, -50.0], [3.0, 50.0]])).tolist()
    assert low == high != 0


@pytest.mark.parametrize("num_rows", [0, 1])
def test_normalizing_by_next_to_nothing_leaves_the_scale_alone(num_rows: int) -> None:
    network = Policy(3, PolicyConfig(kind="linear"))
    network.normalize_by(torch.full((num_rows, 3), 4.0))
    assert network.mean.tolist() == [4.0 * num_rows] * 3 and network.std.tolist() == [1.0] * 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "tree"}, "kind of policy is 'tree'; it must be mlp or linear"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"hidden_projection": 0}, "hidden_projection is 0"),
        ({"dropout": 1.0}, r"dropout is 1.0; it must be in \[0, 1\)"),
        ({"dropout": math.nan}, "dropout is nan"),
    ],
)
def test_shapes_that_no_policy_has_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PolicyConfig(**values)


def test_hidden_states_go_through_a_projection_of_their_own() -> None:
    network = Policy(7, PolicyConfig(kind="linear", hidden_projection=2), num_hidden=4)
    assert network.layers[-1].weight.shape == (1, 3 + 2)
    with torch.no_grad():
        network.layers[-1].weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 10.0, 100.0]]))
        network.layers[-1].bias.zero_()
        network.projection.weight.copy_(torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, -1]]))
    x = torch.tensor([[1.0, 1, 1, 1, 2, 3, 4]])
    assert network(x).tolist() == [1 + 2 + 3 + 10 * 3 + 100 * -1]
    shapes = [PolicyConfig(hidden_projection=n) for n in (2, 16)]
    first, second = (Policy(7, shape, 5).state_dict() for shape in shapes)
    torch.testing.assert_close(first, second, rtol=0, atol=0)  # no states, no projection


def test_dropout_takes_a_generator_and_is_off_without_one() -> None:
    network = Policy(3, PolicyConfig(kind="linear", init_logit=0.0, dropout=0.25))
    with torch.no_grad():
        network.layers[-1].weight.copy_(torch.tensor([[1.0, 0.0, 0.0]]))
    x = torch.ones(4000, 3)
    assert network(x).tolist() == [1.0] * 4000
    dropped, again = (network(x, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(dropped, again)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert float((dropped == 0).float().mean()) == pytest.approx(0.25, abs=0.04)


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_a_correction_begins_as_none_and_takes_up_what_was_left_out(kind) -> None:
    plain, it = (policy(kind=kind, correction=on) for on in (False, True))
    first, last = 4, F - 1  # two that never changed in what was learned from
    for network in (plain, it):
        network.std[[first, last]] = torch.inf
    x = ScalarFeatures(TOKEN_KINDS)(mismatches())
    x[:, first] = torch.arange(len(x)).float()  # it does now; the last does not
    x[:, last] = 1.0
    with torch.no_grad():
        before = it(x)
        assert torch.equal(before, plain(x))
        it.take_up(x)
        assert torch.equal(it(x), before)
        assert it.mean[first] == x[:, first].mean() and it.std[first] == x[:, first].std()
        assert it.std[last].isinf()
        others = [i for i in range(F) if i not in (first, last)]
        assert torch.equal(it.std[others], plain.std[others])
        it.correction.weight[0, [first, last]] = torch.tensor([2.0, 5.0])
        it.correction.bias.fill_(0.5)
        normal = (x[:, first] - x[:, first].mean()) / x[:, first].std()
        torch.testing.assert_close(it(x), before + 2 * normal + 0.5)


def test_what_a_correction_takes_makes_the_logit_with_it() -> None:
    network = policy(correction=True)
    x = ScalarFeatures(TOKEN_KINDS)(mismatches())
    with torch.no_grad():
        without = network(x)
        network.correction.weight.copy_(torch.linspace(-1, 1, F)[None])
        network.correction.bias.fill_(0.25)
        taken = network.corrigible(x)
        assert taken.shape == (len(x), F + 1) and torch.equal(taken[:, -1], without)
        torch.testing.assert_close(
            network(x), without + taken[:, :-1] @ torch.linspace(-1, 1, F) + 0.25
        )


def test_a_correction_is_of_scalars_and_no_input_of_it_is_dropped() -> None:
    network = Policy(5, PolicyConfig(dropout=0.5, correction=True), num_hidden=2)
    assert network.correction.weight.shape == (1, 3)
    network.std[[1, 4]] = torch.inf
    x = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    network.take_up(x)
    assert network.std.isinf().tolist() == [False, False, False, False, True]
    with torch.no_grad():
        network.correction.weight.fill_(1.0)
        dropped = network(x, torch.Generator().manual_seed(1))  # its head is still zero
        assert torch.equal(dropped, network(x))
        assert len(dropped.unique()) == 30
