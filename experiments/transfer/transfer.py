"""Trained arbiters on tasks and pairs that they have not seen, beside rules.

    python experiments/transfer/transfer.py --arbiter SPEC [SPEC ...] -k 16 \
        --json runs/transfer.json

Each pair (``--pair``, by default the bundled ones) solves test problems of each task (``--task``).
What is written for each pair and task are the arms of ``cospec eval``, without texts: which
problems each arm got right, as a string with a 1 for each that was. Finished turns are kept beside
the result file, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cospec.arbiters import load_arbiter
from cospec.cli.common.options import PairOptions, set_threads
from cospec.cli.common.play import play
from cospec.config import DecodeConfig
from cospec.evaluation.arms import make_arms
from cospec.evaluation.evaluate import Evaluation
from cospec.evaluation.turns import TurnLog
from cospec.models.bundled import BUNDLED_PAIRS
from cospec.results import Provenance, check_writable, document, write_json
from cospec.tasks import load_task

TASKS = ("gsm_symbolic", "chain_sum", "products", "gcd", "simple_geometry")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--arbiter", nargs="+", required=True)
    parser.add_argument("--pair", nargs="+", default=[f"bundled:{name}" for name in BUNDLED_PAIRS])
    parser.add_argument("--task", nargs="+", default=TASKS, help="reasoning-gym's names")
    parser.add_argument("-k", type=int, default=16)
    parser.add_argument("--num-problems", type=int, default=300)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    check_writable(args.json, overwrite=False)
    set_threads(1)
    provenance = Provenance()
    config = {name: value for name, value in vars(args).items() if name != "json"}
    log = TurnLog.beside(args.json, config, provenance.to_dict("cpu", "torch.float32"))
    cells = []
    for name in args.pair:
        pair = PairOptions(pair=name).load()
        arms = make_arms(
            pair,
            [(spec, load_arbiter(spec, pair)) for spec in args.arbiter],
            DecodeConfig(num_speculative_tokens=args.k, batch_size=args.batch_size),
        )
        for short in args.task:
            task = load_task(f"reasoning_gym:{short}")
            examples = task.examples("test", args.num_problems, seed=args.seed)
            evaluation = Evaluation(arms, task, examples, seed=args.seed)
            result = evaluation.result(play(evaluation, log, f"{name} {short}"))
            right = {arm["name"]: "" for arm in result["arms"]}
            for row in result["rows"]:
                right[row["arm"]] += str(int(row["correct"]))
            found = [arm | {"correct": right[arm["name"]]} for arm in result["arms"]]
            cells.append({"pair": name, "task": short, "arms": found})
            print(f"{name}, {short}: {len(examples)} problems", flush=True)
    where = provenance.to_dict("cpu", "torch.float32")
    write_json(args.json, document("transfer", config, where, cells=cells))
    log.remove()


if __name__ == "__main__":
    main()
