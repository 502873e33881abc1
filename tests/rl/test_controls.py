"""Labels of the supervised controls."""

from __future__ import annotations

import pytest
import torch

from cospec.rl.controls import labels, same_answer, same_meaning
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


def test_each_control_is_taught_its_own_labels() -> None:
    delta = torch.tensor([1.0, -0.5, 0.0, 0.0])
    is_harmless = torch.tensor([True, True, True, False])
    weight = torch.tensor([1.0, 2.0, 1.0, 2.0])
    label, counts = labels("gold", delta, is_harmless, weight)
    assert label[:2].tolist() == [True, False] and counts.tolist() == [1, 1, 0, 0]
    label, counts = labels("autojudge", delta, is_harmless, weight)
    assert torch.equal(label, is_harmless) and torch.equal(counts, weight)
    label, counts = labels("r2r", delta, is_harmless, weight)
    assert torch.equal(label, is_harmless) and counts.tolist() == [1, 2, 1, 4]
    assert labels("rl", delta, is_harmless, weight) is None
    assert labels("reinforce", delta, is_harmless, weight) is None


@pytest.mark.parametrize("is_harmless", [[True, True], [False, False], []])
def test_one_kind_of_label_counts_as_it_is(is_harmless) -> None:
    flags = torch.tensor(is_harmless, dtype=torch.bool)
    weight = torch.ones(len(is_harmless))
    _, counts = labels("r2r", weight, flags, weight)
    assert torch.equal(counts, weight)
