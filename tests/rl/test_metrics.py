"""What is read off completions after a round."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cospec.rl.metrics import best_guard


def text(*mismatches: tuple[int, bool]) -> Any:
    """A completion whose mismatches are at some places, kept or not."""
    steps = [SimpleNamespace(position=p, keep_draft=k, is_reached=True) for p, k in mismatches]
    return SimpleNamespace(trace=[SimpleNamespace(mismatches=steps)])


def test_the_guard_lets_pass_what_won_and_stops_what_lost() -> None:
    sparse = text((5, False), (35, True))  # rates 1/10, 2/40
    denser = text((0, False), (5, True))  # rates 1/5, 2/10
    dense = text(*[(i, True) for i in range(5)])  # up to 5/9
    found = best_guard([dense, sparse, denser], [-1.0, 1.0, 0.05])
    assert found == pytest.approx(0.2)
    assert best_guard([dense, sparse, denser], [-1.0, 1.0, -0.05]) == pytest.approx(0.05)
    assert best_guard([dense, sparse, denser], [0.5, 1.0, -0.05]) == pytest.approx(5 / 9)
    assert best_guard([dense, sparse, denser], [0.0, 1.0, 0.0]) == pytest.approx(0.05), "the lowest"


def test_of_texts_with_one_rate_all_count() -> None:
    first, second = text((15, True)), text((15, True), (80, False))  # both 1/20
    assert best_guard([first, second], [1.0, -2.0]) is None
    assert best_guard([first, second], [2.0, -1.0]) == pytest.approx(0.05)


def test_without_a_gain_there_is_no_guard() -> None:
    never = text((3, False))
    assert best_guard([never], [0.0]) is None
    assert best_guard([never, text((3, True))], [0.0, -1.0]) is None
    assert best_guard([], []) is None
