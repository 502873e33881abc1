"""Short ways to decode in a test, an arbiter made of a function, and a model with bad logits."""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers.modeling_outputs import CausalLMOutput

from cospec import Engine, SamplingConfig
from cospec.arbiters import AlwaysTarget
from cospec.models import ModelPair
from cospec.types import Completion, MismatchBatch, Needs, Ruling, Stats
from tests.conftest import (
    TableModel,
    last_logits,
)
from tests.laws.known_law import DRAFT as DRAFT_TABLE
from tests.laws.known_law import TARGET as TARGET_TABLE

NUM_NEW = 16
GREEDY = SamplingConfig(max_new_tokens=NUM_NEW)
SAMPLED = SamplingConfig(max_new_tokens=NUM_NEW, temperature=1.0, seed=0)
NAN, INF = math.nan, math.inf


def table_pair(target: torch.Tensor = TARGET_TABLE, draft: torch.Tensor = DRAFT_TABLE) -> ModelPair:
    return ModelPair(TableModel(target), TableModel(draft))


def decode(
    pair: ModelPair,
    arbiter: Any = None,
    prompts: list[list[int]] | None = None,
    sampling: Any = GREEDY,
    **settings: Any,
) -> list[Completion]:
    """Completions of `prompts`, by default one from each token of a table pair."""
    engine = Engine(pair, arbiter or AlwaysTarget(), **settings)
    return engine.generate(prompts or [[0], [1], [2], [3]], sampling)


def ids(completions: list[Completion]) -> list[list[int]]:
    return [c.token_ids for c in completions]


def total(completions: list[Completion]) -> Stats:
    return sum((c.stats for c in completions), Stats())


class FromFunction(AlwaysTarget):
    """An arbiter whose ruling a test supplies."""

    def __init__(self, rule: Any, needs: Needs = Needs.NOTHING) -> None:
        object.__setattr__(self, "_rule", rule)
        object.__setattr__(self, "needs", needs)

    def rule(self, batch: MismatchBatch) -> Ruling:
        return self._rule(batch)


def kept(batch: MismatchBatch) -> torch.Tensor:
    return torch.ones(len(batch), dtype=torch.bool)


class Spoilt(TableModel):
    """A table model whose logits hold one bad value from position `limit` on."""

    def __init__(self, table: torch.Tensor, limit: int, value: float, place: Any = 1) -> None:
        super().__init__(table)
        self.limit, self.value, self.place = limit, value, place

    def forward(self, input_ids, position_ids=None, logits_to_keep=0, **kwargs):
        logits = self.table[input_ids].clone()
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        spoilt = torch.zeros_like(logits)
        spoilt[..., self.place] = 1
        is_bad = (spoilt > 0) & (position_ids >= self.limit)[..., None]
        logits = logits.masked_fill(is_bad, self.value)
        return CausalLMOutput(logits=last_logits(logits, logits_to_keep))
