"""Choice of the operating point of a trained arbiter, from counts on calibration problems.

The guarantee is learn then test (Angelopoulos et al., 2110.01052): each threshold has a null
hypothesis, that its risk exceeds epsilon, and a p-value that is valid for any finite number of
problems. They are tested in an order fixed beforehand, from the safest threshold (1, lossless) to
bolder ones, each at the full level delta, up to the first that is not rejected. A threshold that is
too risky is certified only if the first such threshold in the order is rejected. This happens with
probability delta at most, however the risk changes along the order and however the tests depend on
each other. The problems must be drawn independently and like the later ones, and the arbiter and
its settings must be fixed without them.

Two risks, both against the target alone on the same problem:

* harm: the share of problems where the target is right and the arbiter wrong;
* loss: the accuracy of the target minus that of the arbiter, so that wins make up for harm.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from scipy.stats import binom

from cospec.arbiters.checkpoint import CONFIG, read_config
from cospec.arbiters.record import FILES
from cospec.errors import CheckpointError, ConfigError
from cospec.evaluation.stats import wilson_interval
from cospec.results import Json, write_text

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Counts: TypeAlias = NDArray[np.int64]
    Flags: TypeAlias = NDArray[np.bool_]
    Floats: TypeAlias = NDArray[np.float64]

Risk: TypeAlias = Literal["harm", "loss"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """Outcome of an arbiter at one threshold."""

    threshold: float
    accuracy: float
    wins: int
    """Problems that only the arbiter got right."""
    losses: int
    """Problems that only the target got right."""
    num_target_forwards: int


def most_accurate(candidates: Sequence[Candidate], cost_weight: float = 0.0) -> Candidate:
    """Return the candidate with the best accuracy minus the price of its time.

    Args:
        candidates: Candidates, the lossless one first. Ties go to the fewest target forwards.
        cost_weight: Price of a target forward, as a share of the lossless candidate's.
    """
    price = cost_weight / candidates[0].num_target_forwards
    return max(
        candidates,
        key=lambda c: (c.accuracy - price * c.num_target_forwards, -c.num_target_forwards),
    )


def fastest(candidates: Sequence[Candidate]) -> Candidate:
    """Return the candidate with the fewest target forwards per right answer.

    Only candidates with at least as many right answers as the target count. If numerical noise
    leaves none, the lossless one is returned.

    Args:
        candidates: Candidates, the lossless one first.
    """
    able = [c for c in candidates if c.wins >= c.losses] or candidates[:1]
    return min(able, key=lambda c: c.num_target_forwards / max(c.accuracy, 1e-9))


def harm_p_values(losses: Counts, num_problems: int, epsilon: float) -> Floats:
    """Return p-values of the hypotheses that the harm exceeds epsilon.

    They are exact lower tails of the binomial law at epsilon; a larger risk has a smaller tail. The
    law assumes independent problems: many questions on few databases count for less.

    Args:
        losses: Problems that only the target got right, any shape.
        num_problems: Number of problems, N.
        epsilon: Allowed risk, in (0, 1).
    """
    p_values: Floats = binom.cdf(losses, num_problems, epsilon)
    return p_values


def loss_p_values(wins: Counts, losses: Counts, num_problems: int, epsilon: float) -> Floats:
    """Return p-values of the hypotheses that the arbiter loses more than epsilon of accuracy.

    If P(loss) - P(win) > epsilon, then for any number s either P(loss) >= s + epsilon or
    P(win) <= s. Each side is an exact binomial test (Clopper and Pearson, 1934). At the s that
    makes the larger of the two p-values smallest, both are equal, and the result is twice their
    value: the smallest level at which two one-sided bounds at half the level each rule the
    hypothesis out. By the union bound it is valid, though s is chosen on the data.

    Simpler tests do not fit. That of Hoeffding and Bentkus on (difference + 1) / 2 is valid but
    blind to how rare differences are, so that it needs thousands of problems. A test that is
    conditional on the problems that differ (McNemar, 1947) is exact for epsilon = 0 only: otherwise
    the share of losses among them under the hypothesis depends on their number, which is unknown.

    Args:
        wins: Problems that only the arbiter got right, any shape.
        losses: Problems that only the target got right, same shape.
        num_problems: Number of problems, N.
        epsilon: Allowed risk, in (0, 1).
    """

    def sides(split: Floats) -> tuple[Floats, Floats]:
        losses_p = binom.cdf(losses, num_problems, split + epsilon)
        return losses_p, binom.sf(wins - 1, num_problems, split)

    low = np.zeros(np.shape(losses))
    high = np.full_like(low, 1 - epsilon)
    for _ in range(40):  # halvings: the one side falls with the split, the other rises
        split = (low + high) / 2
        losses_p, wins_p = sides(split)
        low = np.where(losses_p > wins_p, split, low)
        high = np.where(losses_p > wins_p, high, split)
    without_wins = binom.cdf(losses, num_problems, epsilon)  # P(win) >= 0 needs no test
    p_values: Floats = 2 * np.minimum(np.maximum(*sides(high)), without_wins)
    return np.minimum(p_values, 1.0)


def least_num_problems(risk: Risk, epsilon: float, delta: float) -> int:
    """Return the fewest problems that certify an arbiter that never differs from the target."""
    level = delta if risk == "harm" else delta / 2
    return math.ceil(math.log(level) / math.log1p(-epsilon))


def num_rejected(p_values: Floats, delta: float) -> Counts:
    """Count the hypotheses that fixed-sequence testing rejects.

    Args:
        p_values: P-values in the order of the tests, (..., T).
        delta: Level of each test.

    Returns:
        Numbers in [0, T], (...).
    """
    rejected: Counts = np.cumprod(p_values <= delta, axis=-1).sum(axis=-1)
    return rejected


def certify(
    candidates: Sequence[Candidate], num_problems: int, risk: Risk, epsilon: float, delta: float
) -> tuple[Candidate, list[Json]]:
    """Return the boldest certified candidate, and the test of each one.

    Args:
        candidates: Candidates from the safest to the boldest. The first one is lossless; it is
            returned where nothing is certified.
        num_problems: Number of problems, N.
        risk: Kind of risk that is bounded.
        epsilon: Allowed risk.
        delta: Largest probability that a candidate with more risk is certified.
    """
    wins, losses = (np.array([getattr(c, name) for c in candidates]) for name in ("wins", "losses"))
    p_values = harm_p_values(losses, num_problems, epsilon)
    if risk == "loss":
        p_values = loss_p_values(wins, losses, num_problems, epsilon)
    number = int(num_rejected(p_values, delta))
    tests: list[Json] = [
        {"threshold": c.threshold, "p_value": float(p), "is_certified": i < number}
        for i, (c, p) in enumerate(zip(candidates, p_values, strict=True))
    ]
    return candidates[max(number, 1) - 1], tests


def reliability(
    scores: Floats, draft_correct: Flags, target_correct: Flags, weight: Floats | None = None
) -> Json:
    """Return how often the draft's branch is the better one, by the arbiter's score.

    Mismatches of one problem depend on each other, so the intervals are somewhat too narrow.

    Args:
        scores: Probability of keeping the draft's token, (N,).
        draft_correct: Whether the draft's branch is right, (N,).
        target_correct: Whether the target's branch is right, (N,).
        weight: Number of mismatches that each one stands for, (N,); 1 each if None. Intervals use
            the effective sample size (Kish 1965, "Survey Sampling", section 11.7).

    Returns:
        ``bins`` of width 0.1, without empty ones, over the mismatches whose branches differ, and
        ``expected_calibration_error``: the distance between mean score and share, averaged over
        these mismatches (Guo et al., 1706.04599); None if there are none.
    """
    differ = draft_correct != target_correct
    weight = (np.ones(len(scores)) if weight is None else weight)[differ]
    scores, is_right = scores[differ], draft_correct[differ]
    places = np.minimum((scores * 10).astype(int), 9)
    bins, error = [], 0.0
    for place in np.unique(places).tolist():
        here = places == place
        total, share = weight[here].sum(), float(np.average(is_right[here], weights=weight[here]))
        size = round(total**2 / (weight[here] ** 2).sum())
        row = {
            "from": place / 10,
            "to": (place + 1) / 10,
            "num_mismatches": int(here.sum()),
            "mean_score": float(np.average(scores[here], weights=weight[here])),
            "share_draft_right": share,
            "ci95": wilson_interval(round(share * size), size),
        }
        error += abs(row["mean_score"] - share) * float(total / weight.sum())
        bins.append(row)
    return {
        "num_mismatches": len(differ),
        "num_differing": len(scores),
        "expected_calibration_error": error if bins else None,
        "bins": bins,
    }


def check_point(folder: Path, name: str, overwrite: bool, out: Path | None = None) -> Json:
    """Return the config of a checkpoint that can take an operating point of this name.

    Args:
        folder: The checkpoint.
        name: Name of the point.
        overwrite: Whether a point of this name, or a copy, may be replaced.
        out: Folder for a copy with the point; the checkpoint itself then stays as it is.

    Raises:
        ConfigError: The name cannot be part of an arbiter's spec, or is taken; or the copy exists.
        CheckpointError: The point cannot be written there.
    """
    if not re.fullmatch(r"[\w.-]+", name):
        raise ConfigError(f"name is {name!r}; it must be letters, digits, '.', '_' and '-'.")
    if out is None and not os.access(folder, os.W_OK):
        raise CheckpointError(f"{folder} cannot be written to; pass --out FOLDER for a copy.")
    if out is not None and out.resolve() == folder.resolve():
        raise ConfigError(f"out is {out}, the arbiter itself; leave it out to add a point to it.")
    if out is not None and out.exists() and not overwrite:
        raise ConfigError(
            f"{out} exists; pass another --out, --overwrite to replace it, or --arbiter {out} "
            "without --out to add a point to it."
        )
    if out is not None and out.is_dir() and any(out.iterdir()) and not (out / CONFIG).exists():
        raise ConfigError(
            f"{out} is no arbiter, and what it holds could be lost; pass another --out."
        )
    if out is not None:
        place = next(parent for parent in (out, *out.absolute().parents) if parent.exists())
        if not place.is_dir() or not os.access(place, os.W_OK):
            raise CheckpointError(f"{place} cannot be written to; pass another --out than {out}.")
    config = read_config(folder)
    if out is None and name in config["operating_points"] and not overwrite:
        raise ConfigError(
            f"{folder} has an operating point {name!r}; pass another --name, or --overwrite to "
            "replace it."
        )
    return config


def write_point(
    folder: Path, name: str, point: Json, overwrite: bool, out: Path | None = None
) -> None:
    """Add an operating point to a checkpoint, or to a copy, and leave the rest as it is.

    Raises:
        CospecError: As `check_point` does.
    """
    config = check_point(folder, name, overwrite, out)
    config["operating_points"][name] = point
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for file in FILES:
            (out / file).unlink(missing_ok=True)
            if (folder / file).exists():
                shutil.copyfile(folder / file, out / file)
    write_text((out or folder) / CONFIG, json.dumps(config, indent=1) + "\n")
