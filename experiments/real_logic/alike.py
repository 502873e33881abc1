"""Right answers to logic problems that are like a train problem, and to all others.

    python experiments/real_logic/alike.py --json FILE

Two problems are alike if they have the same premises, in any order, once the variables of one are
renamed. FILE gets a bit for each problem of the results beside this script: 1 if one of the train
problems is like it. A train problem counts as alike if another one is: in `left_out_logic.json.gz`
that one may have been in the nine parts of the fit.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from itertools import permutations
from pathlib import Path

from cospec.evaluation.stats import mcnemar_p
from cospec.results import read_document
from cospec.tasks import Example, load_task

HERE = Path(__file__).parent
TASK = "reasoning_gym:propositional_logic,reasoning=off"
RESULTS = ("left_out_logic", "eval_whole_answers", "more_test_logic", "new_test_logic")
SETS = (("train", 1200, 0), ("test", 400, 72), ("test", 300, 74), ("test", 600, 75))
"""Split, number and seed of the problems in `run.sh`."""
NAMES = "PQRS"


def form(example: Example) -> tuple[str, ...]:
    """Return the sorted premises, under the names that sort first."""
    renamings = [str.maketrans(NAMES, "".join(new)) for new in permutations(NAMES)]
    premises = example.metadata["premises"]
    return min(tuple(sorted(p.translate(names) for p in premises)) for names in renamings)


def bits(name: str) -> tuple[list[str], dict[str, str]]:
    """Return the ids of a result's problems, and the bits of each arm."""
    result = read_document(HERE / f"{name}.json.gz")
    if name == "left_out_logic":
        return result["groups"], result["correct"]
    rows = result["rows"] if name == "eval_whole_answers" else result["arms"]
    return result["ids"], {row.get("arm", row.get("name")): row["correct"] for row in rows}


def count(correct: str, rival: str, chosen: list[bool]) -> str:
    """Return the share of right answers to the chosen problems, and how they compare."""
    pairs = [(a, b) for a, b, one in zip(correct, rival, chosen, strict=True) if one]
    won, lost = pairs.count(("1", "0")), pairs.count(("0", "1"))
    share = sum(a == "1" for a, _ in pairs) / len(pairs)
    return f"{share:.1%} of {len(pairs)} ({won} / {lost}, p {mcnemar_p(won, lost):.2g})"


def main() -> None:
    """Print the table, and write the bits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    task = load_task(TASK)
    forms = {e.id: form(e) for settings in SETS for e in task.examples(*settings)}
    train = Counter(forms[e.id] for e in task.examples(*SETS[0]))
    found = {}
    for name in RESULTS:
        ids, arms = bits(name)
        least = 2 if name == "left_out_logic" else 1
        alike = [train[forms[one]] >= least for one in ids]
        found[name] = "".join(str(int(one)) for one in alike)
        rival = next(correct for arm, correct in arms.items() if arm.startswith("gap"))
        print(f"{name}: {sum(alike)} of {len(ids)} are like a train problem; won and lost over gap")
        for arm, correct in arms.items():
            kinds = (alike, [not one for one in alike])
            print(f"  {arm}:", "; others ".join(count(correct, rival, kind) for kind in kinds))
    options.json.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
