"""Bigram tables whose law of a text is known, and a chi-square test against it."""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING

import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from cospec import Engine, SamplingConfig, load_arbiter
from cospec.models import ModelPair
from tests.conftest import random_table

if TYPE_CHECKING:
    from cospec.types import Completion

FALSE_ALARM_RATE = 1e-6
NUM_DRAWS = 4096
VOCAB, LENGTH, START = 4, 3, 2
TARGET, DRAFT = random_table(VOCAB, seed=20), random_table(VOCAB, seed=21)
SETTINGS = {
    "plain": SamplingConfig(max_new_tokens=LENGTH, temperature=1.0, seed=0),
    "temperature": SamplingConfig(max_new_tokens=LENGTH, temperature=0.7, seed=0),
    "top_p": SamplingConfig(max_new_tokens=LENGTH, temperature=1.0, top_p=0.8, seed=0),
    "top_k": SamplingConfig(max_new_tokens=LENGTH, temperature=1.3, top_k=2, seed=0),
    "min_p": SamplingConfig(max_new_tokens=LENGTH, temperature=1.0, min_p=0.3, seed=0),
}


def warpers(config: SamplingConfig) -> LogitsProcessorList:
    """The chain that transformers' generate builds for these settings."""
    chain = LogitsProcessorList([TemperatureLogitsWarper(config.temperature)])
    if config.top_k:
        chain.append(TopKLogitsWarper(config.top_k))
    if config.top_p < 1:
        chain.append(TopPLogitsWarper(config.top_p))
    if config.min_p:
        chain.append(MinPLogitsWarper(config.min_p))
    return chain


def law(table: torch.Tensor, config: SamplingConfig, start: int = START) -> torch.Tensor:
    """Probabilities of all texts of LENGTH tokens after `start`, (V ** LENGTH,) float64."""
    rows = warpers(config)(None, table.log().clone()).softmax(dim=-1).double()
    probs = []
    for text in itertools.product(range(table.shape[0]), repeat=LENGTH):
        path = itertools.pairwise((start, *text))
        probs.append(functools.reduce(lambda p, step: p * rows[step], path, torch.tensor(1.0)))
    return torch.stack(probs)


def p_value(counts: torch.Tensor, probs: torch.Tensor) -> float:
    """Probability that a sample of this law lies at least this far from it (chi-square).

    Cells with an expected count below 5 are taken together; 0 if an impossible cell was hit.
    """
    if (counts[probs == 0] > 0).any():
        return 0.0
    expected = probs.double() / probs.double().sum() * counts.sum()
    is_rare = expected < 5
    if is_rare.any():
        pooled = [
            torch.cat([x[~is_rare], x[is_rare].sum()[None]]) for x in (counts.double(), expected)
        ]
        counts, expected = (x[pooled[1] > 0] for x in pooled)
    statistic = ((counts - expected) ** 2 / expected).sum()
    half_freedom = torch.tensor((len(expected) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(half_freedom, statistic.double() / 2))


def text_counts(completions: list[Completion], vocab_size: int = VOCAB) -> torch.Tensor:
    """Count of each text of LENGTH tokens, (V ** LENGTH,)."""
    ids = torch.tensor([c.token_ids for c in completions])
    assert ids.shape == (len(completions), LENGTH)
    weights = vocab_size ** torch.arange(LENGTH - 1, -1, -1)
    return torch.bincount((ids * weights).sum(dim=1), minlength=vocab_size**LENGTH)


def sample(
    target: torch.nn.Module,
    draft: torch.nn.Module,
    settings: list[SamplingConfig],
    k: int,
    arbiter: str = "lossless",
    threshold: float = 0.0,
) -> list[Completion]:
    """One text for each of `settings`, from the same start."""
    engine = Engine(
        ModelPair(target, draft),
        load_arbiter(arbiter),
        num_speculative_tokens=k,
        batch_size=1024,
        keep_trace=False,
        draft_confidence_threshold=threshold,
    )
    return engine.generate([[START]] * len(settings), settings)
