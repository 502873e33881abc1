"""The tiny pair and the task of the bench, and policies whose rulings are known."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, get_type_hints

import pytest
import torch

from cospec.arbiters.learned import LearnedArbiter
from cospec.arbiters.policy import Policy, PolicyConfig
from cospec.features import SCALAR_NAMES, ScalarFeatures
from cospec.rl.config import TrainConfig
from tests.conftest import VOCAB
from tests.evaluation.conftest import pair, task  # noqa: F401

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from cospec import ModelPair
    from cospec.rl.trainer import Trainer
    from cospec.tasks import Example, Task

GAP = SCALAR_NAMES.index("gap_p")


def train_config(**settings: Any) -> TrainConfig:
    """Settings by their own names, each put into the group that it is of."""
    groups: dict[str, Any] = {}
    for name, hint in get_type_hints(TrainConfig).items():
        if is_dataclass(hint) and name not in settings:
            inner = {f.name: settings.pop(f.name) for f in fields(hint) if f.name in settings}
            groups[name] = hint(**inner)
    return TrainConfig(**groups | settings)


def arbiter(policy: Policy, *, explore: float = 1.0) -> LearnedArbiter:
    kinds = torch.zeros(VOCAB, dtype=torch.int64)
    return LearnedArbiter(policy, ScalarFeatures(kinds), explore=explore)


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
def whole(pair: ModelPair, task: Task) -> Trainer:  # noqa: F811
    """A run that nothing interrupted."""
    from tests.rl.helpers import trainer

    it = trainer(pair, task)
    it.run()
    return it


@pytest.fixture(scope="session")
def table(tokenizer: PreTrainedTokenizerFast) -> ModelPair:
    from tests.rl.helpers import NEXT, table_pair

    return table_pair(tokenizer, NEXT)


@pytest.fixture(scope="session")
def examples(task: Task) -> list[Example]:  # noqa: F811
    return task.examples("test")
