"""Operating points: tests by hand, the guarantee by enumeration and simulation, and the choice."""

from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest
from scipy.stats import beta, multinomial

from cospec.arbiters.checkpoint import FORMAT
from cospec.errors import CheckpointError, ConfigError
from cospec.evaluation.stats import wilson_interval
from cospec.rl.calibrate import (
    Candidate,
    certify,
    fastest,
    harm_p_values,
    least_num_problems,
    loss_p_values,
    most_accurate,
    num_rejected,
    reliability,
    write_point,
)

NUM_SETS, NUM_PROBLEMS, EPSILON, DELTA = 4000, 400, 0.05, 0.1
"""With 400 problems the level of the binomial test is 0.099, close to delta."""
NOISE = 4 * math.sqrt(DELTA * (1 - DELTA) / NUM_SETS)
"""Four standard errors of a share of the simulated sets: one false alarm in 30 000."""
MONOTONE = [0.0, 0.005, 0.01, 0.02, 0.04, 0.0501, 0.08, 0.2]
NOT_MONOTONE = [0.0, 0.01, 0.0501, 0.005, 0.0501, 0.0, 0.2, 0.01]


def counts(*numbers: int) -> np.ndarray:
    return np.array(numbers)


def test_the_harm_p_value_is_the_binomial_tail():
    n, e = 20, 0.1
    none, one = (1 - e) ** n, n * e * (1 - e) ** (n - 1)
    assert harm_p_values(counts(0, 1, n), n, e) == pytest.approx([none, none + one, 1.0])


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (0, 3), (4, 0), (9, 7), (12, 30)])
def test_the_loss_p_value_is_the_level_at_which_two_clopper_pearson_bounds_meet(wins, losses):
    n, e = 200, 0.05
    (p,) = loss_p_values(counts(wins), counts(losses), n, e)
    if p == 1:
        assert losses > wins
        return
    upper = beta.isf(p / 2, losses + 1, n - losses)
    lower = beta.ppf(p / 2, wins, n - wins + 1) if wins else 0.0
    assert upper - lower == pytest.approx(e)


def test_the_loss_p_value_falls_with_wins_and_rises_with_losses():
    p = loss_p_values(*np.meshgrid(np.arange(30), np.arange(30)), 100, 0.05)  # (losses, wins)
    assert (np.diff(p, axis=1) <= 1e-9).all() and (np.diff(p, axis=0) >= -1e-9).all()
    assert p.min() < 0.001 and p.max() == 1


def test_the_loss_test_keeps_its_level_exactly():
    """On the edge of the hypothesis, by summing over all outcomes of 40 problems."""
    n = 40
    outcomes = np.array([(w, x, n - w - x) for w in range(n + 1) for x in range(n + 1 - w)])
    p = loss_p_values(outcomes[:, 0], outcomes[:, 1], n, EPSILON)
    for share_of_differences in (0.05, 0.06, 0.1, 0.2, 0.5, 1.0):
        lost = (share_of_differences + EPSILON) / 2
        won = share_of_differences - lost
        law = multinomial.pmf(outcomes, n, [won, lost, 1 - won - lost])
        assert law.sum() == pytest.approx(1)
        for delta in (0.01, 0.1, 0.3):
            assert law[p <= delta].sum() <= delta, (share_of_differences, delta)


@pytest.mark.parametrize(("risk", "epsilon", "delta"), [("harm", 0.02, 0.1), ("loss", 0.05, 0.2)])
def test_below_the_least_number_of_problems_nothing_is_certified(risk, epsilon, delta):
    least = least_num_problems(risk, epsilon, delta)
    for size, is_certified in ((least - 1, False), (least, True)):
        _, (test,) = certify([Candidate(1.0, 0.5, 0, 0, 9)], size, risk, epsilon, delta)
        assert test["is_certified"] == is_certified
    assert least_num_problems("harm", 0.02, 0.1) == 114


def test_testing_stops_at_the_first_hypothesis_that_stands():
    p = np.array([[0.01, 0.1, 0.2, 0.0], [0.2, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert num_rejected(p, 0.1).tolist() == [2, 0, 4]


def simulate(risks: list[float], win: float, risk: str) -> np.ndarray:
    """Count the thresholds that each of many calibration sets certifies.

    A problem that a threshold loses is lost by all that lose more: the thresholds depend on each
    other. Wins, of probability `win` everywhere, come on top of the risk where they make up for
    losses.
    """
    rng = np.random.default_rng(0)
    lost = np.array(risks) + (win if risk == "loss" else 0.0)
    place = rng.random((NUM_SETS, NUM_PROBLEMS))
    losses = np.stack([(place < share).sum(axis=1) for share in lost], axis=1)
    wins = np.stack([(place > 1 - win).sum(axis=1)] * len(risks), axis=1)
    pairs, where = np.unique(
        np.stack([wins, losses], -1).reshape(-1, 2), axis=0, return_inverse=True
    )
    if risk == "harm":
        p = harm_p_values(pairs[:, 1], NUM_PROBLEMS, EPSILON)
    else:
        p = loss_p_values(pairs[:, 0], pairs[:, 1], NUM_PROBLEMS, EPSILON)
    return num_rejected(p[where].reshape(losses.shape), DELTA)


@pytest.mark.parametrize("risks", [MONOTONE, NOT_MONOTONE, MONOTONE[::-1]])
@pytest.mark.parametrize(("risk", "win"), [("harm", 0.0), ("loss", 0.0), ("loss", 0.1)])
def test_a_threshold_that_is_too_risky_is_certified_in_at_most_a_share_delta_of_sets(
    risks, risk, win
):
    num_certified = simulate(risks, win, risk)
    first_bad = next(i for i, r in enumerate(risks) if r > EPSILON)
    share = (num_certified > first_bad).mean()
    assert share <= DELTA + NOISE
    if risk == "harm" and first_bad == 2:
        assert share > 0.8 * DELTA, "the bound is put to work"


@pytest.mark.parametrize(("risk", "win"), [("harm", 0.0), ("loss", 0.0), ("loss", 0.01)])
def test_thresholds_far_below_epsilon_are_certified(risk, win):
    assert (simulate([0.0, 0.001, 0.005], win, risk) == 3).mean() > 0.9


def candidates() -> list[Candidate]:
    return [
        Candidate(1.0, 0.50, 0, 0, 100),
        Candidate(0.9, 0.52, 3, 1, 90),
        Candidate(0.5, 0.52, 6, 4, 80),
        Candidate(0.1, 0.49, 9, 10, 50),
    ]


def test_the_most_accurate_threshold_is_the_cheapest_among_equals():
    assert most_accurate(candidates()).threshold == 0.5
    assert most_accurate(candidates(), cost_weight=0.5).threshold == 0.1


def test_the_fastest_threshold_is_not_worse_than_the_target():
    assert fastest(candidates()).threshold == 0.5
    worse = [Candidate(1.0, 0.49, 0, 1, 100), Candidate(0.5, 0.4, 0, 10, 10)]
    assert fastest(worse).threshold == 1.0, "numerical noise against lossless decoding"
    unsolved = [Candidate(1.0, 0.0, 0, 0, 100), Candidate(0.5, 0.0, 0, 0, 10)]
    assert fastest(unsolved).threshold == 0.5


def test_the_boldest_certified_threshold_is_returned():
    chosen, tests = certify(candidates(), 100, "harm", 0.1, 0.1)
    assert (chosen.threshold, [t["is_certified"] for t in tests]) == (0.5, [True] * 3 + [False])
    assert [t["threshold"] for t in tests] == [1.0, 0.9, 0.5, 0.1]
    assert certify(candidates(), 100, "loss", 0.15, 0.1)[0].threshold == 0.1
    chosen, tests = certify(candidates(), 10, "harm", 0.1, 0.1)
    assert chosen.threshold == 1.0 and not any(t["is_certified"] for t in tests)


def test_reliability_by_hand():
    scores = np.array([0.02, 0.04, 0.31, 0.35, 0.5, 1.0, 1.0])
    draft = np.array([False, True, True, False, True, True, False])
    target = np.array([True, False, False, True, True, False, False])
    result = reliability(scores, draft, target)
    assert (result["num_mismatches"], result["num_differing"]) == (7, 5)
    rows = [(0.0, 2, 0.03, 0.5), (0.3, 2, 0.33, 0.5), (0.9, 1, 1.0, 1.0)]
    for row, (start, size, score, share) in zip(result["bins"], rows, strict=True):
        assert (row["from"], row["num_mismatches"], row["share_draft_right"]) == (
            start,
            size,
            share,
        )
        assert row["mean_score"] == pytest.approx(score)
        assert row["ci95"] == wilson_interval(round(share * size), size)
    error = (2 * 0.47 + 2 * 0.17 + 0) / 5
    assert result["expected_calibration_error"] == pytest.approx(error)
    json.dumps(result)


def test_reliability_of_branches_that_never_differ_is_unknown():
    same = np.array([True, False])
    result = reliability(np.array([0.1, 0.9]), same, same)
    assert result["bins"] == [] and result["expected_calibration_error"] is None


@pytest.fixture
def folder(tmp_path):
    config = {
        "cospec_arbiter": FORMAT,
        "features": {},
        "policy": {},
        "operating_points": {"default": {"threshold": 0.5}},
        "pair": {"fingerprint": "x"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_a_point_is_added_and_the_rest_of_the_config_stays(folder):
    write_point(folder, "mine", {"threshold": 0.7}, overwrite=False)
    config = json.loads((folder / "config.json").read_text())
    assert config["operating_points"] == {"default": {"threshold": 0.5}, "mine": {"threshold": 0.7}}
    assert config["pair"] == {"fingerprint": "x"}
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_a_point_is_replaced_on_request_only(folder):
    before = (folder / "config.json").read_text()
    with pytest.raises(ConfigError, match="'default'; pass another --name, or --overwrite"):
        write_point(folder, "default", {"threshold": 0.7}, overwrite=False)
    assert (folder / "config.json").read_text() == before
    write_point(folder, "default", {"threshold": 0.7}, overwrite=True)
    points = json.loads((folder / "config.json").read_text())["operating_points"]
    assert points == {"default": {"threshold": 0.7}}


@pytest.mark.parametrize("name", ["", "a,b", "a:b", "a b", "a/b"])
def test_a_name_that_no_spec_could_hold_is_refused(folder, name):
    with pytest.raises(ConfigError, match="name is"):
        write_point(folder, name, {"threshold": 0.7}, overwrite=False)


def test_a_folder_that_cannot_be_written_to_is_refused(folder, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(CheckpointError, match="pass --out FOLDER"):
        write_point(folder, "mine", {"threshold": 0.7}, overwrite=False)


def test_mismatches_that_stand_for_others_count_as_often():
    """Found: of sampled audits those of short texts counted as much as those of long ones."""
    scores = np.array([0.52, 0.54, 0.56])
    draft, target = np.array([True, False, False]), np.array([False, True, True])
    result = reliability(scores, draft, target, np.array([4.0, 1.0, 1.0]))
    (row,) = result["bins"]
    assert row["share_draft_right"] == pytest.approx(4 / 6)
    assert row["mean_score"] == pytest.approx((4 * 0.52 + 0.54 + 0.56) / 6)
    assert row["num_mismatches"] == 3
    assert row["ci95"] == wilson_interval(1, 2), "36 / 18 are two mismatches' worth"
    assert result["expected_calibration_error"] == pytest.approx(4 / 6 - row["mean_score"])
    json.dumps(result)
