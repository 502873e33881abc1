"""Intervals and tests against values worked by hand or tabled elsewhere."""

from __future__ import annotations

import math

import pytest

from cospec.evaluation.stats import (
    accuracy_delta_interval,
    cluster_interval,
    mcnemar_p,
    speedup,
    speedup_interval,
    wilson_interval,
)
from cospec.evaluation.summary import paired


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


def test_the_interval_of_a_difference_is_no_point_where_none_was_seen():
    """Found: it was one, as if 20 problems ruled out any difference. Clopper and Pearson's upper
    bound for none of 20 is 0.1684.
    """
    low, high = accuracy_delta_interval(0, 0, 20)
    assert -low == high == pytest.approx(1 - 0.025 ** (1 / 20))
    assert high == pytest.approx(0.1684, abs=5e-5)
    assert accuracy_delta_interval(20, 0, 20) == (1.0, 1.0)


def test_an_arm_that_is_compared_with_itself_differs_by_nothing():
    ours = [{"correct": True}, {"correct": False}]
    assert paired(ours, ours)["accuracy_delta_ci95"] == (0.0, 0.0)
    low, high = paired(ours, list(ours))["accuracy_delta_ci95"]
    assert low < 0 < high


def test_the_interval_over_clusters_is_as_wide_as_clusters_differ():
    """400 items in 100 clusters whose means are 0 or 1: as 100 items, not as 400."""
    low, high = cluster_interval([(4.0 * (i % 2), 4) for i in range(100)])
    assert (low, high) == pytest.approx((0.5 - 1.96 * 0.05, 0.5 + 1.96 * 0.05), abs=0.01)
    assert cluster_interval([(1.0, 4)] * 100) == (0.25, 0.25)


def test_clusters_without_items_have_no_part_in_their_interval():
    """Eight of 27 resamples draw none that has any."""
    assert cluster_interval([(1.0, 1), (0.0, 0), (0.0, 0)]) == (1.0, 1.0)


def test_a_speedup_is_a_ratio_of_tokens_a_second():
    """Half the time for half as many tokens is no speed-up."""
    assert speedup([(4.0, 10), (4.0, 10)], [(2.0, 5), (2.0, 5)]) == 1.0
    assert speedup([(1.0, 10), (3.0, 10)], [(1.0, 10), (1.0, 10)]) == 2.0
    ours = [(seconds, 10) for seconds in (1.0, 2.0, 3.0, 4.0, 5.0)]
    assert speedup_interval([(3 * s, n) for s, n in ours], ours) == pytest.approx((3.0, 3.0))


def test_the_interval_of_a_speedup_is_that_of_its_scatter_over_chunks():
    """Our time is 1 or 3 by turns: the mean of 100 has a standard error of 0.1."""
    theirs, ours = [(2.0, 10)] * 100, [(1.0 + 2 * (i % 2), 10) for i in range(100)]
    low, high = speedup_interval(theirs, ours)
    assert 2 / low == pytest.approx(2 + 0.196, abs=0.02)
    assert 2 / high == pytest.approx(2 - 0.196, abs=0.02)


def test_four_chunks_say_too_little_of_the_spread():
    ours, theirs = [(1.0, 10)] * 4, [(2.0, 10)] * 4
    assert speedup_interval(theirs, ours) is None
    assert speedup_interval(theirs + theirs, ours + ours) is not None


def test_bootstraps_give_the_same_interval_for_the_same_data():
    times = [(math.exp(math.sin(i)), 9) for i in range(20)], [(1.0 + i, 7) for i in range(20)]
    assert speedup_interval(*times) == speedup_interval(*times)
    drawn = [accuracy_delta_interval(9000, 4000, 99_991) for _ in range(2)]
    assert drawn[0] == drawn[1]
