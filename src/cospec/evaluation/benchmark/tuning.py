"""Choice of k and settings of every arm on the tune split, by counts alone.

All arms are tried on the same problems (the protocol is in `cospec.evaluation.benchmark.config`).
The result keeps all tries and their outcomes.
"""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING

from cospec.arbiters import RULES, split_spec
from cospec.evaluation.arms import Arm
from cospec.evaluation.benchmark.config import Setting
from cospec.evaluation.summary import DRAFT, counts, rows_by_arm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cospec.evaluation.benchmark.arms import ArmSpec
    from cospec.evaluation.benchmark.config import Benchmark, PlayPart
    from cospec.results import Json


def tune(
    benchmark: Benchmark, specs: Sequence[ArmSpec], temperature: float, play: PlayPart
) -> list[Json]:
    """Try every arm with each of its settings, then with its best setting and each k.

    Returns:
        An entry for each arm that was tried or follows from a tried one: ``arm``, ``kind``,
        ``temperature``, ``tries`` with their counts and ``cost``, and ``chosen``, the index of the
        chosen try. Without tune problems the counts are missing.
    """
    ks = benchmark.config.tune_k or (benchmark.config.k,)
    longest, *shorter = sorted(ks, reverse=True)
    tried = [spec for spec in specs if spec.tries or spec.name == DRAFT]
    places = {
        spec.name: [Setting(spec, longest) for spec in spec.tries] or [Setting(DRAFT, 0)]
        for spec in tried
    }
    tries = _try(benchmark, places, f"tune, temperature {temperature:g}", temperature, play)
    taken = {name: _most_right(each) for name, each in tries.items()}
    if shorter:
        places = {
            name: [Setting(one["arbiter"], k) for k in shorter]
            for name, one in taken.items()
            if name != DRAFT
        }
        found = _try(benchmark, places, f"tune k, temperature {temperature:g}", temperature, play)
        for name, each in found.items():
            taken[name] = min([taken[name], *each], key=itemgetter("cost"))
            tries[name] += each
    entries = {
        spec.name: {
            "arm": spec.name,
            "kind": spec.kind,
            "temperature": temperature,
            "tries": tries[spec.name],
            "chosen": tries[spec.name].index(taken[spec.name]),
        }
        for spec in tried
    }
    for spec in specs:
        if spec.match is not None:
            entries[spec.name] = _matched(spec, entries[spec.match], temperature)
    return list(entries.values())


def settings(tuning: Sequence[Json]) -> dict[str, Setting]:
    """Return the chosen setting of each arm."""
    chosen = {entry["arm"]: entry["tries"][entry["chosen"]] for entry in tuning}
    return {name: Setting(one["arbiter"], one["k"]) for name, one in chosen.items()}


def best_rival(tuning: Sequence[Json], specs: Sequence[ArmSpec]) -> str | None:
    """Return the untrained arm that is right most often on the tune split; ties by cost.

    None without tune problems.
    """
    rivals = [spec.name for spec in specs if spec.is_rival]
    chosen = [(e["arm"], e["tries"][e["chosen"]]) for e in tuning if e["arm"] in rivals]
    if not all("cost" in one for _, one in chosen):
        return None
    return str(min(chosen, key=lambda each: (-each[1]["num_right"], each[1]["cost"]))[0])


def _try(
    benchmark: Benchmark,
    places: dict[str, list[Setting]],
    part: str,
    temperature: float,
    play: PlayPart,
) -> dict[str, list[Json]]:
    """Return the results of each setting of each arm on the tune problems, if there are any."""
    arms = {name: [_arm(benchmark, setting) for setting in each] for name, each in places.items()}
    rows: dict[str, list[Json]] = {arm.name: [] for each in arms.values() for arm in each}
    if benchmark.tune:
        distinct = {arm.name: arm for each in arms.values() for arm in each}
        evaluation = benchmark.evaluation(list(distinct.values()), benchmark.tune, temperature)
        rows |= rows_by_arm(play(evaluation, part, warm_up=False))
    tries: dict[str, list[Json]] = {name: [] for name in places}
    for name, settings in places.items():
        for setting, arm in zip(settings, arms[name], strict=True):
            entry = {"k": setting.k, "arbiter": arm.arbiter, "knob": benchmark.knob(arm)}
            result = _tally(rows[arm.name], benchmark.draft_cost) if benchmark.tune else {}
            tries[name].append(entry | result)
    return tries


def _arm(benchmark: Benchmark, setting: Setting) -> Arm:
    """Return an arm named after its setting, since two arms may try the same one.

    Checkpoints with the same label are told apart by their folders, and arbiters from other
    packages by their settings, which their names may lack.
    """
    size = max(benchmark.config.batch_sizes)
    if setting.spec == DRAFT:
        return Arm(DRAFT, None, benchmark.plain("draft", size))
    arbiter = benchmark.arbiter(setting.spec)
    decoder = benchmark.ruled(arbiter, setting.k, size)
    name = arbiter.name if split_spec(setting.spec)[0] in RULES else setting.spec
    return Arm(f"{name}, k={setting.k}", setting.spec, decoder)


def _tally(rows: Sequence[Json], draft_cost: float) -> Json:
    """Return the results of one try."""
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
    """Return the try with most right answers, ties by cost; the first of equals or uncounted."""
    return min(tries, key=lambda one: (-one.get("num_right", 0), one.get("cost", 0)))


def _matched(spec: ArmSpec, model: Json, temperature: float) -> Json:
    """Return random overrides at the rate of another arm, with its k.

    The rate is the share of overrides among the mismatches that an arbiter may override, since the
    random rule is only asked about these.
    """
    one = model["tries"][model["chosen"]]
    num_open = one.get("num_open_mismatches", one["num_mismatches"])
    rate = f"rate={one['num_overrides'] / max(1, num_open):.4g}"
    setting = {"k": one["k"], "arbiter": f"random:{rate}", "knob": rate}
    return {
        "arm": spec.name,
        "kind": spec.kind,
        "temperature": temperature,
        "matches": model["arm"],
        "tries": [setting],
        "chosen": 0,
    }
