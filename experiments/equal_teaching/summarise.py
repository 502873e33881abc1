"""Gather what teaching gave into one result file; `experiments/readme.py` makes the table from it.

    python experiments/equal_teaching/summarise.py FOLDER [--best MODEL]

FOLDER holds the taught models and what `heldout.py` decoded with them, as `run.sh` names them. Arms
of the result file whose folder is missing stay as they are. With ``--best`` the folder of that
model, target or draft, is printed that was best on the tune problems.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from experiments.heldout_templates import summarise as heldout  # noqa: E402

from cospec.results import read_text, write_json  # noqa: E402

RESULT = Path(__file__).parent / "equal_teaching_family.json.gz"
MORE_TIERS = 125
"""Tiers of solutions that ``more`` learned."""
NAMES = {
    "taught_target": {
        "lossless": "taught",
        "rule": "taught-rule",
        "seen-seed0-n8000": "taught-arbiter",
    },
    "taught_draft": {
        "lossless": "taught_draft-lossless",
        "draft": "taught_draft",
        "rule": "taught_draft-rule",
        "seen-seed0-n8000": "taught_draft-arbiter",
    },
    "taught_pair": {
        "lossless": "taught_again",
        "rule": "taught_pair-rule",
        "seen-seed0-n8000": "taught_pair-arbiter",
    },
    "taught_more": {
        "lossless": "taught_more",
        "rule": "taught_more-rule",
        "shipped": "taught_more-shipped",
        "seen-seed0-n8000": "taught_more-arbiter",
    },
    "taught_draft_more": {
        "draft": "more_draft",
        "rule": "more_draft-rule",
        "seen-seed0-n8000": "more_draft-arbiter",
    },
    "taught_pair_more": {
        "rule": "more_pair-rule",
        "seen-seed0-n8000": "more_pair-arbiter",
    },
}
"""By folder, the arms of `heldout.py` and their names in the result."""
ROWS = {
    "lossless": "target",
    "draft": "draft alone",
    "rule": "target, with the rule",
    "seen-seed0-n8000": "target, with an arbiter that learned the same 8,000",
    "shipped": "target, with the shipped arbiter (100,000 solutions)",
    "taught_draft": "taught draft alone",
    "taught_draft-rule": "target and taught draft, with the rule",
    "taught_draft-arbiter": "target and taught draft, with an arbiter that learned the same 8,000",
    "taught": "taught target",
    "taught-rule": "taught target, with the rule",
    "taught-arbiter": "taught target, with an arbiter that learned the same 8,000",
    "taught_again": "target taught again",
    "taught_pair-rule": "target taught again and taught draft, with the rule",
    "taught_pair-arbiter": "the same two, with an arbiter that learned the same 8,000",
    "taught_more": "target taught 100,000",
    "taught_more-rule": "target taught 100,000, with a rule",
    "taught_more-shipped": "target taught 100,000, with the shipped `bundled-scalar`",
    "taught_more-arbiter": "target taught 100,000, with an arbiter that learned 8,000 of them",
    "more_draft": "draft taught 100,000, alone",
    "more_draft-rule": "target and draft taught 100,000, with a rule",
    "more_draft-arbiter": "target and draft taught 100,000, with an arbiter that learned 8,000",
    "more_pair-rule": "both taught 100,000, with a rule",
    "more_pair-arbiter": "both taught 100,000, with an arbiter that learned 8,000",
}
ALONE = ("draft", "taught_draft", "more_draft")
"""Arms of a draft that decodes alone."""
AGAINST = {
    "taught_again": "taught_again",
    "taught_pair-rule": "taught_again",
    "taught_pair-arbiter": "taught_again",
    "taught_more-rule": "taught_more",
    "taught_more-shipped": "taught_more",
    "taught_more-arbiter": "taught_more",
    "more_draft": "taught_more",
    "more_draft-rule": "taught_more",
    "more_draft-arbiter": "taught_more",
    "more_pair-rule": "taught_more",
    "more_pair-arbiter": "taught_more",
}
"""By arm, the taught target that it is held against, if not the first one."""


def taught(folder: Path, model: str) -> list[tuple[Path, heldout.Json]]:
    """The taught ones of a model with what is known of them, the best on tune problems first.

    ``more`` is a model with more solutions.
    """
    found = [
        (path.parent, json.loads(path.read_text(encoding="utf-8")))
        for path in folder.glob(f"{model}-*/taught.json")
    ]
    return sorted(found, key=lambda one: -one[1]["tune_accuracy"])


def merged() -> heldout.Json:
    """The held-out result of the pair with the arms of this one."""
    result, own = heldout.read("family"), json.loads(read_text(RESULT))
    assert result["problems_sha256"] == own["problems_sha256"], "they are paired by problem"
    result["arms"] |= own["arms"]
    result["has_twin_more"] = own["has_twin_more"]
    return result


def table() -> str:
    """Accuracy of each arm, its gains over the target and the taught target, and its forwards."""
    result = merged()
    lines = [
        "| | right | over the target | over the taught target | tokens a target forward |",
        "| --- | --- | --- | --- | --- |",
    ]
    for arm, label in ROWS.items():
        if arm not in result["arms"]:
            continue
        bits = "".join(result["arms"][arm]["correct"])
        others = "lossless", AGAINST.get(arm, "taught")
        gains = ["" if arm == other else heldout.gain(result, arm, other) for other in others]
        sums = [sum(result["arms"][arm][n]) for n in ("num_tokens", "num_target_forwards")]
        speed = "" if arm in ALONE else f"{sums[0] / sums[1]:.2f}"
        right = f"{bits.count('1') / len(bits):.1%}"
        lines.append(f"| {label} | {right} | {' | '.join(gains)} | {speed} |")
    return "\n".join(lines)


def twins() -> str:
    """Gains over the target on problems with and without a twin among the 100,000 solutions."""
    result = merged()
    result |= {"has_twin": result["has_twin_more"]}
    lines = ["| | all | with a twin | without |", "| --- | --- | --- | --- |"]
    for arm in ("shipped", "taught_more", "more_draft-arbiter", "more_pair-arbiter"):
        gains = [heldout.gain(result, arm, "lossless", group) for group in ("01", "1", "0")]
        lines.append(f"| {ROWS[arm]} | {' | '.join(gains)} |")
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--best", choices=["target", "draft"])
    args = parser.parse_args()
    if args.best:
        print(taught(args.work, args.best)[0][0])
        return
    result = json.loads(read_text(RESULT))
    kinds = "target", "draft", "more"
    models = [about for kind in kinds for _, about in taught(args.work, kind)]
    settings = "model", "rate", "epochs", "num_solutions", "bfloat16_products"
    known = {tuple(map(one.get, settings)): one for one in result["teaching"] + models}
    result["teaching"] = sorted(known.values(), key=lambda one: -one["tune_accuracy"])
    for folder, names in NAMES.items():
        if not (args.work / folder).exists():
            continue
        decoded = heldout.gather(args.work / folder / "family")
        assert decoded["problems_sha256"] == result["problems_sha256"], "they are paired by problem"
        arms = {names[arm]: found for arm, found in decoded["arms"].items() if arm in names}
        result["arms"] |= arms
        result["provenance"] = decoded["provenance"]
    if "has_twin_more" not in result:  # minutes: 100,000 problems are made again
        found = {"tested": result["tested"]}
        heldout.add_twins(found, MORE_TIERS)
        result["has_twin_more"] = found["has_twin"]
    write_json(RESULT, result)
    print(table(), twins(), sep="\n\n")


if __name__ == "__main__":
    main()
