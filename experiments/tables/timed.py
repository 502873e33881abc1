"""Speeds of a run of `speed_real/speed.py` in prose, from the seconds and tokens of its rows.

A marker is ``timed FILE MEASURE ARM OTHER``. ARM and OTHER are names of arms, or parts of them that
one arm has, with ~ for a space. MEASURE is ``over`` (tokens a second of ARM over those of OTHER),
``over_prompts`` or ``over_databases`` (its interval, drawn over these; in vLLM over the turns of
questions that ran at once), ``seconds`` (a question),
``right`` (answers). ``questions``, ``questions_interval`` and ``questions_databases`` are the first
three by the question. ``won`` and ``lost`` are questions that only ARM or only OTHER has right,
``p`` is McNemar's of these, and ``p_databases`` the sign-flip test over databases, in runs in vLLM.
Such runs on different questions count as one if FILE has their names with + between them.
"""

from __future__ import annotations

from typing import Any

from cospec.evaluation.stats import sign_flip_p, speedup, speedup_interval
from experiments.tables.rows import Json, read


def value(spec: str) -> str:
    """The text of a marked number."""
    name, measure, arm, *other = spec.split()
    document, *others = map(read, name.split("+"))
    for other_run in others:
        rows = document["rows"] + other_run["rows"]
        databases = document["databases"] | other_run["databases"]
        document = document | {"rows": rows, "databases": databases}
    if measure == "right":
        return str(sum(row["correct"] for row in _rows(document, arm)))
    if measure in ("won", "lost", "p", "p_databases"):
        return _answers(document, measure, arm, other[0])
    ours = _by_question(document, arm)
    if measure == "seconds":
        return f"{sum(seconds for seconds, _ in ours.values()) / len(ours):.2f}"
    theirs = _by_question(document, other[0])
    if measure.startswith("questions"):
        ours, theirs = ({q: (s, 1) for q, (s, _) in arm.items()} for arm in (ours, theirs))
    if measure in ("over", "questions"):
        return f"{speedup(_each(theirs), _each(ours)):.2f}"
    if measure in ("over_prompts", "questions_interval"):
        found = speedup_interval(*(_by_turn(document, arm) for arm in (theirs, ours)))
    elif measure in ("over_databases", "questions_databases"):
        found = speedup_interval(_by_database(theirs), _by_database(ours))
    else:
        raise KeyError(measure)
    low, high = found or (0.0, 0.0)
    return f"{low:.2f} to {high:.2f}"


def _answers(document: Json, measure: str, arm: str, other: str) -> str:
    """Return how the right answers of two arms differ."""
    ours, theirs = (
        {row["id"]: int(row["correct"]) for row in _rows(document, part)} for part in (arm, other)
    )
    changes = {question: ours[question] - theirs[question] for question in ours}
    if measure in ("won", "lost"):
        return str(list(changes.values()).count(1 if measure == "won" else -1))
    clusters: dict[str, int] = {}
    for question, change in changes.items():
        cluster = document["databases"][question] if measure == "p_databases" else question
        clusters[cluster] = clusters.get(cluster, 0) + change
    return f"{sign_flip_p(list(clusters.values())):.2g}"


def _by_question(document: Json, part: str) -> dict[str, tuple[float, int]]:
    """Seconds and tokens of each question."""
    rows = _rows(document, part)
    return {f"{row['task']} {row['id']}": (row["seconds"], row["num_tokens"]) for row in rows}


def _rows(document: Json, part: str) -> list[Json]:
    """Return the rows of an arm, given by its name or a part of it."""
    part = part.replace("~", " ")
    names = [one["arm"] for one in document["arms"]]
    (arm,) = {part} & {*names} or {name for name in names if part in name}
    return [row for row in document["rows"] if row["arm"] == arm]


def _each(timed: dict[str, tuple[float, int]]) -> list[tuple[float, int]]:
    """Return those of each question, in one order for all arms."""
    return [timed[question] for question in sorted(timed)]


def _by_turn(document: Json, timed: dict[str, tuple[float, int]]) -> list[tuple[float, int]]:
    """Add up those of each turn in vLLM, where questions that ran at once share their seconds."""
    if document["command"] != "vllm_sql":
        return _each(timed)
    turns = {f"{row['task']} {row['id']}": row["turn"] for row in document["rows"]}
    return _sums({question: timed[question] for question in sorted(timed)}, turns)


def _by_database(timed: dict[str, tuple[float, int]]) -> list[tuple[float, int]]:
    """Add up those of each database."""
    place: dict[str, str] = {}
    for tested in (read("test_known"), read("test_turns")):
        place |= zip(tested["ids"], tested["databases"], strict=True)
    return _sums(timed, {question: place[question.partition(" ")[2]] for question in timed})


def _sums(timed: dict[str, tuple[float, int]], group: dict[str, Any]) -> list[tuple[float, int]]:
    """Add up the seconds and tokens of the questions in each group."""
    sums: dict[Any, tuple[float, int]] = {}
    for question, (seconds, tokens) in timed.items():
        before = sums.get(group[question], (0.0, 0))
        sums[group[question]] = before[0] + seconds, before[1] + tokens
    return list(sums.values())
