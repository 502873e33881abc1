"""Compare ways to fit an arbiter of one correction on left-out problems of an audit.

    python experiments/real_logic/whole_answers.py AUDIT [--groups FILE] [--json FILE]

AUDIT.json and AUDIT.safetensors are what `run.sh` makes with ``cospec audit --arbiter always_draft
--max-corrections 1``. For each problem they hold the draft's answer and, for each of its mismatches
in turn, the answer after the target takes over there. So they hold all that an arbiter of one
correction can write. The ways to fit are those of `experiments/text_to_sql/trees.py`. One of them,
hidden_few.reward, is ``cospec train --method one_correction`` with hidden states and
`examples/few_scalars.json`. With --groups, all questions of a group are left out together.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open

from cospec.results import read_text

sys.path.append(str(Path(__file__).parents[1] / "text_to_sql"))

from learn import HIDDEN
from trees import Tree, tabulate


def read(audit: Path, groups: Path | None) -> list[Tree]:
    """Read the problems of an audit, each with all answers that one correction can give."""
    lines = [] if groups is None else groups.read_text(encoding="utf-8").splitlines()
    group_of = {str(n): str(json.loads(line)["group"]) for n, line in enumerate(lines)}
    with safe_open(audit.with_suffix(".safetensors"), "pt") as file:
        ids = json.loads(file.metadata()["problem_ids"])
        names = json.loads(file.metadata()["feature_names"])
        problem, features = file.get_tensor("problem"), file.get_tensor("features")
        corrected = file.get_tensor("target_correct")
    assert len(names) == len(HIDDEN.names)
    rows = json.loads(read_text(audit.with_suffix(".json")))["rows"]
    kept = {row["id"]: float(row["correct"]) for row in rows}
    found = []
    for i, name in enumerate(ids):
        here, group = problem == i, group_of.get(name.rpartition("/")[2], name)
        found.append(Tree(name, group, group, features[here], corrected[here].long(), kept[name]))
    return found


def main() -> None:
    """Print the table of the left-out problems."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("audit", type=Path, help="the audit's files, without their suffix")
    parser.add_argument("--groups", type=Path, help="JSONL file of the questions, with groups")
    parser.add_argument("--json", type=Path, help="the table as a file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tabulate(read(options.audit, options.groups), [], options)


if __name__ == "__main__":
    main()
