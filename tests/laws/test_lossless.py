"""Lossless decoding is exact: its output is what transformers generates with the target."""

from __future__ import annotations

import pytest

from cospec import Engine, SamplingConfig
from cospec.models import ModelPair
from cospec.types import Origin, Stats
from tests.conftest import EOS, FAMILIES, family_pair, some_prompts
from tests.laws.decoding import (
    GREEDY,
    NUM_NEW,
    PROMPTS,
    UNSURE,
    decode,
    expected_ids,
    expected_starts,
)

EARLY = [(1, UNSURE), (3, 1.0)]
"""Batch sizes and thresholds."""


def chosen(batch: int) -> list[list[int]]:
    """Two prompts where they are decoded one by one, which takes longest; else all of them."""
    return PROMPTS[1:3] if batch == 1 else PROMPTS


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("k", "batch"), [(1, 8), (2, 3), (4, 1), (8, 8)])
def test_lossless_greedy_output_is_what_transformers_generates(family, k, batch):
    expected = [expected_ids(family, prompt) for prompt in chosen(batch)]
    done = decode(family_pair(family), "lossless", k, batch, prompts=chosen(batch))
    assert [c.token_ids for c in done] == expected
    stats = sum((c.stats for c in done), Stats())
    assert stats.num_overrides == 0
    assert stats.num_tokens == sum(map(len, expected))
    assert 1.1 < stats.mean_acceptance_length < k + 1, "the pair should agree now and then"


@pytest.mark.parametrize(
    ("family", "k", "batch", "threshold"),
    [(family, 4, 8, UNSURE) for family in FAMILIES]
    + [(family, 8, *EARLY[i % 2]) for i, family in enumerate(FAMILIES)],
)
def test_lossless_stays_exact_where_the_draft_stops_early(family, k, batch, threshold):
    expected = [expected_ids(family, prompt) for prompt in chosen(batch)]
    done = decode(family_pair(family), "lossless", k, batch, threshold, prompts=chosen(batch))
    assert [c.token_ids for c in done] == expected
    stats = sum((c.stats for c in done), Stats())
    assert stats.num_tokens == sum(map(len, expected))
    lengths = [step.num_draft_tokens for c in done for step in c.trace]
    assert stats.num_draft_forwards == stats.num_draft_tokens == sum(lengths)
    if threshold == 1:
        assert set(lengths) == {1}, "no token is certain"
    else:
        assert len(set(lengths)) > 1 and max(lengths) <= k
    assert stats.mean_acceptance_length > 1.1


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_decoding_is_what_transformers_generates(family):
    done = Engine.target_only(family_pair(family), batch_size=3).generate(PROMPTS, GREEDY)
    assert [c.token_ids for c in done] == [expected_ids(family, prompt) for prompt in PROMPTS]
    assert all(set(c.origins) == {Origin.BONUS} for c in done)
    assert all(c.stats.num_target_forwards == len(c.token_ids) for c in done)


@pytest.mark.parametrize("num_new", [1, 2, 5, 17])
def test_lossless_stops_at_any_length(llama_pair, num_new):
    done = decode(llama_pair, "lossless", 4, 3, sampling=SamplingConfig(max_new_tokens=num_new))
    assert [c.token_ids for c in done] == expected_starts("llama", PROMPTS, num_new)


@pytest.mark.parametrize("k", [1, 4])
def test_lossless_stops_at_the_given_stop_tokens(llama_pair, k):
    free = [expected_ids("llama", p) for p in PROMPTS]
    stops = (free[1][4], free[2][9])
    done = decode(
        llama_pair,
        "lossless",
        k,
        3,
        sampling=SamplingConfig(max_new_tokens=NUM_NEW, stop_token_ids=stops),
    )
    eos = (EOS, *stops)
    assert [c.token_ids for c in done] == [
        expected_ids("llama", p, eos_token_id=eos) for p in PROMPTS
    ]
    assert {c.finish_reason for c in done} == {"stop", "length"}


def test_ignoring_end_of_sequence_runs_to_the_length(llama_pair):
    sampling = SamplingConfig(max_new_tokens=NUM_NEW, ignore_eos=True)
    done = decode(llama_pair, "lossless", 4, 3, sampling=sampling)
    expected = [expected_ids("llama", p, eos_token_id=-1) for p in PROMPTS]
    assert [c.token_ids for c in done] == expected
    assert any(EOS in c.token_ids for c in done), "no text reached end-of-sequence: choose others"


@pytest.mark.parametrize("k", [1, 3, 8])
def test_lossless_stops_where_transformers_finds_a_stop_string(llama_pair, tokenizer, k):
    pair = ModelPair(llama_pair.target, llama_pair.draft, tokenizer)
    full = [c.text for c in decode(pair, "lossless", 4, 8)]
    stops = (full[0][9:12], full[3][6:8], full[2][20:22])
    sampling = SamplingConfig(max_new_tokens=NUM_NEW, stop=stops)
    done = decode(pair, "lossless", k, 3, sampling=sampling)
    for completion, prompt, text in zip(done, PROMPTS, full, strict=True):
        expected = expected_ids("llama", prompt, stop_strings=stops, tokenizer=tokenizer)
        assert completion.token_ids == expected
        cut = min((text.find(s) for s in stops if s in text), default=len(text))
        assert completion.text == text[:cut]


def test_a_prompt_may_fill_the_context_to_the_last_position():
    for family in ("llama", "gpt2", "opt"):
        pair = family_pair(family)
        prompt = (some_prompts(8)[2] * 10)[: pair.context_length - 6]
        sampling = SamplingConfig(max_new_tokens=6, ignore_eos=True)
        (done,) = decode(pair, "lossless", 8, 1, prompts=[prompt], sampling=sampling)
        assert done.token_ids == expected_ids(family, prompt, max_new_tokens=6, eos_token_id=-1)


def test_the_exact_prefix_equals_the_target(llama_pair):
    exact = decode(llama_pair, "lossless", 4, 3)
    sampling = SamplingConfig(max_new_tokens=NUM_NEW, exact_prefix_tokens=11)
    prefixed = decode(llama_pair, "always_draft", 4, 3, sampling=sampling)
    for a, b in zip(exact, prefixed, strict=True):
        assert a.token_ids[:11] == b.token_ids[:11]
        assert Origin.OVERRIDE not in b.origins[:11]
    assert any(Origin.OVERRIDE in c.origins for c in prefixed)
