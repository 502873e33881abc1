r"""How near trained arbiters come to the oracle, on problems that an audit and an evaluation share.

    cospec audit ... --split test --seed S --dataset DATA.safetensors --json AUDIT.json
    cospec eval  ... --split test --seed S --json EVAL.json
    python experiments/rounds_alone/oracle_agreement.py AUDIT.json EVAL.json \
        --data DATA.safetensors --json runs/NAME.json

For each trained arbiter of the evaluation: at mismatches of the target's own path whose branches
end differently, how often it rules as the oracle does, next to always taking the target's token;
and the share of the oracle path's gain in right answers that it captures. Intervals are bootstraps
over problems.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import safe_open

from cospec.arbiters import load_arbiter
from cospec.arbiters.learned import LearnedArbiter
from cospec.evaluation.audit.summary import _ratio
from cospec.results import Provenance, document, write_json

if TYPE_CHECKING:
    from cospec.results import Json


def agreement(keep: np.ndarray, wins: np.ndarray, problem: np.ndarray, num_problems: int) -> Json:
    """Share of the mismatches that decide an answer at which the ruling is the oracle's.

    Args:
        keep: Whether the draft's token is kept, (N,) bool.
        wins: Whether the draft's branch is the right one, (N,) bool.
        problem: Index of the problem, (N,) int.
        num_problems: Of the audit.
    """
    right = np.bincount(problem, keep == wins, num_problems)
    return _ratio(right, np.bincount(problem, minlength=num_problems).astype(float))


def captured(eval_rows: list[Json], records: list[Json], arm: str) -> Json:
    """Right answers that an arm wins over the target, of those that the oracle path wins."""
    right = {(row["arm"], row["id"]): float(row["correct"]) for row in eval_rows}
    ids = [record["id"] for record in records]
    target = np.array([right["target", i] for i in ids])
    oracle = np.array([float(record["oracle_correct"]) for record in records])
    won = np.array([right[arm, i] for i in ids]) - target
    return {"gain": _ratio(won, np.ones_like(won)), "captured": _ratio(won, oracle - target)}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("audit", type=Path)
    parser.add_argument("evaluation", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    provenance = Provenance()
    audit, evaluation = (json.loads(p.read_text()) for p in (args.audit, args.evaluation))
    with safe_open(args.data, "pt") as file:
        data = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    differ = data["draft_correct"] != data["target_correct"]
    wins, problem = (data[name][differ].numpy() for name in ("draft_correct", "problem"))
    records = audit["rows"]
    rows = []
    for arm in evaluation["arms"]:
        arbiter = load_arbiter(arm["arbiter"]) if arm["arbiter"] else None
        if not isinstance(arbiter, LearnedArbiter):
            continue
        with torch.no_grad():
            keep = torch.sigmoid(arbiter.policy(data["features"][differ])) > arbiter.threshold
        rows.append(
            {
                "arm": arm["name"],
                "agreement": agreement(keep.numpy(), wins, problem, len(records)),
                **captured(evaluation["rows"], records, arm["name"]),
            }
        )
    always_target = agreement(np.zeros_like(wins), wins, problem, len(records))
    summary = {"num_problems": len(records), "always_target": always_target}
    config = {"audit": args.audit.name, "evaluation": args.evaluation.name}
    where = provenance.to_dict("cpu", "torch.float32")
    result = document("oracle_agreement", config, where, summary=summary, rows=rows)
    write_json(args.json, result)
    print(json.dumps(result["summary"]))
    for row in rows:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
