"""Trainers of tiny pairs, and pairs that are a table."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from cospec import ModelPair
from cospec.arbiters.policy import PolicyConfig
from cospec.backends.engine import EngineBackend
from cospec.evaluation.audit.dataset import write_dataset
from cospec.features import SCALAR_NAMES
from cospec.rl.trainer import Trainer
from cospec.tasks import load_task
from tests.conftest import VOCAB, TableModel
from tests.rl.conftest import train_config

if TYPE_CHECKING:
    from pathlib import Path

    from cospec.results import Json
    from cospec.rl.config import TrainConfig
    from cospec.tasks import Example, Task


TINY = dict(
    num_rounds=3,
    prompts_per_round=3,
    group_size=2,
    group_weight=0.2,
    branches_per_rollout=1.0,
    num_epochs=4,
    learning_rate=0.05,
    policy=PolicyConfig(hidden_size=4, init_logit=0.0),
    num_speculative_tokens=3,
    batch_size=8,
    max_new_tokens=8,
    tune_every=1,
    num_tune=2,
)


def changed(settings: dict[str, Any], changes: dict[str, Any]) -> TrainConfig:
    """Settings with changes, and a weight of advantages for methods that take one."""
    takes_weight = changes.get("method", "rl") == "rl"
    weight = {} if takes_weight else {"group_weight": 0.0}
    return train_config(**settings | weight | changes)


def trainer(pair: ModelPair, task: Task, folder: Path | None = None, **changes: Any) -> Trainer:
    examples = task.examples("test")
    config = changed(TINY, changes)
    backend = EngineBackend(pair, config.rollouts)
    return Trainer(pair, backend, task, config, examples[:7], examples[7:], folder)


class StopHereError(Exception):
    """Stand-in for a user's Ctrl-C in the loop."""


def stop(_: Json) -> None:
    raise StopHereError


def timeless(history: list[Json]) -> list[Json]:
    return [{k: v for k, v in m.items() if k not in ("seconds", "rollout_s")} for m in history]


def assert_same_state(one: Trainer, other: Trainer) -> None:
    a, b = one.state, other.state
    assert (a.round, a.best, a.baselines) == (b.round, b.best, b.baselines)
    assert timeless(a.history) == timeless(b.history)
    weights = [[s.policy.state_dict(), s.start.state_dict(), s.best_policy] for s in (a, b)]
    torch.testing.assert_close(*weights, rtol=0, atol=0)
    assert a.running_reward == b.running_reward
    for x, y in zip(a.replay, b.replay, strict=True):
        torch.testing.assert_close(x.columns, y.columns, rtol=0, atol=0)


def audit_file(folder: Path, names: tuple[str, ...] = SCALAR_NAMES, **about: str) -> Path:
    """Forty mismatches at which the draft is right if, and only if, the target doubts itself."""
    features = torch.randn(40, len(names), generator=torch.Generator().manual_seed(0))
    is_unsure = (features[:, 0] > 0).tolist()
    mismatches = [
        {"position": i, "draft_id": 1, "target_id": 2, "features": row.tolist()}
        | {"draft_correct": unsure, "target_correct": not unsure}
        for i, (row, unsure) in enumerate(zip(features, is_unsure, strict=True))
    ]
    path = folder / "audit.safetensors"
    write_dataset(path, [{"id": "a", "mismatches": mismatches}], names, about)
    return path


def solved(task: Task) -> list[Example]:
    texts = [
        "ten hens and an ant",
        "the end is near the stone",
        "the hens and the ants eat oats on the stone in the end",
    ]
    found = zip(task.examples("test"), texts, strict=False)
    return [replace(example, metadata={"solution": text}) for example, text in found]


def solving(pair: ModelPair, task: Task, folder: Path | None = None, **changes: Any) -> Trainer:
    settings = dict(num_solutions=3, num_solution_epochs=5, num_rounds=2, kl_weight=0.1) | changes
    it = trainer(pair, task, folder, **settings)
    it.solved = solved(task)
    return it


# A pair that is a table. The target alone writes a b c a b c ...; after an a the draft wants a y,
# and after a b an x; both models know how to continue after either.
A, B, C, X, Y = (6 + ord(letter) - ord("a") for letter in "abcxy")
NEXT = {A: (B, Y), B: (C, X), C: (A, A), X: (C, C), Y: (B, B)}
"""Most probable token after each letter, by the target and by the draft."""

Y_WINS, X_SPOILS, BOTH_SPOIL = "^[^x]*y[^x]*$", "^[^x]*$", "^[^xy]*$"
"""Patterns of right answers."""


def table_pair(tokenizer: Any, wishes: dict[int, tuple[int, int]]) -> ModelPair:
    target, draft = torch.full((2, VOCAB, VOCAB), 1e-4)
    target[:, A] = draft[:, A] = 1.0
    for letter, (ours, theirs) in wishes.items():
        for rows in (target, draft):
            rows[letter] = 1e-4
        target[letter, theirs] = 0.2 if theirs == Y else 0.05
        target[letter, ours] = draft[letter, theirs] = 0.7
    models = [TableModel(rows / rows.sum(dim=1, keepdim=True)) for rows in (target, draft)]
    return ModelPair(*models, tokenizer)


def letters(folder: Path, *answers: str) -> Task:
    """An answer is right if it matches the pattern; the problems take the patterns in turn."""
    path = folder / "letters.jsonl"
    patterns = itertools.cycle(answers)
    rows = [{"question": "the " * (i + 1), "answer": next(patterns)} for i in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_task(f"jsonl:{path},scorer=regex,split=test")


def learner(table: ModelPair, task: Task, **changes: Any) -> Trainer:
    settings = dict(
        num_rounds=6,
        prompts_per_round=8,
        group_size=4,
        group_weight=0.2,
        branches_per_rollout=2.0,
        cost_weight=0.0,
        num_epochs=40,
        learning_rate=1e-2,
        policy=PolicyConfig(hidden_size=8),
        max_new_tokens=9,
        tune_every=6,
    )
    examples = task.examples("test")
    config = changed(settings, changes)
    backend = EngineBackend(table, config.rollouts)
    return Trainer(table, backend, task, config, examples[:8], examples[8:])
