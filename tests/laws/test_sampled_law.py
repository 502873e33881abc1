"""Lossless sampling follows the target's law exactly, on bigram tables whose law is known.

The law of a text of three tokens is worked out with the warpers of transformers, and the counts of
4096 texts are held against it by a chi-square test. False alarms: one in a million a test, and the
seeds are fixed, so that a test that passes once passes always.
"""

from __future__ import annotations

import functools

import pytest
import torch

from cospec.types import Completion, Origin
from tests.conftest import TableModel
from tests.laws.known_law import (
    DRAFT,
    FALSE_ALARM_RATE,
    NUM_DRAWS,
    SETTINGS,
    START,
    TARGET,
    VOCAB,
    law,
    p_value,
    sample,
    text_counts,
    warpers,
)

LENGTHS = [1, 4]  # blocks of 2 are those of the draft that stops early
EARLY = ["temperature", "top_p", "min_p"]
"""It is as sure of a token whatever is cut."""


@functools.cache
def texts_by_setting(k: int) -> dict[str, list[Completion]]:
    """NUM_DRAWS texts of each setting; every batch mixes all of the settings."""
    settings = list(SETTINGS.values()) * NUM_DRAWS
    done = sample(TableModel(TARGET), TableModel(DRAFT), settings, k)
    return {name: done[i :: len(SETTINGS)] for i, name in enumerate(SETTINGS)}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("k", LENGTHS)
def test_lossless_sampling_follows_the_targets_law(k, setting):
    probs = law(TARGET, SETTINGS[setting])
    counts = text_counts(texts_by_setting(k)[setting])
    assert counts.sum() == NUM_DRAWS
    assert p_value(counts, probs) > FALSE_ALARM_RATE


@functools.cache
def texts_of_a_draft_that_stops_early() -> dict[str, list[Completion]]:
    """As `texts_by_setting`, in blocks of at most 2 that end behind an unlikely token."""
    settings = [SETTINGS[name] for name in EARLY] * NUM_DRAWS
    done = sample(TableModel(TARGET), TableModel(DRAFT), settings, 2, threshold=0.4)
    stats = [c.stats for c in done]
    share = sum(s.num_draft_tokens for s in stats) / sum(s.num_drafts for s in stats)
    assert 1.2 < share < 1.8, "about half of the blocks should end early"
    return {name: done[i :: len(EARLY)] for i, name in enumerate(EARLY)}


@pytest.mark.parametrize("setting", EARLY)
def test_and_does_where_the_draft_stops_early(setting):
    counts = text_counts(texts_of_a_draft_that_stops_early()[setting])
    assert p_value(counts, law(TARGET, SETTINGS[setting])) > FALSE_ALARM_RATE


@pytest.mark.parametrize("setting", ["top_p", "top_k", "min_p"])
@pytest.mark.parametrize("k", LENGTHS)
def test_truncated_sampling_emits_exactly_the_tokens_that_are_left(k, setting):
    probs = law(TARGET, SETTINGS[setting])
    counts = text_counts(texts_by_setting(k)[setting])
    assert (probs == 0).sum() > 20, "the setting should cut something"
    assert not counts[probs == 0].any()
    assert counts[NUM_DRAWS * probs > 20].all()


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("k", LENGTHS)
def test_the_first_drafted_token_is_accepted_as_often_as_the_laws_overlap(k, setting):
    """The share is the sum of min(p, q) (Leviathan et al., theorem 3.5); within 5 sigma."""
    chain = warpers(SETTINGS[setting])
    p, q = (chain(None, t[START : START + 1].log()).softmax(-1)[0] for t in (TARGET, DRAFT))
    overlap = float(torch.minimum(p, q).sum())
    done = texts_by_setting(k)[setting]
    share = sum(c.origins[0] is Origin.MATCH for c in done) / NUM_DRAWS
    assert 0.1 < overlap < 0.95
    assert abs(share - overlap) < 5 * (overlap * (1 - overlap) / NUM_DRAWS) ** 0.5


def test_the_check_rejects_an_arbiter_that_overrides_half_of_the_mismatches():
    """Power: what passes above would fail if the engine were not lossless."""
    settings = [SETTINGS["plain"]] * NUM_DRAWS
    done = sample(TableModel(TARGET), TableModel(DRAFT), settings, 4, "random:rate=0.5")
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
