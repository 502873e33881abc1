"""Lossless sampling follows the target's law exactly, on bigram tables whose law is known.

The law of a text of three tokens is worked out with the warpers of transformers, and the counts of
4096 texts are held against it by a chi-square test. False alarms: one in a million a test, and the
seeds are fixed, so that a test that passes once passes always.
"""

from __future__ import annotations

import functools
import itertools

import pytest
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
from cospec.types import Completion, Origin
from tests.conftest import TableModel, random_table

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
    """How often a sample of this law lies at least this far from it (chi-square).

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
    """How often each text of LENGTH tokens came, (V ** LENGTH,)."""
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
        max_batch_size=256,
        keep_trace=False,
        draft_confidence_threshold=threshold,
    )
    return engine.generate([[START]] * len(settings), settings)


@functools.cache
def texts_by_setting(k: int) -> dict[str, list[Completion]]:
    """NUM_DRAWS texts of each setting; every batch mixes all of the settings."""
    settings = list(SETTINGS.values()) * NUM_DRAWS
    done = sample(TableModel(TARGET), TableModel(DRAFT), settings, k)
    return {name: done[i :: len(SETTINGS)] for i, name in enumerate(SETTINGS)}


def test_more_than_fifty_thousand_texts_are_drawn():
    assert len(SETTINGS) * 3 * NUM_DRAWS >= 50_000


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("k", [1, 2, 4])
def test_lossless_sampling_follows_the_targets_law(k, setting):
    probs = law(TARGET, SETTINGS[setting])
    counts = text_counts(texts_by_setting(k)[setting])
    assert counts.sum() == NUM_DRAWS
    assert p_value(counts, probs) > FALSE_ALARM_RATE


@functools.cache
def texts_of_a_draft_that_stops_early() -> dict[str, list[Completion]]:
    """As `texts_by_setting`, in blocks of at most 2 that end behind an unlikely token."""
    settings = list(SETTINGS.values()) * NUM_DRAWS
    done = sample(TableModel(TARGET), TableModel(DRAFT), settings, 2, threshold=0.4)
    stats = [c.stats for c in done]
    share = sum(s.num_draft_tokens for s in stats) / sum(s.num_drafts for s in stats)
    assert 1.2 < share < 1.8, "about half of the blocks should end early"
    return {name: done[i :: len(SETTINGS)] for i, name in enumerate(SETTINGS)}


@pytest.mark.parametrize("setting", SETTINGS)
def test_and_does_where_the_draft_stops_early(setting):
    counts = text_counts(texts_of_a_draft_that_stops_early()[setting])
    assert p_value(counts, law(TARGET, SETTINGS[setting])) > FALSE_ALARM_RATE


@pytest.mark.parametrize("setting", ["top_p", "top_k", "min_p"])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_truncated_sampling_emits_exactly_the_tokens_that_are_left(k, setting):
    probs = law(TARGET, SETTINGS[setting])
    counts = text_counts(texts_by_setting(k)[setting])
    assert (probs == 0).sum() > 20, "the setting should cut something"
    assert not counts[probs == 0].any()
    assert counts[NUM_DRAWS * probs > 20].all()


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_first_drafted_token_is_accepted_as_often_as_the_laws_overlap(k, setting):
    """The share is the sum of min(p, q) (Leviathan et al., theorem 3.5); within 5 sigma."""
    chain = warpers(SETTINGS[setting])
    p, q = (chain(None, t[START : START + 1].log()).softmax(-1)[0] for t in (TARGET, DRAFT))
    overlap = float(torch.minimum(p, q).sum())
    done = texts_by_setting(k)[setting]
    share = sum(c.origins[0] is Origin.MATCH for c in done) / NUM_DRAWS
    assert 0.1 < overlap < 0.95
    assert abs(share - overlap) < 5 * (overlap * (1 - overlap) / NUM_DRAWS) ** 0.5


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_check_rejects_an_arbiter_that_overrides_half_of_the_mismatches(k):
    """Power: what passes above would fail if the engine were not lossless."""
    settings = [SETTINGS["plain"]] * NUM_DRAWS
    done = sample(TableModel(TARGET), TableModel(DRAFT), settings, k, "random:rate=0.5")
    assert p_value(text_counts(done), law(TARGET, SETTINGS["plain"])) < FALSE_ALARM_RATE


def test_the_check_rejects_a_table_that_is_slightly_off():
    other = torch.where(torch.arange(VOCAB) == 0, TARGET * 1.25, TARGET)
    other /= other.sum(dim=1, keepdim=True)
    counts = text_counts(texts_by_setting(4)["plain"])
    assert p_value(counts, law(other, SETTINGS["plain"])) < FALSE_ALARM_RATE


def test_the_p_value_is_that_of_tables():
    """95% quantiles of chi-square: 3.841 with 1 degree of freedom, 7.815 with 3."""
    counts = torch.tensor([1000, 1000]) + torch.tensor([1, -1]) * round((3.841 * 500) ** 0.5)
    assert p_value(counts, torch.tensor([0.5, 0.5])) == pytest.approx(0.05, rel=0.05)
    off = round((7.815 * 1000 / 4) ** 0.5)
    counts = torch.tensor([1000 - off, 1000 + off, 1000 - off, 1000 + off])
    assert p_value(counts, torch.full((4,), 0.25)) == pytest.approx(0.05, rel=0.05)
    assert p_value(torch.tensor([5, 1]), torch.tensor([1.0, 0.0])) == 0.0
