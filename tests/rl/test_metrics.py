"""Metrics that are read off completions after a round."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cospec.rl.metrics import guard
from cospec.rl.types import Baseline, Ending
from cospec.types import Stats


def won(*texts: Any) -> tuple[list[Baseline], list[Ending]]:
    """Evaluations in which these texts are right, and the target is not."""
    score = SimpleNamespace(correct=True)
    return [Baseline(False, 1) for _ in texts], [Ending(one, score) for one in texts]


def text(*mismatches: tuple[int, bool]) -> Any:
    """A completion whose mismatches are at some places, kept or not."""
    reached = [SimpleNamespace(position=p, keep_draft=k, veto=None) for p, k in mismatches]
    return SimpleNamespace(reached=reached)


def test_the_guard_lets_nearly_all_pass_that_won() -> None:
    """Each text counts by the highest rate at which it has an override."""
    sparse = text((5, False), (35, True))  # rates 1/10 (not kept) and 2/40
    denser = text((0, False), (5, True), (55, True))  # 2/10 and 3/60
    chance = text(*[(i, True) for i in range(5)])  # up to 5/9
    assert guard(*won(sparse)) == pytest.approx(0.05)
    assert guard(*won(sparse, denser)) == pytest.approx(0.2)
    assert guard(*won(*[denser] * 19, *[sparse] * 20, chance)) == pytest.approx(0.2)


def test_the_guard_counts_corrected_lookups_as_the_arbiter_does() -> None:
    """Found: it left out mismatches of tokens without a draft's distribution, decoding did not."""
    looked_up = SimpleNamespace(position=5, keep_draft=False, veto="no_draft")
    kept = SimpleNamespace(position=35, keep_draft=True, veto=None)
    completion = SimpleNamespace(reached=[looked_up, kept])
    assert guard(*won(completion)) == pytest.approx(2 / 40)


def test_an_answer_of_one_token_counts_as_one_forward() -> None:
    """Found: vLLM takes it from the prompt's forward, and training divided by 0."""
    ending = Ending(SimpleNamespace(stats=Stats()), SimpleNamespace(correct=True))
    assert Baseline.of(ending) == Baseline(True, 1)


def same(*texts: Any) -> tuple[list[Baseline], list[Ending]]:
    """Evaluations in which these texts are as right as the target's."""
    score = SimpleNamespace(correct=True)
    return [Baseline(True, 1) for _ in texts], [Ending(one, score) for one in texts]


def lost(*texts: Any) -> tuple[list[Baseline], list[Ending]]:
    """Evaluations in which the target is right, and these texts are not."""
    score = SimpleNamespace(correct=False)
    return [Baseline(True, 1) for _ in texts], [Ending(one, score) for one in texts]


def test_an_arbiter_that_won_no_answer_is_guarded_by_the_texts_that_it_did_not_lose() -> None:
    """Found: it had no guard, and an arbiter that only saves time ruled on foreign texts."""
    (base, done), (worse, spoilt) = same(text((5, True), (55, True))), lost(text((0, True)))
    assert guard(base + worse, done + spoilt) == pytest.approx(0.1)  # 1/10 and 2/60
    (better, gained) = won(text((35, False), (75, True)))  # 1/40 (not kept) and 2/80
    assert guard(base + worse + better, done + spoilt + gained) == pytest.approx(0.025)


def test_an_arbiter_that_kept_nothing_is_guarded_by_the_mismatches_of_its_texts() -> None:
    assert guard(*same(text((3, False), (15, False)))) == pytest.approx(1 / 8)
    assert guard(*won(text((3, False)))) == pytest.approx(1 / 8)
    assert guard(*lost(text((0, True)), text((35, False)))) == pytest.approx(1 / 5)


def test_without_a_mismatch_there_is_no_guard() -> None:
    assert guard(*same(text())) is None
    assert guard([], []) is None


@pytest.mark.parametrize("number", [2, 3, 19, 20])
def test_the_guard_keeps_every_win_of_fewer_than_twenty_one(number: int) -> None:
    """Found: it lay below the highest rate, so that of 2 to 19 wins one was always lost."""
    texts = [text((i, False), (i + 9, True)) for i in range(number)]
    highest = max(guard(*won(each)) or 0.0 for each in texts)
    assert guard(*won(*texts)) == highest
