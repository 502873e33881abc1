"""The numbers of an audit and their meaning, from the records of an `Auditor`.

Intervals are 95 % bootstrap intervals over problems, since the mismatches of one problem are not
independent; where no problem differs from another they are Wilson's over problems. Where only some
mismatches of a problem were played, they stand for all of them.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import numpy as np

from cospec.evaluation.audit.costs import num_blocks, predicted_speedups
from cospec.evaluation.stats import accuracy_delta_interval, share_interval

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from cospec.models.costs import Costs
    from cospec.results import Json

OUTCOMES = ("only_draft", "only_target", "both", "neither")
BINNED = ("gap_p", "log_q_draft", "entropy_p", "lookahead_share", "block_position", "log_position")
"""Features with a report of the outcomes by quartile."""
NUM_RESAMPLES = 2_000


def outcome(mismatch: Json) -> str:
    """Return the name in `OUTCOMES` that tells whose branch of a mismatch is right."""
    match mismatch["draft_correct"], mismatch["target_correct"]:
        case True, True:
            return "both"
        case True, False:
            return "only_draft"
        case False, True:
            return "only_target"
        case _:
            return "neither"


def summarize(
    records: Sequence[Json],
    feature_names: Sequence[str],
    costs: Sequence[Costs],
    k: int,
    path: str | None = None,
) -> Json:
    """Return all numbers of the audit.

    Args:
        records: Records from `Auditor.audit`.
        feature_names: Names of the features in them.
        costs: Measured costs, for the predicted speed-up.
        k: Drafted tokens a block of the audited engine.
        path: Author of the paths' texts; None for the target's own, decoded greedily. For others no
            speed is predicted.
    """
    counts = _counts(records, lambda _: True)  # (problems, outcomes)
    costs = costs if path is None else []
    right = np.array([r["correct"] for r in records], dtype=float)
    summary: Json = {
        "path": path,
        "num_problems": len(records),
        "num_mismatches": sum(r["num_mismatches"] for r in records),
        "num_branches": sum(len(r["mismatches"]) for r in records),
        "mismatches_per_problem": float(np.mean([r["num_mismatches"] for r in records])),
        "target_accuracy": _share(right),
        "draft_accuracy": _share(np.array([r["draft_correct"] for r in records], dtype=float)),
        "outcomes": _shares(counts),
        "outcomes_if_target_wrong": _shares(counts[right == 0]),
        "one_step_oracle": _one_step(records),
        "always_target_agreement": _agreement(counts),
        "bins": {name: _bins(records, feature_names, name) for name in BINNED},
        "accepted_share": _share_of_tokens(records),
        "speed": [_speed([r["accepted"] for r in records], cost) for cost in costs],
        "speed_if_free_stood": [_speed(if_free_stood(records), cost) for cost in costs],
    }
    if records and "oracle_correct" in records[0]:
        oracle = np.array([r["oracle_correct"] for r in records], dtype=float)
        summary["oracle_path"] = {
            "accuracy": _share(oracle),
            "accuracy_delta": _change(right, oracle),
            "overrides_per_problem": float(np.mean([r["oracle_overrides"] for r in records])),
            "mean_acceptance_length": _acceptance_length(records, "oracle_accepted", k),
            "mean_acceptance_length_lossless": _acceptance_length(records, "accepted", k),
            "speed": [_speed([r["oracle_accepted"] for r in records], cost) for cost in costs],
        }
    summary["warnings"] = warnings(summary)
    summary["verdict"] = verdict(summary)
    return summary


def _ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> Json:
    """Return a ratio of sums over problems, with its interval."""
    total = below.sum()
    ci = None
    if total:
        ci = list(share_interval(list(zip(above, below, strict=True)), NUM_RESAMPLES))
    share = float(above.sum() / total) if total else None
    return {"share": share, "ci95": ci, "count": round(above.sum()), "of": round(total)}


def _share(values: NDArray[np.float64]) -> Json:
    """Return a mean over problems."""
    return _ratio(values, np.ones_like(values))


def _change(before: NDArray[np.float64], after: NDArray[np.float64]) -> Json:
    """Return a mean change over problems, each right (1) or not (0); it may be negative."""
    change = after - before
    wins, losses = int((change > 0).sum()), int((change < 0).sum())
    return {
        "share": float(change.mean()),
        "ci95": list(accuracy_delta_interval(wins, losses, len(change))),
        "count": wins - losses,
        "of": len(change),
    }


def _counts(records: Sequence[Json], is_in: Callable[[Json], bool]) -> NDArray[np.float64]:
    """Count the mismatches of each problem by outcome, (problems, 4); played ones stand for all."""
    counts = np.zeros((len(records), len(OUTCOMES)))
    for i, record in enumerate(records):
        for mismatch in filter(is_in, record["mismatches"]):
            counts[i, OUTCOMES.index(outcome(mismatch))] += _weight(record)
    return counts


def _weight(record: Json) -> float:
    """Return the number of mismatches that each played one of a problem stands for."""
    return float(record["num_mismatches"] / len(record["mismatches"]))


def _shares(counts: NDArray[np.float64]) -> Json:
    """Return the share of each outcome."""
    return {name: _ratio(counts[:, j], counts.sum(axis=1)) for j, name in enumerate(OUTCOMES)}


def _one_step(records: Sequence[Json]) -> Json:
    """Return the shares that one perfect ruling could make right, of mismatches and of problems.

    The share of problems needs all branches: a mismatch that was not played may be the one that
    saves its problem.
    """
    draft, target, both, neither = _counts(records, lambda _: True).T
    total = draft + target + both + neither
    is_whole = all(len(r["mismatches"]) == r["num_mismatches"] for r in records)
    saved = [
        r["correct"] or any(m["draft_correct"] or m["target_correct"] for m in r["mismatches"])
        for r in records
    ]
    return {
        "mismatches_best_branch_right": _ratio(draft + target + both, total),
        "mismatches_target_branch_right": _ratio(target + both, total),
        "problems_right_or_one_override_away": _share(np.array(saved if is_whole else [], float)),
    }


def _agreement(counts: NDArray[np.float64]) -> Json:
    """Measure how often the oracle would take the target's token."""
    draft, target, both, neither = counts.T
    return {
        "where_branches_differ": _ratio(target, target + draft),
        "ties_as_agreement": _ratio(target + both + neither, counts.sum(axis=1)),
    }


def _bins(records: Sequence[Json], feature_names: Sequence[str], name: str) -> list[Json]:
    """Return the outcomes by quartile of a feature; equal edges are merged."""
    place = list(feature_names).index(name)
    values = [m["features"][place] for r in records for m in r["mismatches"]]
    if not values:
        return []
    edges = np.unique(np.quantile(values, [0, 0.25, 0.5, 0.75, 1]))
    last = max(len(edges) - 2, 0)
    rows = []
    for j in range(last + 1):

        def is_in(m: Json, j: int = j) -> bool:
            place_in_edges = int(np.searchsorted(edges, m["features"][place], side="right")) - 1
            return min(place_in_edges, last) == j

        shares = _shares(_counts(records, is_in))
        low, high = float(edges[j]), float(edges[min(j + 1, len(edges) - 1)])
        rows.append({"from": low, "to": high, "outcomes": shares})
    return rows


def _share_of_tokens(records: Sequence[Json]) -> Json:
    accepted = np.array([r["accepted"].count("1") for r in records], dtype=float)
    return _ratio(accepted, np.array([len(r["accepted"]) for r in records], dtype=float))


def _acceptance_length(records: Sequence[Json], key: str, k: int) -> float:
    """Return the tokens a target forward on these paths."""
    blocks = sum(num_blocks(r[key], k) for r in records)
    return sum(len(r[key]) for r in records) / blocks


def if_free_stood(records: Sequence[Json]) -> list[str]:
    """Return ``accepted`` of each path if the draft's token stood wherever the choice is free.

    It is free where both branches are right or both wrong. Mismatches that were not played are
    drawn as free, at the share of those that were; those that no arbiter may override never stand.
    This is an estimate, since the text changes after an override.
    """
    shares = _shares(_counts(records, lambda _: True))
    share = sum(shares[name]["share"] or 0.0 for name in ("both", "neither"))
    draws = Random(0)
    paths = []
    for record in records:
        played = {m["position"]: outcome(m) in ("both", "neither") for m in record["mismatches"]}
        played |= dict.fromkeys(record.get("settled", ()), False)  # older records do not say
        stands = [
            digit == "1" or played.get(i, draws.random() < share)
            for i, digit in enumerate(record["accepted"])
        ]
        paths.append("".join(str(int(it)) for it in stands))
    return paths


def _speed(paths: Sequence[str], costs: Costs) -> Json:
    """Predict speed-ups at one batch size, and the best k, from ``accepted`` of each path."""
    by_k = predicted_speedups(costs, paths)
    best = max(by_k, key=lambda row: row["speedup"])
    return {
        "batch_size": costs.batch_size,
        "draft_to_target_step": costs.draft_step_s / costs.verify_s[0],
        "by_k": by_k,
        "best_k": best["k"],
        "best_speedup": best["speedup"],
        "pays": best["speedup"] > 1,
    }


def warnings(summary: Json) -> list[str]:
    """Return warnings for whoever wants to trust or deploy the pair."""
    found = []
    for speed in summary["speed"]:
        if not speed["pays"]:
            found.append(
                f"exact speculation does not pay at batch size {speed['batch_size']}: a draft step "
                f"costs {speed['draft_to_target_step']:.2f} of a target step, and the best k "
                f"({speed['best_k']}) is predicted at {speed['best_speedup']:.2f}x target-only; "
                "use a smaller or faster draft"
            )
    if summary["num_branches"] < 200:
        found.append(
            f"only {summary['num_branches']} branches were played; the shares are rough: raise "
            "--num-problems"
        )
    if not summary["target_accuracy"]["count"]:
        whose = summary["path"] or "the target"
        found.append(f"{whose} solves none of these problems: a wrong prompt or task?")
    return found


def verdict(summary: Json) -> str:
    """Say what the audit found, in a sentence."""
    outcomes = summary["outcomes"]
    draft, target = outcomes["only_draft"], outcomes["only_target"]
    if not summary["num_branches"]:
        return (
            "The two models never disagreed where an arbiter may override: there is nothing for "
            "an arbiter to rule on."
        )
    whose = summary["path"] or "The target"
    text = (
        f"{whose} solves {_percent(summary['target_accuracy'])} of {summary['num_problems']} "
        f"problems; of {summary['num_branches']} mismatches the draft's token alone leads to the "
        f"right answer at {_percent(draft)}, the target's alone at {_percent(target)}, and the "
        f"choice changes nothing at {_percent(outcomes['both'])} (both) and "
        f"{_percent(outcomes['neither'])} (neither)"
    )
    if "oracle_path" in summary:
        oracle = summary["oracle_path"]
        text += (
            "; the greedy one-override oracle, which is no upper bound, solves "
            f"{_percent(oracle['accuracy'])} with {oracle['mean_acceptance_length']:.2f} tokens a "
            f"target forward in place of {oracle['mean_acceptance_length_lossless']:.2f}"
        )
    return text + "."


def _percent(share: Json) -> str:
    if share["share"] is None:
        return "none"
    low, high = share["ci95"]
    return f"{100 * share['share']:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
