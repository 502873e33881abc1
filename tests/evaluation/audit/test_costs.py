"""Block counts and predicted speed-ups, worked by hand."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from cospec.evaluation.audit.costs import num_blocks, predicted_speedups
from cospec.models import costs as measured
from cospec.models.costs import Costs, measure_costs
from tests.conftest import family_pair


@pytest.mark.parametrize(
    ("accepted", "k", "blocks"),
    [
        ("1111", 0, 4),  # plain decoding
        ("0000", 3, 4),  # every block is a correction
        ("1111", 3, 1),  # three drafted tokens and the bonus
        ("11111", 3, 2),
        ("1101", 3, 2),  # 1 1 correction, then 1
        ("1110", 3, 1),  # the draft is not asked about the bonus token
        ("011", 1, 2),
        ("", 4, 0),
    ],
)
def test_blocks_are_counted_as_the_engine_walks(accepted: str, k: int, blocks: int) -> None:
    assert num_blocks(accepted, k) == blocks


def test_the_speed_up_is_that_of_the_forwards() -> None:
    costs = Costs(batch_size=1, context=10, draft_step_s=0.1, verify_s=[1.0, 1.2, 1.5])
    one, two = predicted_speedups(costs, ["1101", "1111"])
    # k = 1: blocks 11 0 1 and 11 11: 5 x (0.1 + 1.2) against 8 x 1.0
    assert one == {"k": 1, "mean_acceptance_length": 1.6, "speedup": pytest.approx(8 / 6.5)}
    # k = 2: 110 1 and 111 1: 4 x (0.2 + 1.5)
    assert two["speedup"] == pytest.approx(8 / 6.8)


def test_costs_are_measured_for_every_length() -> None:
    costs = measure_costs(
        family_pair("llama"), max_tokens=3, context=500, batch_size=2, num_trials=1
    )
    assert len(costs.verify_s) == 3 and min(costs.verify_s) > 0 and costs.draft_step_s > 0
    assert costs.context + 3 <= family_pair("llama").context_length
    assert Costs(**asdict(costs)) == costs


@pytest.mark.parametrize(("enough_s", "num_trials"), [(60.0, 9), (-1.0, 5)])
def test_a_slow_pair_gets_three_trials_after_two_that_warm_up(monkeypatch, enough_s, num_trials):
    """Found: an audit of three problems measured costs for ten minutes, and told nothing."""
    made = []
    monkeypatch.setattr(measured, "_ENOUGH_S", enough_s)
    monkeypatch.setattr(measured, "_seconds", lambda *args: made.append(args) or float(len(made)))
    measure_costs(family_pair("llama"), max_tokens=2, context=8, num_trials=7)
    assert len(made) == 3 * num_trials  # the draft's step, and two lengths of the target's


def test_the_bound_is_what_the_forwards_of_a_block_allow():
    costs = Costs(1, 10, 0.25, [1.0, 1.0, 1.5])
    assert costs.bound(3.0, 2, 2) == 3 / 2
    assert costs.bound(3.0, 2, 0) == 3 / 1.5, "looked up"
    assert costs.bound(2.0, 1.5, 1.5) == 2 / (0.375 + 1.25), "between two measured lengths"
