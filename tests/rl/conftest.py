"""The tiny pair and the task of the bench, and policies whose rulings are known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from cospec.arbiters.learned import LearnedArbiter
from cospec.arbiters.policy import Policy, PolicyConfig
from cospec.features import SCALAR_NAMES, ScalarFeatures
from tests.conftest import VOCAB
from tests.evaluation.conftest import pair, task  # noqa: F401

if TYPE_CHECKING:
    from cospec.tasks import Example, Task

GAP = SCALAR_NAMES.index("gap_p")


def arbiter(policy: Policy, *, is_stochastic: bool = True) -> LearnedArbiter:
    kinds = torch.zeros(VOCAB, dtype=torch.int64)
    return LearnedArbiter(policy, ScalarFeatures(kinds), is_stochastic=is_stochastic)


def coin(logit: float) -> Policy:
    """Keeps the draft's token with one probability everywhere."""
    return Policy(len(SCALAR_NAMES), PolicyConfig(kind="linear", init_logit=logit))


def gap_policy(max_gap: float, sharpness: float = 1e5) -> Policy:
    """Keeps the draft's token if the target's log-probabilities differ by less: no toss is open.

    The gap depends on the text alone, not on where its blocks begin, so that a text decoded afresh
    is ruled as it was.
    """
    policy = coin(sharpness * max_gap)
    with torch.no_grad():
        head = policy.layers[-1]
        head.weight[0, GAP] = -sharpness
    return policy


@pytest.fixture(scope="session")
def examples(task: Task) -> list[Example]:  # noqa: F811
    return task.examples("test")
