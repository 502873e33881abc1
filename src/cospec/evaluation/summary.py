"""The numbers of each arm, from its turns alone: quality and speed in one entry.

Comparisons are paired: the same problems, and the same chunks in the same process. A speed-up is a
ratio of tokens a second. An arm that writes longer texts pays for them in the seconds and the
target forwards of a solved problem.
"""

from __future__ import annotations

from collections import defaultdict
from statistics import median
from typing import TYPE_CHECKING

from cospec.evaluation.stats import (
    accuracy_delta_interval,
    cluster_interval,
    mcnemar_p,
    sign_flip_p,
    speedup,
    speedup_interval,
    wilson_interval,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from cospec.evaluation.stats import Interval
    from cospec.evaluation.turns import Turn
    from cospec.results import Json

TARGET, DRAFT, LOSSLESS = "target", "draft", "lossless"
"""The arms that every comparison has."""
_COUNTED = (
    "num_strict_accepts",
    "num_overrides",
    "num_mismatches",
    "num_target_forwards",
    "num_draft_forwards",
    "num_draft_tokens",
)


def summarize(turns: Iterable[Turn], arbiters: Mapping[str, str | None]) -> list[Json]:
    """Return one entry for each arm, in the order of `arbiters`.

    Args:
        turns: Every chunk once for every arm, in any order.
        arbiters: Spec of each arm's arbiter, by name of the arm; None for plain decoding.
    """
    by_arm: dict[str, list[Turn]] = {name: [] for name in arbiters}
    for turn in sorted(turns, key=lambda turn: turn.chunk):
        by_arm[turn.arm].append(turn)
    baselines = by_arm[TARGET], by_arm[LOSSLESS]
    rows = {name: [row for turn in ours for row in turn.rows] for name, ours in by_arm.items()}
    return [
        {"name": name, "arbiter": arbiter, "num_problems": len(rows[name])}
        | quality(rows[name], rows[TARGET])
        | _speed(by_arm[name], *baselines)
        | counts(rows[name])
        for name, arbiter in arbiters.items()
    ]


def rows_by_arm(turns: Iterable[Turn]) -> dict[str, list[Json]]:
    """Return the rows of each arm in the order of the problems."""
    rows: dict[str, list[Json]] = {}
    for turn in sorted(turns, key=lambda turn: turn.chunk):
        rows.setdefault(turn.arm, []).extend(turn.rows)
    return rows


def against_both(arms: Sequence[Json], turns: Iterable[Turn]) -> list[Json]:
    """Add to each arm its comparison with the draft and with lossless decoding (`paired`)."""
    rows = rows_by_arm(turns)
    return [
        arm | {f"vs_{other}": paired(rows[arm["name"]], rows[other]) for other in (DRAFT, LOSSLESS)}
        for arm in arms
    ]


def by_part(turns: Iterable[Turn], tasks: Mapping[str, str]) -> dict[str, list[Json]]:
    """Summarize the quality of each arm on each part of a mixture, by the name of the part.

    Args:
        turns: Every chunk once for every arm, in any order.
        tasks: Name of the part that each problem comes from, by id of the problem.
    """
    rows: dict[str, dict[str, list[Json]]] = {}
    for turn in sorted(turns, key=lambda turn: turn.chunk):
        for row in turn.rows:
            rows.setdefault(tasks[row["id"]], {}).setdefault(turn.arm, []).append(row)
    return {
        part: [
            {"name": arm, "num_problems": len(ours)} | quality(ours, arms[TARGET])
            for arm, ours in arms.items()
        ]
        for part, arms in rows.items()
    }


def paired(ours: Sequence[Json], theirs: Sequence[Json]) -> Json:
    """Compare the right answers of two arms on the same problems, row by row.

    Args:
        ours: Rows with ``correct``.
        theirs: Rows of the same problems in the same order.

    Returns:
        Wins (only ours is right), losses, McNemar's exact p, and the difference in accuracy with
        its interval, a point for an arm that is compared with itself. Where rows have a ``group``,
        also a test and an interval with groups as units.
    """
    pairs = [(a["correct"], b["correct"]) for a, b in zip(ours, theirs, strict=True)]
    wins, losses = pairs.count((True, False)), pairs.count((False, True))
    interval = accuracy_delta_interval(wins, losses, len(pairs))
    return {
        "wins": wins,
        "losses": losses,
        "mcnemar_p": mcnemar_p(wins, losses),
        "accuracy_delta": (wins - losses) / len(pairs),
        "accuracy_delta_ci95": (0.0, 0.0) if ours is theirs else interval,
    } | _over_groups(ours, theirs, interval)


def p_value(arm: Json) -> float:
    """Return the p of a comparison, over groups where problems come in groups."""
    p: float = arm["group_p"] if "group_p" in arm else arm["mcnemar_p"]
    return p


def _over_groups(ours: Sequence[Json], theirs: Sequence[Json], over_items: Interval) -> Json:
    """Compare two arms with groups as units; empty if rows have no groups, or all the same.

    A problem without a group, as in a mixture, is a group of its own.
    """
    changes: dict[str, list[int]] = defaultdict(lambda: [0, 0])  # sum, number of problems
    for place, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        group = str(a.get("group", b.get("group", f"problem {place}")))
        changes[group][0] += a["correct"] - b["correct"]
        changes[group][1] += 1
    if not 1 < len(changes) < len(ours):
        return {}
    clusters = [(change, size) for change, size in changes.values()]
    interval = cluster_interval(clusters, over_items)
    return {
        "num_groups": len(changes),
        "group_p": sign_flip_p([change for change, _ in changes.values()]),
        "accuracy_delta_groups_ci95": (0.0, 0.0) if ours is theirs else interval,
    }


def quality(ours: Sequence[Json], target: Sequence[Json]) -> Json:
    """Count right answers, and compare them with the target's on the same problems."""
    size, num_right = len(ours), _total(ours, "correct")
    found = {
        "accuracy": num_right / size,
        "accuracy_ci95": wilson_interval(num_right, size),
        **paired(ours, target),
        "num_texts_unlike_target": sum(
            a["text"] != b["text"] for a, b in zip(ours, target, strict=True)
        ),
    }
    if all(row["strict"] is not None for row in ours):
        found["accuracy_strict"] = _total(ours, "strict") / size
    return found


def _speed(ours: Sequence[Turn], target: Sequence[Turn], lossless: Sequence[Turn]) -> Json:
    """Return wall-clock times, and speed-ups over the two exact arms."""
    seconds = [turn.seconds for turn in ours]
    num_tokens = sum(turn.num_tokens for turn in ours)
    num_right = sum(_total(turn.rows, "correct") for turn in ours)
    speed: Json = {
        "num_turns": len(ours),
        "num_tokens": num_tokens,
        "seconds": sum(seconds),
        "tokens_per_s": num_tokens / sum(seconds),
        "seconds_per_token": sum(seconds) / num_tokens,
        "seconds_per_solved": sum(seconds) / num_right if num_right else None,
    }
    for name, baseline in ((TARGET, target), (LOSSLESS, lossless)):
        theirs, own = ([(t.seconds, t.num_tokens) for t in arm] for arm in (baseline, ours))
        speed[f"speedup_vs_{name}"] = speedup(theirs, own)
        speed[f"speedup_vs_{name}_ci95"] = speedup_interval(theirs, own)
    return speed


def speeds_alike(arm: Json, part: Json) -> Json:
    """Return an arm with its speed as this version reports it, whatever version wrote the file.

    The speed-up over several repeats is the median of theirs; older files have a ratio of means.

    Args:
        arm: Entry of an arm.
        part: Document or cell with that entry; its ``chunks`` tell the number of turns.
    """
    repeats = arm.get("repeats") or {}
    names = [f"speedup_vs_{name}" for name in (TARGET, LOSSLESS)]
    found = {name: median(repeats[name]) for name in names if repeats.get(name)}
    turns = sum(chunk["arm"] == arm["name"] for chunk in part.get("chunks", []))
    return {"num_turns": turns or None} | arm | found


def is_timed_once(arm: Json) -> bool:
    """Return true for an arm with one timed turn, whose speed-up could be anything."""
    return arm.get("num_turns") == 1


def counts(rows: Sequence[Json]) -> Json:
    """Add up the counts of decoding over some rows; no clock has a part in them."""
    found = {name: _total(rows, name) for name in _COUNTED}
    num_accepted = found["num_strict_accepts"] + found["num_overrides"]
    num_drafted, num_forwards = found["num_draft_tokens"], found["num_target_forwards"]
    num_right = _total(rows, "correct")
    num_ruled = found["num_mismatches"]
    if all("num_open_mismatches" in row for row in rows):  # older logs do not tell
        found["num_open_mismatches"] = _total(rows, "num_open_mismatches")
    return found | {
        "override_share": found["num_overrides"] / num_ruled if num_ruled else 0.0,
        "mean_acceptance_length": 1 + num_accepted / num_forwards if num_forwards else 1.0,
        "draft_acceptance_rate": num_accepted / num_drafted if num_drafted else 0.0,
        "target_forwards_per_token": num_forwards / _total(rows, "num_tokens"),
        "target_forwards_per_solved": num_forwards / num_right if num_right else None,
        "num_length_stops": sum(row["finish_reason"] == "length" for row in rows),
    }


def _total(rows: Sequence[Json], name: str) -> int:
    return sum(row[name] for row in rows)
