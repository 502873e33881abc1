"""Hashes by which results tell their problems apart."""

from __future__ import annotations

from datetime import date
from fractions import Fraction

import torch

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
    assert described(a={"of": object(), 3: 4, (1, 2): 5}) == described(
        a={"of": object(), 3: 4, (1, 2): 6}
    )
    alike = [
        ({"a", "bc", "d"}, {"d", "bc", "a"}, {"a", "bc", "e"}),
        (b"ab", bytes([97, 98]), b"ac"),
        (torch.ones(2), torch.ones(2), torch.zeros(2)),
        (Fraction(1, 2), Fraction(2, 4), Fraction(1, 3)),
        (date(2026, 1, 2), date(2026, 1, 2), date(2026, 1, 3)),
        ([1, None, 2.5], [1, None, 2.5], [1, None, 2.25]),
    ]
    for one, same, other in alike:
        assert described(a=one) == described(a=same) != described(a=other)
