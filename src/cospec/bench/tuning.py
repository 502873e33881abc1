"""Chooses k and settings of every arm on the tune split, by counts alone (see `protocol`).

All arms are tried on the same problems; what was tried and what it gave is kept in the result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cospec.arbiters import load_arbiter
from cospec.bench.evaluate import Arm, Evaluation
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
    """Try every entrant with each of its settings and each k.

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
    tried = [entrant for entrant in entrants if entrant.tries or entrant.name == DRAFT]
    places = [(entrant, setting) for entrant in tried for setting in _settings(contest, entrant)]
    arms = [_arm(contest, entrant, setting) for entrant, setting in places]
    rows: dict[str, list[Json]] = {arm.name: [] for arm in arms}
    if contest.tune:
        evaluation = Evaluation(
            list({arm.name: arm for arm in arms}.values()),
            contest.task,
            contest.tune,
            max_new_tokens=contest.config.max_new_tokens,
            seed=contest.seed,
            temperature=temperature,
            exact_prefix_tokens=contest.config.exact_prefix_tokens,
        )
        turns = play(evaluation, f"tune, temperature {temperature:g}", warm_up=False)
        for turn in sorted(turns, key=lambda turn: turn.chunk):
            rows[turn.arm] += turn.rows
    found: dict[str, Json] = {}
    for (entrant, setting), arm in zip(places, arms, strict=True):
        empty = {"arm": entrant.name, "kind": entrant.kind, "temperature": temperature, "tries": []}
        result = _tally(rows[arm.name], contest.draft_cost) if contest.tune else {}
        knob = None if arm.arbiter is None else knob_of(load_arbiter(arm.arbiter).name)
        one = {"k": setting.k, "arbiter": arm.arbiter, "knob": knob} | result
        found.setdefault(entrant.name, empty)["tries"].append(one)
    for entry in found.values():
        entry["chosen"] = _choose(entry) if contest.tune else 0
    for entrant in entrants:
        if entrant.match is not None:
            found[entrant.name] = _matched(entrant, found[entrant.match], temperature)
    return list(found.values())


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


def _settings(contest: Contest, entrant: Entrant) -> list[Setting]:
    """Every setting of an entrant with every k; draft-only decoding has one, without a block."""
    if entrant.name == DRAFT:
        return [Setting(DRAFT, 0)]
    ks = contest.config.tune_k or (contest.config.num_speculative_tokens,)
    return [Setting(spec, k) for spec in entrant.tries for k in ks]


def _arm(contest: Contest, entrant: Entrant, setting: Setting) -> Arm:
    """An arm under the name of what it decodes with: two entrants may try the same."""
    size = max(contest.config.batch_sizes)
    if entrant.name == DRAFT:
        return Arm(DRAFT, None, Engine.draft_only(contest.pair, max_batch_size=size))
    arbiter = load_arbiter(setting.spec, contest.pair)
    engine = Engine(
        contest.pair,
        arbiter,
        num_speculative_tokens=setting.k,
        max_batch_size=size,
        keep_trace=False,
    )
    return Arm(f"{arbiter.name}, k={setting.k}", setting.spec, engine)


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


def _choose(entry: Json) -> int:
    """The place of the best try; the earliest of equals."""
    is_exact = entry["kind"] == "exact"
    keys = [(0 if is_exact else -one["num_right"], one["cost"]) for one in entry["tries"]]
    return keys.index(min(keys))


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
