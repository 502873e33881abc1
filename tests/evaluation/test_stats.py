"""Intervals and tests against values worked by hand or tabled elsewhere."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import multinomial, t

from cospec.evaluation.stats import (
    accuracy_delta_interval,
    cluster_interval,
    mcnemar_p,
    share_interval,
    sign_flip_p,
    speedup,
    speedup_interval,
    tango_interval,
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


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (3, 3), (1, 9), (54, 22), (280, 24)])
def test_the_sign_flip_test_of_clusters_of_one_is_mcnemars(wins, losses):
    changes = [1] * wins + [0] * 5 + [-1] * losses
    assert sign_flip_p(changes) == pytest.approx(mcnemar_p(wins, losses), rel=1e-9)


@pytest.mark.parametrize("changes", [[3, -1, 2, 0, 1], [5, -4], [-2, -2, -2], [7], [0, 0]])
def test_the_sign_flip_test_counts_all_signs(changes):
    sums = [
        sum(sign * change for sign, change in zip(signs, changes, strict=True))
        for signs in itertools.product((1, -1), repeat=len(changes))
    ]
    expected = sum(abs(found) >= abs(sum(changes)) for found in sums) / len(sums)
    assert sign_flip_p(changes) == pytest.approx(expected)


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


def test_the_score_interval_of_pairs_is_that_of_the_literature():
    """Fagerland, Lydersen and Laake (2014), table IV: airway reactivity of 21 children."""
    assert tango_interval(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)
    assert tango_interval(7, 1, 21) == pytest.approx((0.026, 0.517), abs=5e-4)


def test_each_end_of_the_score_interval_has_a_score_of_z():
    """By the constrained law of largest likelihood, found on a grid rather than by its formula."""
    wins, losses, n = 9, 4, 60
    for end in tango_interval(wins, losses, n):
        q = np.linspace(max(0.0, -end) + 1e-9, (1 - end) / 2 - 1e-9, 400_001)  # losses' share
        ties = n - wins - losses
        best = q[
            np.argmax(losses * np.log(q) + wins * np.log(q + end) + ties * np.log(1 - 2 * q - end))
        ]
        score = (wins - losses - n * end) / math.sqrt(n * (2 * best + end - end**2))
        assert abs(score) == pytest.approx(1.959964, abs=1e-3)


def test_few_differences_exclude_nothing_that_the_exact_test_does_not():
    """Found: 1 win and no loss among 300 gave 0.0 to +1.0, and 4 to 0 of 200 excluded 0."""
    low, high = accuracy_delta_interval(1, 0, 300)
    assert low < 0 and high > 2 / 300
    for wins in range(30):
        for losses in range(30):
            low, high = accuracy_delta_interval(wins, losses, 200)
            assert low <= (wins - losses) / 200 <= high
            assert low <= 0 <= high or mcnemar_p(wins, losses) < 0.05
    assert accuracy_delta_interval(20, 0, 20)[1] == 1.0


@pytest.mark.parametrize("won", [0.02, 0.05, 0.2])
@pytest.mark.parametrize("lost", [0.0, 0.01, 0.1])
def test_the_interval_of_a_difference_covers_it_in_95_per_cent_of_samples(won, lost):
    """Summed over all outcomes of 60 problems, so that nothing is left to chance."""
    n = 60
    cells = [(w, x, n - w - x) for w in range(n + 1) for x in range(n + 1 - w)]
    law = multinomial.pmf(np.array(cells), n, [won, lost, 1 - won - lost])
    likely = [i for i in np.argsort(-law) if law[i] > 1e-7]
    covered = 0.0
    for i in likely:
        low, high = accuracy_delta_interval(*cells[i][:2], n)
        covered += law[i] * (low <= won - lost <= high)
    assert covered / sum(law[i] for i in likely) >= 0.95


def test_an_arm_that_is_compared_with_itself_differs_by_nothing():
    ours = [{"correct": True}, {"correct": False}]
    assert paired(ours, ours)["accuracy_delta_ci95"] == (0.0, 0.0)
    low, high = paired(ours, list(ours))["accuracy_delta_ci95"]
    assert low < 0 < high


def test_the_interval_over_clusters_is_as_wide_as_clusters_differ():
    """400 items in 100 clusters whose means are 0 or 1: as 100 items, not as 400."""
    for interval in (cluster_interval, share_interval):
        low, high = interval([(4.0 * (i % 2), 4) for i in range(100)])
        assert (low, high) == pytest.approx((0.5 - 1.96 * 0.05, 0.5 + 1.96 * 0.05), abs=0.01)


def test_an_interval_over_few_clusters_is_about_that_of_student():
    """Found: the percentiles of 6 clusters were called 95 %, and covered 85."""
    changes = [0.1, -0.2, 0.3, 0.0, 0.2, -0.1]
    mean, spread = np.mean(changes), np.std(changes, ddof=1) / math.sqrt(6)
    half = t.ppf(0.975, 5) * spread
    low, high = cluster_interval([(10 * each, 10) for each in changes])
    assert (low, high) == pytest.approx((mean - half, mean + half), rel=0.06)


def test_an_interval_stays_where_its_number_can_be():
    low, high = share_interval([(0, 4), (0, 4), (3, 4)])
    assert (low, high) == (0.0, 1.0)
    assert cluster_interval([(-4, 4), (4, 4), (4, 4)]) == (-1.0, 1.0)


def test_where_no_cluster_differs_the_interval_is_that_of_items():
    """Found: points such as +0.0 (0.0 to 0.0) after 0 wins and 0 losses."""
    assert cluster_interval([(0.0, 4)] * 5) == accuracy_delta_interval(0, 0, 20)
    assert cluster_interval([(1.0, 4)] * 6) == accuracy_delta_interval(6, 0, 24)
    assert share_interval([(0, 3)] * 5) == wilson_interval(0, 5)
    assert share_interval([(3.0, 3.0)] * 5) == wilson_interval(5, 5)


def test_an_interval_over_too_few_changed_clusters_holds_0():
    """Found: it lay above 0 beside an exact p of 0.125, the least that four clusters can have."""
    four = [(1, 10), (2, 10), (1, 10), (1, 10)]
    assert sign_flip_p([change for change, _ in four]) == 0.125
    low, high = cluster_interval(four)
    assert low == 0 < high
    low, high = cluster_interval([(-change, size) for change, size in four] + [(0, 10)])
    assert low < high == 0
    assert cluster_interval([*four, (2, 10), (1, 10)])[0] > 0
    alike = [(3, 10)] * 5  # the interval is that over items here
    assert accuracy_delta_interval(15, 0, 50)[0] > 0
    assert cluster_interval(alike)[0] == cluster_interval(alike, (0.2, 0.4))[0] == 0


def test_clusters_without_items_have_no_part_in_their_interval():
    filled = [(1.0, 1), (0.0, 3), (1.0, 2)]
    for interval in (cluster_interval, share_interval):
        assert interval([*filled, (0.0, 0), (0.0, 0)]) == interval(filled)


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


def test_the_interval_of_a_speedup_over_five_chunks_is_about_that_of_student():
    ratios = [2.0, 2.1, 1.9, 2.2, 1.8]
    low, high = speedup_interval([(1.0, 10)] * 5, [(1 / r, 10) for r in ratios])
    half = t.ppf(0.975, 4) * np.std(np.log(ratios), ddof=1) / math.sqrt(5)
    assert high / low == pytest.approx(math.exp(2 * half), rel=0.03)


def test_bootstraps_give_the_same_interval_for_the_same_data():
    times = [(math.exp(math.sin(i)), 9) for i in range(20)], [(1.0 + i, 7) for i in range(20)]
    assert speedup_interval(*times) == speedup_interval(*times)
    drawn = [accuracy_delta_interval(9000, 4000, 99_991) for _ in range(2)]
    assert drawn[0] == drawn[1]


def test_changes_that_undo_each_other_in_a_cluster_count_for_the_interval():
    """Found: 8 won and 8 lost in each of two groups of 50 had the interval of no change."""
    clusters = [(0.0, 50), (0.0, 50)]
    assert cluster_interval(clusters, accuracy_delta_interval(16, 16, 100)) == pytest.approx(
        accuracy_delta_interval(16, 16, 100)
    )
    right = [{"correct": i % 50 < 8, "group": str(i // 50)} for i in range(100)]
    other = [{"correct": 8 <= i % 50 < 16, "group": str(i // 50)} for i in range(100)]
    found = paired(right, other)
    assert (found["wins"], found["losses"], found["num_groups"]) == (16, 16, 2)
    assert found["accuracy_delta_groups_ci95"] == found["accuracy_delta_ci95"]
