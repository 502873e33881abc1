"""Bound of each arm's speed-up by its forwards, with costs measured where the cell was played.

A block costs its draft steps and one target forward. All other time (prompts, sampling, Python,
rows that wait for longer blocks) keeps an arm's speed-up below the bound.
"""

from __future__ import annotations

from dataclasses import asdict
from math import ceil
from statistics import fmean
from typing import TYPE_CHECKING

from cospec.evaluation.problems import prompt_ids
from cospec.models.costs import measure_costs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cospec.evaluation.benchmark.config import Benchmark
    from cospec.results import Json

_NUM_TRIALS = 5


def add_bounds(benchmark: Benchmark, entries: Sequence[Json], batch_size: int) -> Json:
    """Set the ``speedup_bound`` of each arm that speculates.

    A draft forward of a cascade, which reads several tokens, counts as one over a single token. So
    the bound of a cascade holds, but may be looser.

    Args:
        benchmark: The models and the problems.
        entries: The arms of a cell, with their counts.
        batch_size: Batch size of the cell.

    Returns:
        The measured costs.
    """
    blocks = [_block(entry) for entry in entries]
    longest = max((ceil(block[0]) for block in blocks if block), default=0)
    num_tokens = fmean(entry["num_tokens"] / entry["num_problems"] for entry in entries)
    costs = measure_costs(
        benchmark.pair,
        max_tokens=longest + 1,
        context=round(_prompt_length(benchmark) + num_tokens / 2),
        batch_size=min(batch_size, len(benchmark.test)),
        num_trials=_NUM_TRIALS,
    )
    for entry, block in zip(entries, blocks, strict=True):
        if block:
            # Not the acceptance length: a block in which the text ends has no token of the target.
            length = entry["num_tokens"] / entry["num_target_forwards"]
            entry["speedup_bound"] = costs.bound(length, *block)
    return asdict(costs)


def _block(entry: Json) -> tuple[float, float] | None:
    """Return drafted tokens and draft steps a block; None if no block was drafted and verified."""
    num_blocks, num_drafted = entry["num_target_forwards"], entry["num_draft_tokens"]
    if not num_blocks or not num_drafted:
        return None
    return num_drafted / num_blocks, entry["num_draft_forwards"] / num_blocks


def _prompt_length(benchmark: Benchmark) -> float:
    """Return the mean length of some of the prompts, in tokens."""
    return fmean(map(len, prompt_ids(benchmark.pair, benchmark.task, benchmark.test[:16])))
