"""Intervals and tests of a comparison; pure functions of counts and times.

All intervals are at 95 %. Bootstraps are percentile bootstraps with a fixed seed, so that the same
data gives the same interval. numpy and scipy are imported on use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

Interval: TypeAlias = tuple[float, float]
Chunk: TypeAlias = tuple[float, int]
"""Seconds and tokens of one arm on some problems."""

_LEVEL = 0.95
_PERCENTILES = (2.5, 97.5)
_NUM_RESAMPLES = 10_000
_MIN_CHUNKS = 5


def wilson_interval(num_right: int, num_total: int) -> Interval:
    """Wilson's score interval (1927) of a share; it stays in [0, 1] and never has width 0.

    Args:
        num_right: How many of them.
        num_total: At least 1.
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


def accuracy_delta_interval(wins: int, losses: int, num_problems: int) -> Interval:
    """Paired bootstrap interval of (wins - losses) / num_problems.

    To draw problems with replacement is to draw the numbers of wins, losses and ties among them
    from a multinomial law, which needs no problem by problem data. Without wins and losses that
    would be a point, though others may yet come: there it is the exact bound of Clopper and Pearson
    (1934) on the share of problems that differ, to both sides.

    Args:
        wins: Problems that only ours got right.
        losses: Problems that only theirs got right.
        num_problems: All problems, ties included; at least 1.
    """
    import numpy as np  # noqa: PLC0415  # so that the command line starts without it

    if not wins + losses:
        most: float = 1 - ((1 - _LEVEL) / 2) ** (1 / num_problems)
        return -most, most
    counts = np.array([wins, losses, num_problems - wins - losses])
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(num_problems, counts / num_problems, size=_NUM_RESAMPLES)  # (N, 3)
    low, high = np.percentile((drawn[:, 0] - drawn[:, 1]) / num_problems, _PERCENTILES)
    return float(low), float(high)


def cluster_interval(
    clusters: Sequence[tuple[float, float]], num_resamples: int = _NUM_RESAMPLES
) -> Interval:
    """Bootstrap interval of a mean over items that come in clusters, such as templates.

    Args:
        clusters: Sum and number of items of each; there is at least one item.
        num_resamples: N, how often the clusters are drawn.
    """
    import numpy as np  # noqa: PLC0415  # so that the command line starts without it

    rng = np.random.default_rng(0)
    drawn = rng.integers(len(clusters), size=(num_resamples, len(clusters)))
    sums, sizes = (
        column[drawn].sum(axis=1) for column in np.array(clusters, dtype=float).T.copy()
    )  # (N,) each
    has_items = sizes > 0
    low, high = np.percentile(sums[has_items] / sizes[has_items], _PERCENTILES)
    return float(low), float(high)


def speedup(theirs: Sequence[Chunk], ours: Sequence[Chunk]) -> float:
    """Tokens a second of ours over those of theirs."""
    their_rate, our_rate = (
        sum(tokens for _, tokens in part) / sum(seconds for seconds, _ in part)
        for part in (theirs, ours)
    )
    return our_rate / their_rate


def speedup_interval(theirs: Sequence[Chunk], ours: Sequence[Chunk]) -> Interval | None:
    """Bootstrap interval of `speedup`, over chunks that each were measured once for both.

    Args:
        theirs: Seconds and tokens of each chunk.
        ours: Of the same chunks.

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
    low, high = np.percentile(our_rate / their_rate, _PERCENTILES)
    return float(low), float(high)
