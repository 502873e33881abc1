"""Bounds of a cell's arms where a draft forward reads more than one token."""

from __future__ import annotations

import pytest

from cospec.evaluation.benchmark.arms import make_specs
from cospec.evaluation.benchmark.cells import measure
from cospec.evaluation.benchmark.tuning import best_rival, settings, tune
from cospec.models.costs import Costs
from tests.evaluation.benchmark.test_benchmark import benchmark, by_name, play


def test_a_forward_of_a_cascade_counts_as_one_over_a_token(pair, task):
    once = benchmark(pair, task, cascade=True, repeats=1, tune_k=(), num_speculative_tokens=8)
    specs = make_specs([], lambda spec: spec)
    tuning = tune(once, specs, 0.0, play)
    cell = measure(once, specs, settings(tuning), best_rival(tuning, specs), 4, 0.0, play)
    costs, arm = Costs(**cell["costs"]), by_name(cell["arms"])["lossless"]
    blocks = arm["num_target_forwards"]
    assert arm["num_draft_forwards"] < arm["num_draft_tokens"] == 8 * blocks
    block_s = arm["num_draft_forwards"] / blocks * costs.draft_step_s + costs.verify_s[8]
    expected = arm["num_tokens"] / blocks * costs.verify_s[0] / block_s
    assert arm["speedup_bound"] == pytest.approx(expected)
