"""What a ruling costs: the time an arbiter takes of the blocks that it rules on.

Untrained policies (the weights do not matter to the time) rule at threshold 1, so that all arms
decode the same texts in the same blocks: ``lossless`` has no policy, ``scalar`` and ``hidden`` are
the two feature specs, each at batch 1 and 8. All arms run in one process and take turns; each
figure is the median of five trials after a warm-up. A ruling is features and policy; what the
engine does to supply them (copies of logits, hooks for hidden states) is in the step, so that
``step_over_lossless`` is the whole price. On a GPU the device is waited for around each call.

Usage::

    python experiments/ruling_cost/ruling_cost.py --pair bundled:family --json runs/…_family.json
    python experiments/ruling_cost/ruling_cost.py --target T --draft D --json runs/…_real.json
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import torch
from transformers.utils import logging

from cospec import Engine, ModelPair, SamplingConfig
from cospec.arbiters import AlwaysTarget
from cospec.arbiters.learned import LearnedArbiter
from cospec.arbiters.policy import Policy, PolicyConfig
from cospec.cli.common.options import PairOptions
from cospec.engine.speculative import SpeculativeBatch
from cospec.features import FeatureSpec, make_features
from cospec.results import Provenance, check_writable, document, write_json
from cospec.types import Arbiter

TRIALS = 5
BATCH_SIZES = (1, 8)
PROMPT = (
    "Natalia sold clips to {} of her friends in April, and then she sold half as many in May. "
    "How many clips did she sell in April and May together?"
)


@contextmanager
def timed(owner: type, method: str) -> Iterator[list[float]]:
    """The seconds of each call of a method."""
    original: Callable[..., object] = getattr(owner, method)
    seconds: list[float] = []

    def wait() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def call(*args: object) -> object:
        wait()
        start = time.perf_counter()
        result = original(*args)
        wait()
        seconds.append(time.perf_counter() - start)
        return result

    setattr(owner, method, call)
    try:
        yield seconds
    finally:
        setattr(owner, method, original)


def arbiters(pair: ModelPair) -> dict[str, Arbiter]:
    """By name: no policy, and an untrained one for each feature spec."""
    found: dict[str, Arbiter] = {"lossless": AlwaysTarget()}
    for spec in get_args(FeatureSpec):
        features = make_features(spec, pair)
        policy = Policy(len(features.names), PolicyConfig(), num_hidden=features.num_hidden)
        found[spec] = LearnedArbiter(policy.to(pair.target.device), features, threshold=1.0)
    return found


def measure(
    pair: ModelPair, prompts: list[list[int]], k: int, num_new: int, num_trials: int
) -> dict[str, dict[str, object]]:
    """Interleaved trials: milliseconds of a step and of a ruling, by arm."""
    sampling = SamplingConfig(max_new_tokens=num_new, ignore_eos=True)
    engines = {
        f"{name}_b{size}": Engine(
            pair, arbiter, num_speculative_tokens=k, batch_size=size, keep_trace=False
        )
        for name, arbiter in arbiters(pair).items()
        for size in BATCH_SIZES
    }
    arms: dict[str, dict[str, list[float]]] = {
        name: {"step_ms": [], "ruling_ms": [], "ruling_over_step": []} for name in engines
    }
    counts: dict[str, dict[str, int]] = {}
    for trial in range(num_trials + 1):
        for name, engine in engines.items():
            with timed(SpeculativeBatch, "step") as steps, timed(LearnedArbiter, "rule") as rulings:
                done = engine.generate(prompts[: engine.batch_size], sampling)
            counts[name] = {
                "num_steps": len(steps),
                "num_rulings": len(rulings),
                "num_mismatches": sum(c.stats.num_mismatches for c in done),
            }
            if trial:  # the first is the warm-up
                arms[name]["step_ms"].append(1000 * statistics.mean(steps))
                arms[name]["ruling_ms"].append(1000 * sum(rulings) / max(len(rulings), 1))
                arms[name]["ruling_over_step"].append(sum(rulings) / sum(steps))
        print(f"trial {trial} of {num_trials}", flush=True)
    return {
        name: {
            **counts[name],
            **{figure: round(statistics.median(values), 4) for figure, values in trials.items()},
            "trials": {figure: [round(v, 4) for v in values] for figure, values in trials.items()},
        }
        for name, trials in arms.items()
    }


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for option in ("pair", "target", "draft"):
        parser.add_argument(f"--{option}")
    parser.add_argument("-k", type=int, default=4)
    parser.add_argument("--num-new", type=int, default=64)
    parser.add_argument("--num-trials", type=int, default=TRIALS)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args()
    check_writable(args.json, args.overwrite)
    if args.threads:
        torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    provenance = Provenance()
    pair = PairOptions(pair=args.pair, target=args.target, draft=args.draft).load()
    prompts = [pair.tokenizer(PROMPT.format(40 + i))["input_ids"] for i in range(max(BATCH_SIZES))]
    arms = measure(pair, prompts, args.k, args.num_new, args.num_trials)
    ratios = {
        f"{spec}_b{size}": round(
            arms[f"{spec}_b{size}"]["step_ms"] / arms[f"lossless_b{size}"]["step_ms"], 3
        )
        for spec in get_args(FeatureSpec)
        for size in BATCH_SIZES
    }
    models = {name: getattr(args, name) for name in ("pair", "target", "draft")}
    config = models | {"k": args.k, "num_new": args.num_new, "num_trials": args.num_trials}
    where = provenance.to_dict(str(pair.target.device), str(pair.target.dtype))
    result = document("ruling_cost", config, where, arms=arms, step_over_lossless=ratios)
    result["argv"][0] = "experiments/ruling_cost/ruling_cost.py"
    write_json(args.json, result)
    for name, arm in arms.items():
        shown = f"step {arm['step_ms']:8.3f} ms   ruling {arm['ruling_ms']:7.3f} ms"
        print(f"{name:12} {shown}   {arm['ruling_over_step']:6.1%} of the steps")
    print(f"steps over lossless: {ratios}")


if __name__ == "__main__":
    main()
