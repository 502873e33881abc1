"""Intervals and tests of a comparison; pure functions of counts and times.

All intervals are at 95 %. Bootstraps have a fixed seed, so that the same data gives the same
interval. They are percentile bootstraps over a few units, which are too narrow. So the distance of
each end from the estimate is multiplied by t_{n-1} / z * sqrt(n / (n - 1)). This is the expanded
percentile interval of Hesterberg (2015, "What Teachers Should Know About the Bootstrap", The
American Statistician 69, on small samples). numpy and scipy are imported on use.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

Interval: TypeAlias = tuple[float, float]
Chunk: TypeAlias = tuple[float, int]
"""Seconds and tokens of one arm on some problems."""

_LEVEL = 0.95
_PERCENTILES = (2.5, 97.5)
_Z = 1.959963984540054  # quantile of the normal law, at this level
_NUM_RESAMPLES = 10_000
_MIN_CHUNKS = 5
_LEAST_CLUSTERS = 6
"""Changed clusters that a sign-flip test needs for p < 0.05: five give 2 / 2^5 at least."""


def wilson_interval(num_right: int, num_total: int) -> Interval:
    """Wilson's score interval (1927) of a share; it stays in [0, 1] and never has width 0.

    Args:
        num_right: Number of right ones.
        num_total: Number of all, at least 1.
    """
    from scipy.stats import binomtest  # noqa: PLC0415  # takes a second

    interval = binomtest(num_right, num_total).proportion_ci(_LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar_p(wins: int, losses: int) -> float:
    """McNemar's exact two-sided test: are wins and losses equally likely?

    Args:
        wins: Problems that only ours got right.
        losses: Problems that only theirs got right.
    """
    from scipy.stats import binomtest  # noqa: PLC0415  # takes a second

    return float(binomtest(wins, wins + losses, 0.5).pvalue) if wins + losses else 1.0


def sign_flip_p(changes: Sequence[int]) -> float:
    """Exact two-sided test over clusters: does swapping two arms in any of them change nothing?

    It is Fisher's randomisation test (1935, The Design of Experiments, section 21) with clusters as
    units, so that problems of one cluster may depend on each other. The sums of the changes, each
    with either sign, are counted by convolution. With clusters of one problem it is McNemar's.

    Args:
        changes: Wins minus losses of each cluster.
    """
    import numpy as np  # noqa: PLC0415  # so that the command line starts without it

    most = sum(map(abs, changes))
    law = np.zeros(2 * most + 1)  # of the sum, from -most to most
    law[most] = 1.0
    for change in filter(None, changes):
        law = (np.roll(law, change) + np.roll(law, -change)) / 2
    is_as_far = abs(np.arange(-most, most + 1)) >= abs(sum(changes))
    return min(1.0, float(law[is_as_far].sum()))


def accuracy_delta_interval(wins: int, losses: int, num_problems: int) -> Interval:
    """Score interval of (wins - losses) / num_problems, for paired answers.

    It is Tango's (1998, Statistics in Medicine 17, 891-908) with the continuity correction of
    Edwards (1948, Psychometrika 13, 185-187). At 0 it is then Edwards' form of McNemar's test:
    without the correction 4 wins and no loss would exclude 0, where McNemar's exact p is 0.125.
    Without wins and losses it is the exact bound of Clopper and Pearson (1934) on the share of
    problems that differ, to both sides.

    Args:
        wins: Problems that only ours got right.
        losses: Problems that only theirs got right.
        num_problems: All problems, ties included; at least 1.
    """
    if not wins + losses:
        most: float = 1 - ((1 - _LEVEL) / 2) ** (1 / num_problems)
        return -most, most
    return tango_interval(wins, losses, num_problems, correction=1.0)


def tango_interval(
    wins: int, losses: int, num_problems: int, *, correction: float = 0.0
) -> Interval:
    """Tango's score interval: the differences whose score is below z (see above).

    Args:
        wins: Problems that only ours got right.
        losses: Problems that only theirs got right.
        num_problems: All problems.
        correction: Continuity correction: subtracted from the distance of wins - losses from the
            number that a difference predicts.
    """
    n, change = num_problems, wins - losses

    def is_in(delta: float) -> bool:
        # The share of losses that is most likely if the difference is delta.
        linear = (2 * n - change) * delta - wins - losses
        root = math.sqrt(max(0.0, linear**2 + 8 * n * losses * delta * (1 - delta)))
        variance = n * max(0.0, (root - linear) / (2 * n) + delta * (1 - delta))
        distance = max(0.0, abs(change - n * delta) - correction)
        return distance <= _Z * math.sqrt(variance)

    ends = []
    for outer in (-1.0, 1.0):
        inner, edge = change / n, outer
        for _ in range(50):  # halvings: the score grows with the distance
            middle = (inner + edge) / 2
            inner, edge = (middle, edge) if is_in(middle) else (inner, middle)
        ends.append(outer if is_in(outer) else inner)
    return ends[0], ends[1]


def cluster_interval(
    clusters: Sequence[tuple[float, float]], over_items: Interval | None = None
) -> Interval:
    """Bootstrap interval of a mean change over items that come in clusters, such as templates.

    Where no cluster differs from another, all resamples are alike. The interval is then that over
    items, as if they were independent. Where fewer than `_LEAST_CLUSTERS` clusters changed, no test
    over clusters can be significant, so either interval is widened to hold 0.

    Args:
        clusters: Sum of the changes (-1, 0 or 1 each) and number of items of each cluster; there is
            at least one item.
        over_items: The interval over items. By default it is computed from the sums, which is too
            narrow where changes of opposite sign cancel within a cluster.
    """
    sums = [change for change, _ in clusters]
    found = _over_clusters(clusters, _NUM_RESAMPLES, -1.0) or over_items
    if found is None:
        wins, losses = (round(sum(max(0.0, sign * s) for s in sums)) for sign in (1, -1))
        found = accuracy_delta_interval(wins, losses, round(sum(size for _, size in clusters)))
    if sum(change != 0 for change in sums) < _LEAST_CLUSTERS:
        found = min(found[0], 0.0), max(found[1], 0.0)
    return found


def share_interval(
    clusters: Sequence[tuple[float, float]], num_resamples: int = _NUM_RESAMPLES
) -> Interval:
    """Bootstrap interval of a share of items that come in clusters, such as problems.

    Where no cluster differs from another, it is Wilson's over the clusters that have items.

    Args:
        clusters: Number of counted items and of all items of each cluster; there is at least one
            item.
        num_resamples: Number of bootstrap resamples, N.
    """
    found = _over_clusters(clusters, num_resamples, 0.0)
    if found is not None:
        return found
    number = sum(size > 0 for _, size in clusters)
    share = sum(part for part, _ in clusters) / sum(size for _, size in clusters)
    return wilson_interval(round(share * number), number)


def _over_clusters(
    clusters: Sequence[tuple[float, float]], num_resamples: int, least: float
) -> Interval | None:
    """The bootstrap interval of a mean in [least, 1]; None if no cluster differs from another."""
    import numpy as np  # noqa: PLC0415  # so that the command line starts without it

    filled = np.array([each for each in clusters if each[1] > 0], dtype=float)
    means = filled[:, 0] / filled[:, 1]
    if np.allclose(means, means[0]):
        return None
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(filled), size=(num_resamples, len(filled)))
    sums, sizes = (column[drawn].sum(axis=1) for column in filled.T.copy())  # (N,) each
    mean = filled[:, 0].sum() / filled[:, 1].sum()
    low, high = _widened(sums / sizes, mean, len(filled))
    return max(least, low), min(1.0, high)


def _widened(resampled: NDArray[np.float64], estimate: float, num_units: int) -> Interval:
    """Percentiles of resampled estimates, corrected for the number of units (Hesterberg 2015)."""
    import numpy as np  # noqa: PLC0415
    from scipy.special import stdtrit  # noqa: PLC0415  # the part of scipy that loads fast

    t = float(stdtrit(num_units - 1, (1 + _LEVEL) / 2))
    factor = t / _Z * math.sqrt(num_units / (num_units - 1))
    low, high = np.percentile(resampled, _PERCENTILES)
    return estimate + factor * float(low - estimate), estimate + factor * float(high - estimate)


def speedup(theirs: Sequence[Chunk], ours: Sequence[Chunk]) -> float:
    """Return the tokens a second of ours over those of theirs."""
    their_rate, our_rate = (
        sum(tokens for _, tokens in part) / sum(seconds for seconds, _ in part)
        for part in (theirs, ours)
    )
    return our_rate / their_rate


def speedup_interval(theirs: Sequence[Chunk], ours: Sequence[Chunk]) -> Interval | None:
    """Bootstrap interval of `speedup`, over chunks that were each measured once for both.

    Args:
        theirs: Seconds and tokens of each chunk.
        ours: Seconds and tokens of the same chunks.

    Returns:
        None for fewer than five chunks, whose bootstrap interval would be far too narrow.
    """
    import numpy as np  # noqa: PLC0415  # so that the command line starts without it

    num_chunks = len(ours)
    if num_chunks < _MIN_CHUNKS:
        return None
    rng = np.random.default_rng(0)
    drawn = rng.integers(num_chunks, size=(_NUM_RESAMPLES, num_chunks))
    sums = [np.asarray(part)[drawn].sum(axis=1) for part in (ours, theirs)]  # (N, 2) each
    our_rate, their_rate = (part[:, 1] / part[:, 0] for part in sums)
    # Ratios are widened as logarithms, so that none falls below 0.
    resampled = np.log(our_rate / their_rate)
    low, high = _widened(resampled, math.log(speedup(theirs, ours)), num_chunks)
    return math.exp(low), math.exp(high)
