"""Labels of the supervised controls."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from cospec.rl.methods import METHODS, MethodName, same_answer, same_meaning
from cospec.rl.types import KnownBranches
from cospec.tasks.base import Score

RIGHT, WRONG = 1.0, 0.0


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        (Score(RIGHT, "18"), Score(RIGHT, "18.0"), True),
        (Score(WRONG, "17"), Score(WRONG, "17"), True),
        (Score(WRONG, "17"), Score(WRONG, "19"), False),
        (Score(WRONG, "17"), Score(WRONG), False),
        (Score(WRONG), Score(WRONG), True),  # as AutoJudge's own scripts compare them
        (Score(RIGHT), Score(WRONG), False),
    ],
)
def test_answers_are_the_same_if_both_are_right_or_the_same_is_read_off(
    one, other, is_same
) -> None:
    """The last one was found: a scorer that reads nothing off made right and wrong the same."""
    assert same_answer(one, other) == same_answer(other, one) == is_same


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("She has 3 eggs. Then 4.", "She now owns 3 eggs. Then 5.", True),
        ("She has 3 eggs. Then 4.", "She has 3 eggs. Then 5.", False),
        ("She has 3 eggs.\n\nThen 4.", "She has 3 eggs.\n\nThen 5.", False),
        ("Half of 48 is 24.", "Half of 48 is 24.0 clips.", True),
        ("So 48 / 2 = 24.", "So 2 * 48 = 96.", False),
        ("It is 3. The rest is 1.", "It is 3.5 in all.", False),
        ("It is 3. The rest is 1.", "It is 3. And the rest is 2.", False),
        ("It is 3. The rest is 1", "It is 3. And the rest is 1", True),
        ("It is 3.", "It is 3. The rest is 1.", False),
        ("It is so.\nThen 4.", "It is, so!\nThen 5.", True),
        ("We integrate by parts.", "We substitute.", False),
        ("Two", "Two", True),
        ("", "a", False),
    ],
)
def test_texts_mean_the_same_if_the_sentence_in_which_they_part_has_the_same_numbers(
    one, other, is_same
) -> None:
    assert same_meaning(one, other) == same_meaning(other, one) == is_same


def known(delta: torch.Tensor, is_harmless: torch.Tensor, weight: torch.Tensor) -> KnownBranches:
    priced = delta + 0.05  # as if each draft's branch were cheaper
    return KnownBranches(torch.zeros(len(delta), 1), priced, delta, is_harmless, weight)


def test_each_control_has_its_own_labels() -> None:
    delta = torch.tensor([1.0, -0.5, 0.0, 0.0])
    is_harmless = torch.tensor([True, True, True, False])
    branches = known(delta, is_harmless, torch.tensor([1.0, 2.0, 1.0, 2.0]))
    label, weight = METHODS["gold"].labels(branches)
    assert label[:2].tolist() == [True, False] and weight.tolist() == [1, 1, 0, 0]
    label, weight = METHODS["autojudge"].labels(branches)
    assert torch.equal(label, is_harmless) and torch.equal(weight, branches.weight)
    label, weight = METHODS["r2r"].labels(branches)
    assert torch.equal(label, is_harmless) and weight.tolist() == [1, 2, 1, 4]
    assert METHODS["rl"].labels is METHODS["reinforce"].labels is None


@pytest.mark.parametrize("is_harmless", [[True, True], [False, False], []])
def test_labels_of_one_kind_keep_their_weight(is_harmless) -> None:
    flags = torch.tensor(is_harmless, dtype=torch.bool)
    ones = torch.ones(len(is_harmless))
    assert torch.equal(METHODS["r2r"].labels(known(ones, flags, ones)).weight, ones)


def test_every_method_of_the_command_line_has_an_object_of_its_name() -> None:
    assert set(METHODS) == set(get_args(MethodName))
    assert all(name == method.name for name, method in METHODS.items())
