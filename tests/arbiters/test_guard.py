"""The guard that looks at prompts."""

from __future__ import annotations

import pytest
import torch

from cospec.arbiters.guard import NUM_BUCKETS, PromptGuard

TRAIN = [[1, 2, 3, 4], [1, 2, 3, 5], [2, 1, 3, 6]]


def test_likeness_is_1_for_the_same_tokens_and_0_for_none_in_common():
    guard = PromptGuard.of([[1, 2, 2, 3]], [[1, 2, 2, 3]])
    assert guard.likeness([3, 2, 1, 2]) == pytest.approx(1.0), "order does not count"
    assert guard.likeness([1, 2, 2, 3] * 50) == pytest.approx(1.0), "nor does length"
    assert guard.likeness([7, 8, 9]) == 0.0
    assert guard.likeness([1 + NUM_BUCKETS, 2, 2, 3]) == pytest.approx(1.0), "one bucket"
    # sqrt(1/4 * 1/2) for token 1, and sqrt(1/2 * 1/2) for token 2
    assert guard.likeness([1, 2]) == pytest.approx(0.125**0.5 + 0.5)


def test_no_prompt_that_it_was_set_by_is_foreign_and_one_of_other_tokens_is():
    others = [[1, 2, 3, 9], [1, 1, 2, 4], [3, 2, 2, 8]]
    guard = PromptGuard.of(TRAIN, others)
    found = sorted(map(guard.likeness, others))
    assert found[1] - found[0] > 0.1
    assert guard.min_likeness == pytest.approx(2 * found[0] - found[1])
    alike = PromptGuard.of(TRAIN, TRAIN[:1])
    assert alike.min_likeness == pytest.approx(alike.likeness(TRAIN[0]) - 0.1)
    assert not any(map(guard.is_foreign, [*TRAIN, *others]))
    assert guard.is_foreign([40, 41, 42]) and guard.is_foreign([])


def test_prompts_that_have_nothing_in_common_leave_no_foreign_one():
    guard = PromptGuard.of([[1, 1], [2, 2]], [[3, 3], [1, 1], [2, 2]])
    assert guard.min_likeness == 0.0
    assert not guard.is_foreign([9, 9]) and not guard.is_foreign([])


def test_prompts_are_compared_on_the_cpu_whatever_the_default_device():
    guard = PromptGuard.of([[1, 2, 3]], [[1, 2, 3]])
    with torch.device("meta"):
        assert not guard.is_foreign([1, 2, 3])
