"""The page on scaling says what its script computes."""

from __future__ import annotations

from experiments.scaling import scaling


def test_the_table_is_that_of_the_measured_numbers_and_the_formula() -> None:
    scaling.show_plan(check=True)


def test_a_smaller_pair_is_cheaper_and_more_gpus_are_faster() -> None:
    measured = {
        "bytes_per_decision": 600.0,
        "bytes_per_text": 300.0,
        "pickle_s_per_decision": 1e-4,
        "learner_s_per_branch_epoch": 1e-6,
    }
    small = scaling.Pair(8e9, 1e9, 131e3, 32e3)
    costs = [
        scaling.plan(scaling.Cluster(n), pair, scaling.Round(), measured)
        for n, pair in ((8, scaling.Pair()), (64, scaling.Pair()), (8, small))
    ]
    speeds = [float(str(cost["tokens/s"])) for cost in costs]
    assert speeds[1] == 8 * speeds[0] or abs(speeds[1] / speeds[0] - 8) < 0.01
    assert speeds[2] > 2 * speeds[0]
    tiny = scaling.Cluster(8, memory_bytes=40e9)
    assert scaling.largest_batch(tiny, scaling.Pair(), scaling.Round()) < 256
