"""Intervals and tests against values worked by hand or tabled elsewhere."""

from __future__ import annotations

import math

import pytest

from cospec.evaluation.stats import (
    accuracy_delta_interval,
    mcnemar_p,
    ratio_interval,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("num_right", "num_total", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_intervals_are_those_of_the_literature(num_right, num_total, low, high):
    """The last one is the example of Newcombe (1998), table I."""
    assert wilson_interval(num_right, num_total) == pytest.approx((low, high), abs=5e-5)


def test_a_wilson_interval_is_what_its_formula_says():
    z, share, n = 1.959963984540054, 0.3, 50
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    assert wilson_interval(15, 50) == pytest.approx((centre - half, centre + half))


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [
        (0, 0, 1.0),
        (3, 3, 1.0),
        (1, 9, 2 * (1 + 10) / 2**10),
        (9, 1, 2 * (1 + 10) / 2**10),
        (6, 0, 2 / 2**6),
        (1, 2, 1.0),
    ],
)
def test_mcnemar_is_the_two_sided_tail_of_a_fair_coin(wins, losses, p):
    assert mcnemar_p(wins, losses) == pytest.approx(p)


def test_the_interval_of_a_difference_is_the_normal_one_for_many_problems():
    wins, losses, n = 90, 60, 1000
    spread = math.sqrt((wins + losses) / n - ((wins - losses) / n) ** 2) / math.sqrt(n)
    expected = 0.03 - 1.96 * spread, 0.03 + 1.96 * spread
    assert accuracy_delta_interval(wins, losses, n) == pytest.approx(expected, abs=2e-3)


def test_the_interval_of_a_difference_is_a_point_where_nothing_varies():
    assert accuracy_delta_interval(0, 0, 20) == (0.0, 0.0)
    assert accuracy_delta_interval(20, 0, 20) == (1.0, 1.0)


def test_the_interval_of_a_ratio_covers_every_draw_of_two_chunks():
    """Of two chunks four equally likely draws: 1/2, twice 3/3, 2/1."""
    assert ratio_interval([1.0, 2.0], [2.0, 1.0]) == (0.5, 2.0)
    assert ratio_interval([3.0, 6.0, 9.0], [1.0, 2.0, 3.0]) == pytest.approx((3.0, 3.0))


def test_one_chunk_says_nothing_of_the_spread():
    assert ratio_interval([1.0], [2.0]) is None


def test_bootstraps_repeat_under_their_seed_and_move_with_it():
    times = [math.exp(math.sin(i)) for i in range(20)], [1.0 + i / 10 for i in range(20)]
    assert ratio_interval(*times) == ratio_interval(*times) != ratio_interval(*times, seed=1)
    assert accuracy_delta_interval(9, 4, 37) == accuracy_delta_interval(9, 4, 37)
