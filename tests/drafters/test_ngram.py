"""Tokens that the n-gram drafter finds, and what is refused without a draft model."""

from __future__ import annotations

import pytest

from cospec import Engine, ModelPair, load_arbiter
from cospec.arbiters import AlwaysTarget
from cospec.arbiters.observed import Observed
from cospec.config import DecodeConfig
from cospec.drafters.ngram import look_up
from cospec.errors import ArbiterError, ConfigError, PairError
from cospec.features import make_features
from tests.engine.helpers import GREEDY, table_pair


@pytest.mark.parametrize(
    ("text", "k", "found"),
    [
        ([1, 2, 3, 4, 1, 2], 2, [3, 4]),
        ([1, 2, 3, 4, 1, 2], 3, [3, 4, 1]),
        ([1, 2, 3, 4, 5, 9], 2, []),
        ([5, 1, 2, 3, 8, 6, 1, 2, 4, 8, 1, 2], 1, [4]),  # the later of two
        ([1, 2, 3, 7, 2, 3, 8, 1, 2, 3], 1, [7]),  # the longer match, though the earlier
        ([7, 7, 7, 7], 2, [7]),  # as much as follows
        ([1, 2, 9, 2], 1, []),  # shorter than the shortest
        ([4], 3, []),
    ],
)
def test_what_followed_the_last_tokens_is_found(text, k, found):
    assert look_up(text, k, longest=4, shortest=2) == found


def test_an_arbiter_that_needs_the_drafts_logits_is_refused():
    pair = table_pair()
    arbiter = Observed(AlwaysTarget(), make_features("scalar", pair))
    with pytest.raises(ArbiterError, match=r"needs the draft's logits, which NgramDrafter does"):
        Engine(pair, arbiter, drafter="ngram")
    Engine(pair, arbiter)


def test_a_pair_without_a_draft_takes_a_drafter_without_a_model():
    pair = ModelPair(table_pair().target)
    with pytest.raises(PairError, match=r"no draft model.*drafter='ngram'"):
        Engine(pair, AlwaysTarget())
    with pytest.raises(PairError, match="no draft model"):
        Engine.draft_only(pair)
    Engine(pair, load_arbiter("lossless"), drafter="ngram")
    Engine.target_only(pair)


def test_settings_that_it_does_not_take_are_refused():
    with pytest.raises(ConfigError, match="has no probabilities to compare"):
        Engine(table_pair(), AlwaysTarget(), drafter="ngram", draft_confidence_threshold=0.5)
    with pytest.raises(ConfigError, match=r"unknown drafter 'ngrams'; did you mean 'ngram'\?"):
        DecodeConfig(drafter="ngrams")
    with pytest.raises(ConfigError, match="prompt_lookup_min is 5"):
        DecodeConfig(prompt_lookup_min=5)
    with pytest.raises(ConfigError, match="prompt_lookup_min is 5"):
        DecodeConfig(drafter="ngram+model", prompt_lookup_min=5)


@pytest.mark.parametrize("drafter", ["suffix", "suffix+model"])
def test_a_suffix_may_have_to_be_longer_than_the_longest_ngram(drafter):
    """Found: it was refused because of prompt_lookup_max, which the drafter does not use."""
    assert DecodeConfig(drafter=drafter, prompt_lookup_min=5).prompt_lookup_min == 5
    with pytest.raises(ConfigError, match="prompt_lookup_min is 0"):
        DecodeConfig(drafter=drafter, prompt_lookup_min=0)
    found = Engine(table_pair(), AlwaysTarget(), drafter=drafter, prompt_lookup_min=5)
    assert found.generate([[0, 1, 2, 3] * 3], GREEDY)[0].token_ids
