"""Two result documents side by side: whether they may be compared, and a paired comparison.

Knows documents only (``docs/result_files.md``), no models. ``a`` is the first file, ``b`` the
second; wins are problems that only b gets right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cospec.config import DECIDING
from cospec.errors import ConfigError, unknown_name
from cospec.evaluation.summary import TARGET, p_value, paired, speeds_alike

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from cospec.results import Json

Place = tuple[str, int, float]
"""Task, batch size and temperature of a cell."""
_DECODE = tuple(name for name in DECIDING if name != "num_speculative_tokens")  # k is each arm's
_MODELS = ("pair", "target", "draft")
_OF_PROBLEMS = ("metadata", "prompts")


def conditions(document: Json) -> Json:
    """Return the conditions that two runs must share if only their arms are to differ, by key.

    Conditions that a document does not record are left out. The version of CoSpec and its commit
    are no conditions, since one may want to compare them.
    """
    config, provenance = document["config"], document["provenance"]
    evaluation, models = config["evaluation"], config.get("models", {})
    digest = f"{evaluation['num_problems']} problems, sha256 {evaluation['problems_sha256'][:12]}"
    found = {
        "task": evaluation["task"],
        "problems": digest,
        **{  # once not recorded
            name: evaluation[f"{name}_sha256"]
            for name in _OF_PROBLEMS
            if f"{name}_sha256" in evaluation
        },
        "seed": evaluation["seed"],
        "max_new_tokens": evaluation["max_new_tokens"],
        "exact_prefix_tokens": evaluation.get("exact_prefix_tokens", 0),  # once not recorded
        **{name: config["pair"][name] for name in _MODELS},
        **models,
        **{f"arbiters.{spec}": known for spec, known in config.get("arbiters", {}).items()},
        **{name: provenance[name] for name in ("dtype", "device", "threads")},
    }
    engine = config.get("engine", {})
    names = ("backend", "tensor_parallel_size", "vllm_options", "num_replicas")
    found |= {name: engine[name] for name in names if name in engine}
    for part in ("decode", "bench", "calibrate"):  # a document has one of them
        decode = config.get(part, {})
        found |= {name: decode[name] for name in _DECODE if name in decode}
    for name, version in provenance["versions"].items():
        if name != "cospec":
            found[f"versions.{name}"] = version
    return found


def differences(a: Json, b: Json) -> dict[str, tuple[object, object]]:
    """Return conditions that both documents record with different values, by key.

    Names of models count where a document has no hash of their weights.
    """
    ours, theirs = conditions(a), conditions(b)
    names = _MODELS if "fingerprint" in ours and "fingerprint" in theirs else ()
    if ours["problems"] != theirs["problems"]:
        names = (*names, *_OF_PROBLEMS)  # these differ in any case
    return {
        key: (ours[key], theirs[key])
        for key in ours
        if key in theirs and ours[key] != theirs[key] and key not in names
    }


def check_alike(a: Json, b: Json, allow: Collection[str] = ()) -> None:
    """Refuse to compare runs that were made under other conditions.

    Args:
        a: A result document.
        b: Another result document.
        allow: Conditions that may differ, by key; ``versions`` stands for those of all libraries,
            ``arbiters`` for the weights or memories of all arbiters.

    Raises:
        ConfigError: Other conditions differ (the message lists all), or a key is unknown.
    """
    known = {"versions", "arbiters", *conditions(a), *conditions(b)}
    for key in allow:
        if key not in known:
            raise ConfigError(unknown_name("condition in --allow:", key, known))
    unlike = {
        key: values
        for key, values in differences(a, b).items()
        if key not in allow and key.partition(".")[0] not in allow
    }
    if unlike:
        listed = "\n".join(f"  {key}: {x!r} and {y!r}" for key, (x, y) in unlike.items())
        raise ConfigError(
            f"the two runs were made under other conditions:\n{listed}\nCompare runs that share "
            f"them, or accept these by --allow {' '.join(unlike)}."
        )


def compare(a: Json, b: Json, *, any_task: bool = False) -> list[Json]:
    """Pair the arms that both documents have, on the problems that both have.

    Args:
        a: A result document of ``eval`` or ``bench`` (``demo`` and ``calibrate`` have its shape).
        b: Another one, made under the same conditions (`check_alike`).
        any_task: Allow different tasks, as where one file has two names. Cells are then paired by
            batch size and temperature, and problems by id.

    Returns:
        An entry for each common cell: ``task``, ``batch_size``, ``temperature``, ``arms``, and the
        names of other arms, ``only_in_a`` and ``only_in_b``. Each common arm that is no ceiling has
        ``name``, ``num_problems``, ``num_right``, ``settings``, ``num_turns`` (None where a file
        has no times of turns), ``tokens_per_s`` and ``speedup_vs_target`` in both, and the paired
        comparison (see `paired`; wins are those of b). It also has ``speed_ratio`` (seconds a
        problem in a over those in b) and ``forwards_ratio`` (the same for target forwards), both
        None where a file has problems that the other lacks. ``num_texts_unlike`` is None if one of
        them keeps no texts.

    Raises:
        ConfigError: They have no cell, or no problem, in common.
    """
    ours, theirs = _cells(a), _cells(b)
    if any_task:
        theirs = _renamed(theirs, ours)
    common = [place for place in ours if place in theirs]
    if not common:
        raise ConfigError(
            "the two runs have no cell (task, batch size, temperature) in common: "
            f"{_named(ours)} and {_named(theirs)}."
        )
    return [
        dict(zip(("task", "batch_size", "temperature"), place, strict=True))
        | _compare_cells(ours[place], theirs[place])
        for place in common
    ]


def _renamed(theirs: dict[Place, Json], ours: dict[Place, Json]) -> dict[Place, Json]:
    """Return cells under the task of other cells, if each document has only one task."""
    (task, *more), others = {task for task, _, _ in ours}, {task for task, _, _ in theirs}
    if more or len(others) > 1:
        return theirs
    return {(task, size, t): cell for (_, size, t), cell in theirs.items()}


def _named(places: Collection[Place]) -> str:
    return "; ".join(f"{task}, batch {size}, temperature {t:g}" for task, size, t in places)


def _cells(document: Json) -> dict[Place, Json]:
    """Return the cells of a document; a document with arms of its own is one cell."""
    cells = document.get("cells")
    if cells is None:
        evaluation = document["config"]["evaluation"]
        place = {
            "batch_size": evaluation["max_batch_size"],
            "temperature": evaluation.get("temperature", 0.0),
        }
        k = {"k": evaluation["num_speculative_tokens"]}
        arms = [arm | (k if arm["arbiter"] else {}) for arm in document["arms"]]
        cells = [document | place | {"task": evaluation["task"], "arms": arms}]
    return {(c["task"], c["batch_size"], float(c["temperature"])): c for c in cells}


def full_rows(cell: Json) -> dict[str, dict[str, Json]]:
    """Return the rows of a cell by arm and problem, with every text in place if it keeps texts."""
    if "ids" in cell:  # made by experiments/slim.py
        groups = [
            {} if group is None else {"group": group}
            for group in cell.get("groups", [None] * len(cell["ids"]))  # older files have none
        ]
        return {
            row["arm"]: {
                name: {"correct": mark == "1", "text": None} | group
                for name, mark, group in zip(cell["ids"], row["correct"], groups, strict=True)
            }
            for row in cell["rows"]
        }
    rows: dict[str, dict[str, Json]] = {}
    for row in cell["rows"]:
        rows.setdefault(row["arm"], {})[row["id"]] = row
    return {
        arm: {
            name: row if row["text"] is not None else row | {"text": rows[TARGET][name]["text"]}
            for name, row in found.items()
        }
        for arm, found in rows.items()
    }


def _compare_cells(a: Json, b: Json) -> Json:
    """The comparison of two cells."""
    rows_a, rows_b = full_rows(a), full_rows(b)
    arms_a, arms_b = (
        {
            arm["name"]: speeds_alike(arm, cell)
            for arm in cell["arms"]
            if arm.get("kind") != "ceiling"
        }
        for cell in (a, b)
    )
    entries = []
    for name in (name for name in arms_a if name in arms_b):
        shared = [key for key in rows_a[name] if key in rows_b[name]]
        if not shared:
            raise ConfigError(
                "the two runs have no problem in common; compare runs on the same task and split."
            )
        ours, theirs = ([rows[name][key] for key in shared] for rows in (rows_a, rows_b))
        entries.append(_entry(arms_a[name], arms_b[name], ours, theirs))
    return {
        "arms": entries,
        "only_in_a": [name for name in arms_a if name not in arms_b],
        "only_in_b": [name for name in arms_b if name not in arms_a],
    }


def _entry(a: Json, b: Json, rows_a: Sequence[Json], rows_b: Sequence[Json]) -> Json:
    """One arm in both runs."""
    seconds = [arm["seconds"] / arm["num_problems"] for arm in (a, b)]
    forwards = [arm["num_target_forwards"] / arm["num_problems"] for arm in (a, b)]
    # Times and forwards cover all problems of a file: if one has others, there is no ratio.
    is_same = all(arm["num_problems"] == len(rows_a) for arm in (a, b))
    both = list(zip(rows_a, rows_b, strict=True))
    has_texts = all(row["text"] is not None for rows in both for row in rows)
    return {
        "name": a["name"],
        "num_problems": len(rows_a),
        "num_right": [sum(row["correct"] for row in rows) for rows in (rows_a, rows_b)],
        **paired(rows_b, rows_a),
        "settings": [{key: arm.get(key) for key in ("k", "knob")} for arm in (a, b)],
        "num_turns": [arm["num_turns"] for arm in (a, b)],
        "tokens_per_s": [arm["tokens_per_s"] for arm in (a, b)],
        "speedup_vs_target": [arm["speedup_vs_target"] for arm in (a, b)],
        "speed_ratio": seconds[0] / seconds[1] if is_same else None,
        "forwards_ratio": forwards[0] / forwards[1] if is_same and forwards[1] else None,
        "num_texts_unlike": sum(x["text"] != y["text"] for x, y in both) if has_texts else None,
    }


def worse_arms(cells: Sequence[Json], alpha: float) -> list[str]:
    """Arms that are significantly less accurate in b.

    Args:
        cells: From `compare`.
        alpha: Largest probability of naming any arm if none is worse (Bonferroni).
    """
    entries = [(cell, arm) for cell in cells for arm in cell["arms"]]
    return [
        f"{arm['name']} (batch {cell['batch_size']}, temperature {cell['temperature']:g})"
        for cell, arm in entries
        if arm["losses"] > arm["wins"] and p_value(arm) < alpha / len(entries)
    ]
