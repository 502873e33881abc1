"""Gather the bits of a run of `heldout.py` into one result file a pair.

    python experiments/heldout_templates/summarise.py FOLDER [--add]

`experiments/readme.py` makes the tables from these files: all figures come from the bits. Intervals
are drawn over the templates.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from cospec.evaluation.stats import cluster_interval, mcnemar_p
from cospec.results import read_text, write_json

HERE = Path(__file__).parent
Json = dict[str, Any]
PAIRS = ("specialist", "family")
BASE = "lossless"
_COUNTS = ("num_tokens", "num_target_forwards", "num_overrides")


def gather(folder: Path) -> Json:
    """The bits of all arms of a pair, problem by problem, and where an arm was tested."""
    files: dict[str, dict[tuple[int, int], Json]] = defaultdict(dict)
    for path in folder.glob("test-fold*-tier*-*.json"):
        _, fold, tier, arm = path.stem.split("-", 3)
        place = int(fold.removeprefix("fold")), int(tier.removeprefix("tier"))
        files[arm][place] = json.loads(path.read_text(encoding="utf-8"))
    base = files[BASE]
    arms: Json = {}
    for arm, found in sorted(files.items()):
        places = sorted(found)
        for place in places:
            assert found[place]["problems_sha256"] == base[place]["problems_sha256"], (arm, place)
        parts = [found[place] for place in places]
        arms[arm] = {
            "tested": [list(place) for place in places],
            "arbiters": list(dict.fromkeys(part["arbiter"] for part in parts)),
            "correct": ["".join(map(str, part["correct"])) for part in parts],
            **{name: [sum(part[name]) for part in parts] for name in _COUNTS},
            "cpu_seconds": round(sum(part["cpu_seconds"] for part in parts)),
        }
    places = sorted(base)
    return {
        "tested": [list(place) for place in places],
        "tasks": [base[place]["task"] for place in places],
        "problems_sha256": [base[place]["problems_sha256"] for place in places],
        "templates": [base[place]["templates"] for place in places],
        "arms": arms,
        "training": {
            path.name.removesuffix(".metrics.jsonl"): [
                json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()
            ]
            for path in sorted(folder.glob("*.metrics.jsonl"))
        },
        "provenance": base[places[0]]["provenance"],
    }


def add_twins(result: Json, num_tiers: int) -> None:
    """Mark the problems that differ by names alone from a solution that ``seen`` read."""
    sys.path.insert(0, str(HERE))
    from heldout import (  # noqa: PLC0415
        NUM_FOLDS,
        SOLUTION_SEED,
        TEST_SEED,
        TIER,
        parts_of,
        task_of,
    )

    from cospec.tasks.gsm_symbolic import twin_key  # noqa: PLC0415

    tasks = [task_of(fold, held_out=True) for fold in range(NUM_FOLDS)]
    solved = [task.examples("train", num_tiers * TIER, SOLUTION_SEED) for task in tasks]
    keys = {
        twin_key(e.metadata["template"], e.question)
        for fold, tier in parts_of(None, num_tiers)
        for e in solved[fold][tier * TIER : (tier + 1) * TIER]
    }
    result["num_solutions"] = len(parts_of(None, num_tiers)) * TIER
    result["has_twin"] = []
    for fold, tier in result["tested"]:
        examples = tasks[fold].examples("test", (tier + 1) * TIER, TEST_SEED)[tier * TIER :]
        found = [twin_key(e.metadata["template"], e.question) in keys for e in examples]
        result["has_twin"].append("".join(str(int(bit)) for bit in found))


def gain(result: Json, ours: str, theirs: str, group: str = "01") -> str:
    """Points that an arm has over another, the interval over templates, won and lost, and p.

    Args:
        result: Of a pair.
        ours: The arm.
        theirs: The other; problems count on which both were tested.
        group: Which problems count, by their bit of ``has_twin``.
    """
    arms, sums, won, lost = result["arms"], defaultdict(lambda: [0, 0]), 0, 0
    for place, templates, twins in zip(
        result["tested"], result["templates"], result["has_twin"], strict=True
    ):
        if any(place not in arms[arm]["tested"] for arm in (ours, theirs)):
            continue
        bits = (arms[arm]["correct"][arms[arm]["tested"].index(place)] for arm in (ours, theirs))
        for right, was, template, twin in zip(*bits, templates, twins, strict=True):
            if twin in group:
                sums[template][0] += int(right) - int(was)
                sums[template][1] += 1
                won, lost = won + (right > was), lost + (right < was)
    low, high = cluster_interval([(change, size) for change, size in sums.values()])
    points = 100 * (won - lost) / sum(size for _, size in sums.values())
    p = mcnemar_p(won, lost)
    return f"{points:+.1f} ({100 * low:.1f} to {100 * high:.1f}; {won} / {lost}, p {p:.2g})"


def table(pair: str) -> str:
    """One line an arm: accuracy, gains over lossless decoding, target forwards."""
    result = read(pair)
    lines = [
        "| arm | problems | right | over lossless | with a twin | without | target forwards |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for arm, found in result["arms"].items():
        bits = "".join(found["correct"])
        shown = f"| {arm} | {len(bits)} | {bits.count('1') / len(bits):.1%} |"
        gains = [gain(result, arm, BASE, group) for group in ("01", "1", "0")]
        gains = gains if arm != BASE else [""] * 3
        forwards = "" if arm in ("draft", "target") else f"{_forwards(result, arm):.3f}"
        lines.append(f"{shown} {' | '.join(gains)} | {forwards} |")
    return "\n".join(lines)


def contest(pair: str) -> str:
    """Arms against others on the same problems: those of new templates, and controls."""
    result = read(pair)
    lines = ["| | points |", "| --- | --- |"]
    for arm in result["arms"]:
        for rival in dict.fromkeys(_rivals(arm)):
            if rival in result["arms"] and rival != arm:
                lines.append(f"| {arm} over {rival} | {gain(result, arm, rival)} |")
    return "\n".join(lines)


def _rivals(arm: str) -> list[str]:
    """The arms that one is held against."""
    solved, _, method = arm.rpartition("-")
    rivals = [f"{solved}-rounds"] if method in ("gold", "autojudge") else []
    if arm.startswith("fold-"):
        rivals += [arm.replace("fold-", "seen-"), "rule", "shipped", arm.removesuffix("-rounds")]
        rivals += [f"{solved}-again"] if method in ("gold", "autojudge", "rounds") else []
        return ["fold-seed0-n8000", *rivals] if "-scratch" in arm else rivals
    return rivals


def _forwards(result: Json, arm: str) -> float:
    """Target forwards of an arm over those of lossless decoding on the same problems."""
    ours, base = result["arms"][arm], result["arms"][BASE]
    places = [base["tested"].index(place) for place in ours["tested"]]
    counts = base["num_target_forwards"]
    return float(sum(ours["num_target_forwards"]) / sum(counts[i] for i in places))


def read(pair: str) -> Json:
    """The result file of a pair."""
    result: Json = json.loads(read_text(_path(pair)))
    return result


def _path(pair: str) -> Path:
    return HERE / f"heldout_templates_{pair}.json.gz"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=Path, help="the folder of heldout.py")
    parser.add_argument("--tiers", type=int, default=10, help="tiers of which twins are sought")
    parser.add_argument("--add", action="store_true", help="arms to the result files that exist")
    args = parser.parse_args()
    for pair in PAIRS:
        if not (args.work / pair).exists():
            continue
        found = gather(args.work / pair)
        if args.add:
            result = read(pair)
            assert found["problems_sha256"] == result["problems_sha256"], "paired by problem"
            assert found["arms"][BASE]["correct"] == result["arms"][BASE]["correct"]
            result["arms"] = dict(sorted((found["arms"] | result["arms"]).items()))
            result["training"] |= found["training"]
        else:
            head = {"schema": 1, "command": "heldout_templates", "pair": f"bundled:{pair}"}
            result = head | found
            add_twins(result, args.tiers)
        write_json(_path(pair), result)
        print(table(pair), contest(pair), sep="\n\n")


if __name__ == "__main__":
    main()
