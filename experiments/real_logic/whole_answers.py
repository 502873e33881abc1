"""Compare ways to fit an arbiter of one correction on left-out problems of an audit.

    python experiments/real_logic/whole_answers.py AUDIT [--arms ARBITER RULE...] [--json FILE]

AUDIT.json and AUDIT.safetensors are what `run.sh` makes with ``cospec audit --arbiter always_draft
--max-corrections 1``. For each problem they hold the draft's answer and, for each of its mismatches
in turn, the answer after the target takes over there. So they hold all that an arbiter of one
correction can write. The ways to fit are those of `experiments/text_to_sql/trees.py`. One of them,
hidden_few.reward, is ``cospec train --method one_correction`` with hidden states and
`examples/few_scalars.json`. With --arms nothing is fitted: FILE has what each arbiter writes.
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
from trees import Tree, play, tabulate


def read(audit: Path) -> list[Tree]:
    """Read the problems of an audit, each with all answers that one correction can give."""
    with safe_open(audit.with_suffix(".safetensors"), "pt") as file:
        ids = json.loads(file.metadata()["problem_ids"])
        names = json.loads(file.metadata()["feature_names"])
        problem, features = file.get_tensor("problem"), file.get_tensor("features")
        corrected = file.get_tensor("target_correct")
    assert len(names) == len(HIDDEN.names)
    rows = json.loads(read_text(audit.with_suffix(".json")))["rows"]
    kept = {row["id"]: float(row["correct"]) for row in rows}
    return [
        Tree(name, name, name, features[problem == i], corrected[problem == i].long(), kept[name])
        for i, name in enumerate(ids)
    ]


def main() -> None:
    """Print the table of the left-out problems, or what arms write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("audit", type=Path, help="the audit's files, without their suffix")
    parser.add_argument("--arms", nargs="+", help="folders of arbiters, and rules with a number")
    parser.add_argument("--json", type=Path, help="the table as a file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    trees = read(options.audit)
    if options.arms:
        play(trees, options)
    else:
        tabulate(trees, [], options)


if __name__ == "__main__":
    main()
