"""The numbers of an audit, from records made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from cospec.cli.views.audit import show
from cospec.evaluation.audit.summary import BINNED, if_free_stood, outcome, summarize
from cospec.evaluation.stats import accuracy_delta_interval, wilson_interval
from cospec.models.costs import Costs

COSTS = Costs(batch_size=1, context=10, draft_step_s=0.1, verify_s=[1.0, 1.1, 1.2])
SLOW = Costs(batch_size=4, context=10, draft_step_s=0.9, verify_s=[1.0, 1.1, 1.2])


def mismatch(draft: bool, target: bool, value: float = 0.0) -> dict[str, Any]:
    return {
        "position": 3,
        "draft_correct": draft,
        "target_correct": target,
        "features": [value] * len(BINNED),
    }


def record(correct: bool, mismatches: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "correct": correct,
        "draft_correct": False,
        "num_mismatches": len(mismatches),
        "accepted": "1101",
        "mismatches": mismatches,
    } | more


RECORDS = [
    record(True, [mismatch(True, True, 1.0), mismatch(False, True, 2.0)]),
    record(True, [mismatch(False, True, 3.0)]),
    record(False, [mismatch(True, False, 4.0), mismatch(False, False, 5.0)]),
    record(False, [mismatch(False, False, 6.0)]),
]


def test_each_outcome_is_named_by_whose_branch_is_right() -> None:
    named = [outcome(mismatch(d, t)) for d in (True, False) for t in (True, False)]
    assert named == ["both", "only_draft", "only_target", "neither"]


def test_shares_and_agreement_are_those_counted_by_hand() -> None:
    summary = summarize(RECORDS, BINNED, [COSTS], 2)
    counted = {name: share["count"] for name, share in summary["outcomes"].items()}
    assert counted == {"only_draft": 1, "only_target": 2, "both": 1, "neither": 2}
    assert summary["outcomes"]["only_draft"]["share"] == pytest.approx(1 / 6)
    assert summary["outcomes_if_target_wrong"]["only_draft"]["share"] == pytest.approx(1 / 3)
    assert summary["target_accuracy"]["share"] == 0.5
    agreement = summary["always_target_agreement"]
    assert agreement["where_branches_differ"]["share"] == pytest.approx(2 / 3)
    assert agreement["ties_as_agreement"]["share"] == pytest.approx(5 / 6)
    one_step = summary["one_step_oracle"]
    assert one_step["problems_right_or_one_override_away"]["share"] == 0.75
    assert one_step["mismatches_best_branch_right"]["share"] == pytest.approx(4 / 6)
    assert one_step["mismatches_target_branch_right"]["share"] == pytest.approx(3 / 6)
    assert summary["accepted_share"]["share"] == 0.75


def test_shares_of_none_and_of_all_have_an_interval() -> None:
    """Found: they were points, of however few problems. One without mismatches tells nothing of
    theirs.
    """
    end = {"oracle_accepted": "1111", "oracle_correct": True, "oracle_overrides": 0}
    records = [record(True, [mismatch(True, True)] * 2, **end) for _ in range(4)]
    summary = summarize([*records, record(True, [], **end)], BINNED, [COSTS], 2)
    assert summary["target_accuracy"]["ci95"] == list(wilson_interval(5, 5))
    assert summary["draft_accuracy"]["ci95"] == list(wilson_interval(0, 5))
    assert summary["outcomes"]["both"]["ci95"] == list(wilson_interval(4, 4))
    assert summary["outcomes"]["neither"]["ci95"] == list(wilson_interval(0, 4))
    change = summary["oracle_path"]["accuracy_delta"]
    assert (change["share"], change["ci95"]) == (0.0, list(accuracy_delta_interval(0, 0, 5)))


def test_bins_split_the_mismatches_without_losing_any() -> None:
    summary = summarize(RECORDS, BINNED, [COSTS], 2)
    for rows in summary["bins"].values():
        assert len(rows) == 4
        counts = [sum(share["count"] for share in row["outcomes"].values()) for row in rows]
        assert sum(counts) == 6
        assert (rows[0]["from"], rows[-1]["to"]) == (1.0, 6.0)


def test_the_oracle_path_is_reported_against_the_target() -> None:
    ends = [("1111", True, 1), ("1101", True, 0), ("1111", True, 2), ("1101", False, 0)]
    records = [
        r | {"oracle_accepted": a, "oracle_correct": c, "oracle_overrides": n}
        for r, (a, c, n) in zip(RECORDS, ends, strict=True)
    ]
    oracle = summarize(records, BINNED, [COSTS], 3)["oracle_path"]
    assert oracle["accuracy"]["share"] == 0.75
    assert oracle["accuracy_delta"]["share"] == 0.25
    assert oracle["overrides_per_problem"] == 0.75
    assert oracle["mean_acceptance_length_lossless"] == 16 / 8
    assert oracle["mean_acceptance_length"] == 16 / 6


def test_speculation_that_does_not_pay_is_warned_of() -> None:
    summary = summarize(RECORDS, BINNED, [COSTS, SLOW], 2)
    pays = [speed["pays"] for speed in summary["speed"]]
    assert pays == [True, False]
    assert any("batch size 4" in warning for warning in summary["warnings"])
    assert not any("batch size 1:" in warning for warning in summary["warnings"])


def test_tokens_whose_choice_is_free_stand_and_unplayed_ones_do_by_their_share() -> None:
    def at(place: int, draft: bool, target: bool) -> dict[str, Any]:
        return mismatch(draft, target) | {"position": place}

    free, harmful = at(1, True, True), at(3, False, True)
    played = [record(True, [free, harmful], accepted="10100"), record(False, [], accepted="0")]
    paths = if_free_stood([played[0] | {"accepted": "10101"}, played[1] | {"accepted": "1"}])
    assert paths == ["11101", "1"]
    many = [played[0] | {"accepted": "1" * 4 + "0" * 4000}]
    (path,) = if_free_stood(many)  # none of these was played; half of the played ones are free
    assert 0.45 < path[4:].count("1") / 4000 < 0.55
    summary = summarize(played, BINNED, [COSTS], 2)
    faster, exact = (summary[key][0]["by_k"] for key in ("speed_if_free_stood", "speed"))
    assert all(a["speedup"] >= b["speedup"] for a, b in zip(faster, exact, strict=True))


def test_tokens_that_no_arbiter_may_override_never_stand() -> None:
    """Tokens at the end of a text, for one, are not among the mismatches, and not drawn either."""
    free = mismatch(True, True) | {"position": 1}
    path = record(True, [free], accepted="1010" + "0" * 20, settled=list(range(4, 24)))
    assert if_free_stood([path]) == ["1111" + "0" * 20]


def test_played_mismatches_stand_for_those_that_were_not() -> None:
    """Problems with many mismatches, of which as few were played, counted too little."""
    few = [record(True, [mismatch(True, True)]) for _ in range(9)]
    many = record(False, [mismatch(False, False)], num_mismatches=27)
    summary = summarize([*few, many], BINNED, [COSTS], 2)
    assert summary["num_branches"] == 10
    assert summary["outcomes"]["neither"]["share"] == 27 / 36
    one = summary["one_step_oracle"]
    assert one["mismatches_best_branch_right"]["share"] == 9 / 36
    assert one["problems_right_or_one_override_away"]["share"] is None


def test_the_path_of_another_arbiter_is_named_and_predicts_no_exact_speed() -> None:
    summary = summarize(RECORDS, BINNED, [SLOW], 2, "always_draft")
    assert summary["verdict"].startswith("always_draft solves 50.0 %")
    assert summary["speed"] == [] and not any("exact" in each for each in summary["warnings"])


def test_names_of_arbiters_are_shown_as_they_are(capsys) -> None:
    """Found: rich took a part of a folder's name for markup, and raised."""
    ends = {"oracle_accepted": "1", "oracle_correct": True, "oracle_overrides": 0}
    records = [record(False, [mismatch(True, False)], **ends)]
    show(summarize(records, BINNED, [COSTS], 2, "runs[/v2]\x1b[2K"))
    shown = capsys.readouterr().out
    assert shown.count(r"runs[/v2]\x1b[2K") == 3, "path, warning and verdict"
    assert "\x1b" not in shown


def test_a_path_that_solves_nothing_is_warned_of_by_its_name() -> None:
    """Found: the target was blamed for the path of another arbiter."""
    wrong = [record(False, [mismatch(False, False)])]
    for path, whose in ((None, "the target"), ("always_draft", "always_draft")):
        warned = summarize(wrong, BINNED, [COSTS], 2, path)["warnings"]
        assert f"{whose} solves none of these problems: a wrong prompt or task?" in warned


def test_a_pair_that_never_disagrees_has_nothing_to_rule_on() -> None:
    summary = summarize([record(True, []), record(False, [])], BINNED, [COSTS], 2)
    assert "nothing for an arbiter" in summary["verdict"]
    assert summary["outcomes"]["only_draft"]["share"] is None


def test_the_verdict_tells_the_shares_with_their_intervals() -> None:
    verdict = summarize(RECORDS, BINNED, [COSTS], 2)["verdict"]
    assert "solves 50.0 %" in verdict and "at 16.7 % (" in verdict and "6 mismatches" in verdict


def test_the_change_of_the_oracle_has_the_interval_of_pairs() -> None:
    """Found: a bootstrap, which tells of one win among four that none can be lost."""
    ends = [True, True, True, False]
    records = [
        r | {"oracle_accepted": "1111", "oracle_correct": end, "oracle_overrides": 0}
        for r, end in zip(RECORDS, ends, strict=True)
    ]
    change = summarize(records, BINNED, [COSTS], 2)["oracle_path"]["accuracy_delta"]
    assert change == {
        "share": 0.25, "ci95": list(accuracy_delta_interval(1, 0, 4)), "count": 1, "of": 4,
    }  # fmt: skip
    assert change["ci95"][0] < 0
