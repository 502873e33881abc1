"""Hashes by which results tell their problems apart."""

from __future__ import annotations

from cospec.evaluation.problems import describe_problems
from cospec.tasks import Example


def described(**metadata: object) -> dict[str, object]:
    return describe_problems([Example("p/0", "1 + 1?", "2", metadata)])


def test_what_a_scorer_may_read_is_hashed_apart_from_the_problem_itself() -> None:
    """Found: problems with other tests or gold queries had the hash of these."""
    ours, theirs = described(test="assert f(1) == 2"), described(test="assert f(1) == 3")
    assert ours["problems_sha256"] == theirs["problems_sha256"], "as in older results"
    assert ours["metadata_sha256"] != theirs["metadata_sha256"]
    assert ours == described(test="assert f(1) == 2")


def test_metadata_of_any_type_has_a_hash_that_is_the_same_in_every_process() -> None:
    some, others = ({"of": value, 3: 4, (1, 2): 5} for value in ({"a", "b"}, {"b", "c"}))
    assert described(a=some) == described(a=others), "their order differs from process to process"
    assert described(a=object()) == described(a=object())
    assert described(a=[1, None, 2.5]) != described(a=[1, None, 2.25])
