"""A draft that reads guesses: the same tokens as one forward each, in fewer forwards."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cospec import Engine, SamplingConfig, load_arbiter
from cospec.config import DecodeConfig
from cospec.drafters import ModelDrafter
from cospec.drafters.cascade import Ngrams
from cospec.errors import ConfigError
from tests.conftest import family_pair, some_prompts
from tests.laws.decoding import covering

FAMILIES = ["llama", "gemma3_text", "mistral"]
ARBITERS = ["agreement:min_share=0.4", "lossless", "gap:max_gap=1"]
WHOLE = {"num_speculative_tokens": 16, "end_blocks_at_stop": True}


def decode(pair, arbiter, batch_size, **changes):
    engine = Engine(pair, load_arbiter(arbiter), **WHOLE | {"batch_size": batch_size} | changes)
    prompts = some_prompts(3)[1:] if batch_size == 1 else some_prompts(6)
    return engine.generate(prompts, SamplingConfig(max_new_tokens=16))


@pytest.mark.parametrize(("family", "batch_size", "arbiter"), covering(FAMILIES, [1, 4], ARBITERS))
def test_tokens_and_rulings_stay_and_forwards_are_saved(family, batch_size, arbiter, monkeypatch):
    pair = family_pair(family)
    found = decode(pair, arbiter, batch_size)
    monkeypatch.setattr(ModelDrafter, "_remember", lambda *_: None)
    plain = decode(pair, arbiter, batch_size)
    for ours, theirs in zip(found, plain, strict=True):
        assert ours.token_ids == theirs.token_ids and ours.origins == theirs.origins
        assert replace(ours.stats, num_draft_forwards=0) == replace(
            theirs.stats, num_draft_forwards=0
        )
        assert theirs.stats.num_draft_forwards == theirs.stats.num_draft_tokens
    forwards, tokens = (
        sum(getattr(c.stats, name) for c in found)
        for name in ("num_draft_forwards", "num_draft_tokens")
    )
    assert forwards < tokens, "random models repeat themselves little"


CASCADES = [
    {"num_speculative_tokens": 4},
    {"num_speculative_tokens": 10, "draft_confidence_threshold": 0.05},
    {"num_speculative_tokens": 5, "drafter": "ngram+model"},
    {
        "num_speculative_tokens": 16,
        "end_blocks_at_stop": True,
        "max_corrections": 1,
        "draft_confidence_threshold": 1e-9,  # blocks of ten tokens after the correction
    },
]
RULED = [("lossless", 4), ("random:rate=0.5", 1)]
"""Arbiters with a batch size each."""


@pytest.mark.parametrize(
    ("options", "ruled_by", "family", "temperature"),
    [
        (options, ruled_by, FAMILIES[(i + j) % 3], [0.0, 0.3][(i // 2 + j) % 2])
        for i, options in enumerate(CASCADES)
        for j, ruled_by in enumerate(RULED)
    ],
)
def test_a_cascade_drafts_the_same_tokens(options, ruled_by, family, temperature):
    pair, (arbiter, batch_size) = family_pair(family), ruled_by
    sampling = SamplingConfig(max_new_tokens=16, temperature=temperature, seed=0)
    prompts = [prompt + prompt for prompt in some_prompts(4)[1 : 3 if batch_size == 1 else 4]]
    plain, found = (
        Engine(
            pair, load_arbiter(arbiter), batch_size=batch_size, cascade=cascade, **options
        ).generate(prompts, sampling)
        for cascade in (False, True)
    )
    for ours, theirs in zip(found, plain, strict=True):
        assert ours.token_ids == theirs.token_ids and ours.origins == theirs.origins
        assert replace(ours.stats, num_draft_forwards=0) == replace(
            theirs.stats, num_draft_forwards=0
        )
    forwards = [sum(c.stats.num_draft_forwards for c in done) for done in (found, plain)]
    assert forwards[0] < forwards[1]


def test_ngrams_guess_what_followed_the_longest_end_most_often():
    ngrams = Ngrams()
    assert ngrams.guess([1, 2, 3], 3) == []
    ngrams.add([9, 9, 1, 2], [3, 4, 5])
    ngrams.add([7, 2], [6])
    ngrams.add([7, 2], [6])
    assert ngrams.guess([1, 2], 3) == [3, 4, 5]
    assert ngrams.guess([8, 2], 3) == [6]
    assert ngrams.guess([1, 2], 1) == [3] and ngrams.guess([8, 8], 3) == []


def test_ngrams_begin_anew_before_they_grow_too_large(monkeypatch):
    monkeypatch.setattr("cospec.drafters.cascade._MOST_TOKENS", 5)
    ngrams = Ngrams()
    ngrams.add([1], [2, 3, 4])
    ngrams.add([5], [6, 7, 8])
    assert ngrams.guess([1], 3) == [] and ngrams.guess([5], 3) == [6, 7, 8]


@pytest.mark.parametrize("options", [{"adaptive": True}, {"drafter": "suffix"}])
def test_a_cascade_is_of_the_models_whole_blocks(options):
    with pytest.raises(ConfigError, match=r"leave out (adaptive|drafter='suffix')"):
        DecodeConfig(cascade=True, **options)


def test_texts_that_go_on_lossless_write_again_too(monkeypatch):
    monkeypatch.setattr("cospec.config._REST_CONFIDENCE", 1e-9)  # blocks of ten tokens
    pair, ends = family_pair("llama"), {"max_corrections": 1, "num_speculative_tokens": 16}
    found = decode(pair, "agreement:min_share=0.4", 3, **ends)
    monkeypatch.setattr(ModelDrafter, "_remember", lambda *_: None)
    plain = decode(pair, "agreement:min_share=0.4", 3, **ends)
    assert [c.token_ids for c in found] == [c.token_ids for c in plain]
    forwards = [sum(c.stats.num_draft_forwards for c in done) for done in (found, plain)]
    assert forwards[0] < forwards[1]


def test_a_model_that_needs_padding_writes_the_same(monkeypatch):
    pair = family_pair("llama")
    found = decode(pair, "agreement:min_share=0.4", 4)
    monkeypatch.setattr("cospec.models.cache.can_go_without_padding", lambda _: False)
    padded = decode(pair, "agreement:min_share=0.4", 4)
    assert [c.token_ids for c in padded] == [c.token_ids for c in found]
    assert [c.stats for c in padded] == [c.stats for c in found]


def test_forwards_are_counted_as_they_are():
    pair = family_pair("llama")
    calls = []
    hook = pair.draft.register_forward_pre_hook(lambda *_: calls.append(1))
    found = decode(pair, "lossless", 1)
    hook.remove()
    num_read = sum(len(c.prompt_ids) > 1 for c in found)  # all but its last token beforehand
    assert len(calls) == sum(c.stats.num_draft_forwards for c in found) + num_read
