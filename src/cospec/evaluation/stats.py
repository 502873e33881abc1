"""Intervals and tests behind the numbers of a comparison; pure functions of counts and times.

All intervals are at 95 %. Bootstraps are percentile bootstraps with a seed of their own, so that
the same data gives the same interval. numpy and scipy are imported on use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

Interval: TypeAlias = tuple[float, float]

_LEVEL = 0.95
_PERCENTILES = (2.5, 97.5)
_NUM_RESAMPLES = 10_000


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


def accuracy_delta_interval(wins: int, losses: int, num_problems: int, seed: int = 0) -> Interval:
    """Paired bootstrap interval of (wins - losses) / num_problems.

    To draw problems with replacement is to draw the numbers of wins, losses and ties among them
    from a multinomial law, which needs no problem by problem data.

    Args:
        wins: Problems that only ours got right.
        losses: Problems that only theirs got right.
        num_problems: All problems, ties included; at least 1.
        seed: Of the resampling.
    """
    import numpy as np  # noqa: PLC0415  # so that the command line starts without it

    counts = np.array([wins, losses, num_problems - wins - losses])
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(num_problems, counts / num_problems, size=_NUM_RESAMPLES)  # (N, 3)
    low, high = np.percentile((drawn[:, 0] - drawn[:, 1]) / num_problems, _PERCENTILES)
    return float(low), float(high)


def ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float], seed: int = 0
) -> Interval | None:
    """Bootstrap interval of sum(numerators) / sum(denominators) over chunks that are measured once.

    With few chunks it is too narrow, as any bootstrap is.

    Args:
        numerators: One a chunk.
        denominators: Of the same chunks, positive.
        seed: Of the resampling.

    Returns:
        None for fewer than two chunks, which say nothing of the spread.
    """
    import numpy as np  # noqa: PLC0415  # so that the command line starts without it

    num_chunks = len(numerators)
    if num_chunks < 2:
        return None
    rng = np.random.default_rng(seed)
    drawn = rng.integers(num_chunks, size=(_NUM_RESAMPLES, num_chunks))
    above, below = (np.asarray(part)[drawn].sum(axis=1) for part in (numerators, denominators))
    low, high = np.percentile(above / below, _PERCENTILES)
    return float(low), float(high)
