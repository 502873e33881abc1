"""Speeds of a run of `speed_real/speed.py` in prose, from the seconds and tokens of its rows.

A marker is ``timed FILE MEASURE ARM OTHER``. ARM and OTHER are parts of names that one arm has.
MEASURE is ``over`` (tokens a second of ARM over those of OTHER), ``over_databases`` (its interval,
drawn over databases) or ``seconds`` (a question).
"""

from __future__ import annotations

from cospec.evaluation.stats import speedup, speedup_interval
from experiments.tables.rows import Json, read


def value(spec: str) -> str:
    """The text of a marked number."""
    name, measure, arm, *other = spec.split()
    document = read(name)
    ours = _groups(document, arm)
    if measure == "seconds":
        seconds = [pair[0] for pair in _by_question(document, arm).values()]
        return f"{sum(seconds) / len(seconds):.2f}"
    theirs = _groups(document, other[0])
    if measure == "over":
        return f"{speedup(theirs, ours):.2f}"
    if measure == "over_databases":
        low, high = speedup_interval(theirs, ours) or (0.0, 0.0)
        return f"{low:.2f} to {high:.2f}"
    raise KeyError(measure)


def _by_question(document: Json, part: str) -> dict[str, tuple[float, int]]:
    """Seconds and tokens of each question, by the one arm whose name has a part."""
    (arm,) = (one["arm"] for one in document["arms"] if part in one["arm"])
    rows = [row for row in document["rows"] if row["arm"] == arm]
    return {row["id"]: (row["seconds"], row["num_tokens"]) for row in rows}


def _groups(document: Json, part: str) -> list[tuple[float, int]]:
    """Seconds and tokens of an arm on each database."""
    known = read("test_known")
    place = dict(zip(known["ids"], known["databases"], strict=True))
    sums: dict[str, tuple[float, int]] = {}
    for question, (seconds, tokens) in _by_question(document, part).items():
        before = sums.get(place[question], (0.0, 0))
        sums[place[question]] = before[0] + seconds, before[1] + tokens
    return list(sums.values())
