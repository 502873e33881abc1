"""Trained arbiters of random weights, and mismatches for them to rule on."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any

import torch

from cospec import Engine, ModelPair, SamplingConfig
from cospec.arbiters.learned import LearnedArbiter
from cospec.arbiters.policy import Policy, PolicyConfig
from cospec.features import KINDS, SCALAR_NAMES, ScalarFeatures, make_features
from cospec.types import Arbiter, Completion, MismatchBatch, Needs, Ruling
from tests.conftest import VOCAB, some_prompts

if TYPE_CHECKING:
    from pathlib import Path

F = len(SCALAR_NAMES)


SAMPLING = SamplingConfig(max_new_tokens=24)


TOKEN_KINDS = torch.arange(VOCAB) % len(KINDS)


def policy(seed: int = 0, **changes: Any) -> Policy:
    """A policy that keeps half of `mismatches`: its head is not zero, as it is before training."""
    network = Policy(F, PolicyConfig(**changes), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head = network.layers[-1]
        head.weight += torch.randn(head.weight.shape, generator=generator)
        network.mean += 0.1 * torch.arange(F)
        network.std += torch.rand(F, generator=generator)
        head.bias -= network(ScalarFeatures(TOKEN_KINDS)(mismatches())).median()
    return network


def learned(network: Policy | None = None, **changes: Any) -> LearnedArbiter:
    return LearnedArbiter(network or policy(), ScalarFeatures(TOKEN_KINDS), **changes)


def mismatches(num: int = 40, k: int = 4, seed: int = 1) -> MismatchBatch:
    """Mismatches of all kinds."""
    generator = torch.Generator().manual_seed(seed)

    def ints(high: int) -> torch.Tensor:
        return torch.randint(0, high, (num,), generator=generator)

    def logits() -> torch.Tensor:
        return 3 * torch.randn(num, VOCAB, generator=generator)

    return MismatchBatch(
        rows=torch.arange(num),
        block_positions=ints(k),
        positions=ints(100),
        num_overrides=ints(9),
        num_mismatches=ints(9),
        block_lengths=torch.full((num,), k),
        draft_ids=ints(VOCAB),
        target_ids=ints(VOCAB),
        target_logits=logits(),
        draft_logits=logits(),
        lookahead_matches=torch.rand(num, k - 1, generator=generator) < 0.5,
        lookahead_log_p=-torch.rand(num, k - 1, generator=generator),
        block_log_q=-torch.rand(num, k, generator=generator),
        uniforms=torch.rand(num, generator=generator, dtype=torch.float64),
    )


def decode(pair: ModelPair, arbiter: Arbiter, k: int = 4, **changes: Any) -> list[Completion]:
    engine = Engine(pair, arbiter, num_speculative_tokens=k)
    return engine.generate(some_prompts(5), SamplingConfig(**dict(max_new_tokens=24) | changes))


@dataclass
class Together:
    """Keeps what any of several arbiters keeps, so that all are lossless if it is."""

    arbiters: list[Arbiter]
    kept: set[str] = field(default_factory=set)
    """Names of those that have kept a draft's token."""
    name: str = "together"

    @property
    def needs(self) -> Needs:
        return reduce(or_, (one.needs for one in self.arbiters))

    def rule(self, batch: MismatchBatch) -> Ruling:
        rulings = {one.name: one.rule(batch).keep_draft for one in self.arbiters}
        self.kept |= {name for name, keep_draft in rulings.items() if keep_draft.any()}
        return Ruling(torch.stack([*rulings.values()]).any(dim=0))


STATES = ("target_hidden", "target_hidden_after", "draft_hidden")


def with_states(batch: MismatchBatch, **changes: torch.Tensor) -> MismatchBatch:
    """Mismatches with states of the width that the tiny pairs have."""
    generator = torch.Generator().manual_seed(2)
    states = {name: torch.randn(len(batch), 32, generator=generator) for name in STATES}
    return replace(batch, **states | changes)


def hidden(pair: ModelPair, version: int = 2) -> LearnedArbiter:
    """An arbiter that rules by hidden states, of a pair; it keeps half of what `mismatches` has."""
    features = make_features("hidden", pair)
    if version == 1:
        features = replace(features, embeddings=None)
    shape = PolicyConfig(hidden_projection=5)
    network = Policy(len(features.names), shape, num_hidden=features.num_hidden)
    with torch.no_grad():
        network.layers[-1].weight.fill_(1.0)
        network.layers[-1].bias -= network(features(with_states(mismatches()))).median()
    about = {"pair": {"pair": "bundled:tiny", "fingerprint": pair.fingerprint}}
    return LearnedArbiter(network, features, about=about)


def change_config(folder: Path, **changes: Any) -> None:
    """Set keys of config.json; None takes one out."""
    config = json.loads((folder / "config.json").read_text()) | changes
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
