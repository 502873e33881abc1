"""Chooses k and settings of every arm on the tune split, by counts alone (see `protocol`).

All arms are tried on the same problems; what was tried and what it gave is kept in the result.
"""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING

from cospec.bench.evaluate import Arm
from cospec.bench.protocol import Setting, knob_of
from cospec.bench.summary import DRAFT, counts
from cospec.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cospec.bench.entrants import Entrant
    from cospec.bench.protocol import Contest, Player
    from cospec.results import Json


def tune(
    contest: Contest, entrants: Sequence[Entrant], temperature: float, play: Player
) -> list[Json]:
    """Try every entrant with each of its settings, then the setting that it takes with each k.

    Args:
        contest: The models, the problems, and how.
        entrants: Who takes part.
        temperature: Of sampling.
        play: Plays the turns.

    Returns:
        An entry each that was tried or follows from one that was: ``arm``, ``kind``,
        ``temperature``, ``tries`` with their counts and ``cost``, and ``chosen``, the place of the
        one that is taken. Without tune problems the counts are missing.
    """
    ks = contest.config.tune_k or (contest.config.num_speculative_tokens,)
    longest, *shorter = sorted(ks, reverse=True)
    tried = [entrant for entrant in entrants if entrant.tries or entrant.name == DRAFT]
    places = {
        entrant.name: [Setting(spec, longest) for spec in entrant.tries] or [Setting(DRAFT, 0)]
        for entrant in tried
    }
    tries = _try(contest, places, f"tune, temperature {temperature:g}", temperature, play)
    taken = {name: _most_right(each) for name, each in tries.items()}
    if shorter:
        places = {
            name: [Setting(one["arbiter"], k) for k in shorter]
            for name, one in taken.items()
            if name != DRAFT
        }
        found = _try(contest, places, f"tune k, temperature {temperature:g}", temperature, play)
        for name, each in found.items():
            taken[name] = min([taken[name], *each], key=itemgetter("cost"))
            tries[name] += each
    entries = {
        entrant.name: {
            "arm": entrant.name,
            "kind": entrant.kind,
            "temperature": temperature,
            "tries": tries[entrant.name],
            "chosen": tries[entrant.name].index(taken[entrant.name]),
        }
        for entrant in tried
    }
    for entrant in entrants:
        if entrant.match is not None:
            entries[entrant.name] = _matched(entrant, entries[entrant.match], temperature)
    return list(entries.values())


def settings(tuning: Sequence[Json]) -> dict[str, Setting]:
    """By arm, what was chosen for it."""
    chosen = {entry["arm"]: entry["tries"][entry["chosen"]] for entry in tuning}
    return {name: Setting(one["arbiter"], one["k"]) for name, one in chosen.items()}


def best_rival(tuning: Sequence[Json], entrants: Sequence[Entrant]) -> str | None:
    """The arm, not trained here, that is right most often on the tune split; ties by cost.

    None without tune problems.
    """
    rivals = [entrant.name for entrant in entrants if entrant.is_rival]
    chosen = [(e["arm"], e["tries"][e["chosen"]]) for e in tuning if e["arm"] in rivals]
    if not all("cost" in one for _, one in chosen):
        return None
    return str(min(chosen, key=lambda each: (-each[1]["num_right"], each[1]["cost"]))[0])


def _try(
    contest: Contest,
    places: dict[str, list[Setting]],
    part: str,
    temperature: float,
    play: Player,
) -> dict[str, list[Json]]:
    """What each setting of each arm gives on the tune problems; without them, the settings."""
    arms = {name: [_arm(contest, setting) for setting in each] for name, each in places.items()}
    rows: dict[str, list[Json]] = {arm.name: [] for each in arms.values() for arm in each}
    if contest.tune:
        distinct = {arm.name: arm for each in arms.values() for arm in each}
        evaluation = contest.evaluation(list(distinct.values()), contest.tune, temperature)
        turns = play(evaluation, part, warm_up=False)
        for turn in sorted(turns, key=lambda turn: turn.chunk):
            rows[turn.arm] += turn.rows
    tries: dict[str, list[Json]] = {name: [] for name in places}
    for name, settings in places.items():
        for setting, arm in zip(settings, arms[name], strict=True):
            knob = None if arm.arbiter is None else knob_of(contest.arbiter(arm.arbiter).name)
            result = _tally(rows[arm.name], contest.draft_cost) if contest.tune else {}
            tries[name].append({"k": setting.k, "arbiter": arm.arbiter, "knob": knob} | result)
    return tries


def _arm(contest: Contest, setting: Setting) -> Arm:
    """An arm under the name of what it decodes with: two entrants may try the same."""
    size = max(contest.config.batch_sizes)
    if setting.spec == DRAFT:
        return Arm(DRAFT, None, Engine.draft_only(contest.pair, max_batch_size=size))
    engine = contest.engine(setting.spec, setting.k, size)
    return Arm(f"{engine.arbiter.name}, k={setting.k}", setting.spec, engine)


def _tally(rows: Sequence[Json], draft_cost: float) -> Json:
    """What one try gave."""
    found = counts(rows)
    num_right = sum(row["correct"] for row in rows)
    cost = found["num_target_forwards"] + draft_cost * found["num_draft_forwards"]
    return {
        "num_problems": len(rows),
        "num_right": num_right,
        "accuracy": num_right / len(rows),
        "cost": cost,
    } | found


def _most_right(tries: Sequence[Json]) -> Json:
    """The try with most right answers, ties by cost; the first of equals, or where none counts."""
    return min(tries, key=lambda one: (-one.get("num_right", 0), one.get("cost", 0)))


def _matched(entrant: Entrant, model: Json, temperature: float) -> Json:
    """Random overrides at the share of mismatches that another arm overrides, with its k."""
    one = model["tries"][model["chosen"]]
    rate = f"rate={one['override_share']:.4g}"
    setting = {"k": one["k"], "arbiter": f"random:{rate}", "knob": rate}
    return {
        "arm": entrant.name,
        "kind": entrant.kind,
        "temperature": temperature,
        "matches": model["arm"],
        "tries": [setting],
        "chosen": 0,
    }
