"""Gains on test problems with and without a twin among the solved train problems."""

from __future__ import annotations

import json
from functools import cache

from cospec.evaluation.stats import cluster_interval
from cospec.results import read_text
from experiments.tables.rows import EXPERIMENTS, Arm, Json, arms

GROUPS = {"all": "01", "twins": "1", "others": "0"}


@cache
def found() -> Json:
    """What ``experiments/twins/twins.py`` wrote."""
    document: Json = json.loads(read_text(EXPERIMENTS / "twins/result.json.gz"))
    return document


def marks(evaluation: str) -> Json:
    """Template and twin bit of each problem of an evaluation."""
    return next(part for part in found()["pairs"].values() if part["evaluation"] == evaluation)


def group_gain(
    evaluation: str, arm: Arm, other: Arm, group: str
) -> tuple[float, int, int, tuple[float, float]]:
    """Gain over another arm on a group, problems won and lost, and the interval over templates."""
    part = marks(evaluation)
    sums: dict[int, list[int]] = {}
    changes = []
    for ours, theirs, template, twin in zip(
        arm.bits, other.bits, part["templates"], part["twins"], strict=True
    ):
        if twin in GROUPS[group]:
            changes.append(int(ours) - int(theirs))
            total = sums.setdefault(template, [0, 0])
            total[0] += changes[-1]
            total[1] += 1
    interval = cluster_interval([(change, size) for change, size in sums.values()])
    return sum(changes) / len(changes), changes.count(1), changes.count(-1), interval


def table(pairs: tuple[str, ...] = ("family", "specialist")) -> str:
    """Points over the target of each arm on all problems, on twins, and on the others."""
    lines = ["| pair | arm | all | with a twin | without |", "| --- |" + " --- |" * 4]
    for pair in pairs:
        name = found()["pairs"][pair]["evaluation"]
        of = arms(name)
        for arm in of.values():
            if arm.name in ("target", "lossless"):
                continue
            cells = []
            for group in GROUPS:
                gain, won, lost, (low, high) = group_gain(name, arm, of["target"], group)
                cells.append(
                    f"{100 * gain:+.1f} ({won} / {lost}; {100 * low:.1f} to {100 * high:.1f})"
                )
            lines.append(f"| {pair} | {arm.name.partition(':')[0]} | {' | '.join(cells)} |")
    return "\n".join(lines)
