"""The engine agrees with the slow reference decoder, under every kind of arbiter."""

from __future__ import annotations

import dataclasses

import pytest

from cospec import Engine, load_arbiter
from cospec.engine import Branch
from cospec.engine.reference import reference_decode
from cospec.types import Needs, Origin, Ruling
from tests.conftest import family_pair
from tests.laws.decoding import (
    ARBITERS,
    BOTH,
    PROMPTS,
    UNSURE,
    assert_it_rules,
    covering,
    decode,
    expected_ids,
)

pytestmark = pytest.mark.usefixtures("texts_are_read_once")
FAMILIES = ["llama", "gemma2"]
SHORT = {
    name: [dataclasses.replace(one, max_new_tokens=16) for one in each]
    for name, each in BOTH.items()
}
"""The reference decoder reads the whole text for each token."""


def slowly(pair, arbiter, sampling, **settings):
    """Return tokens and origins of the first prompts by the reference decoder."""
    return [
        reference_decode(pair, load_arbiter(arbiter), prompt, config, index=i, **settings)
        for i, (prompt, config) in enumerate(zip(PROMPTS, sampling, strict=False))
    ]


def some_of(sampling, batch):
    """Half of the settings where texts are decoded one by one, which takes longest."""
    return SHORT[sampling][:3] if batch == 1 else SHORT[sampling]


def told(completions):
    """Tokens and origins of each."""
    return [(c.token_ids, c.origins) for c in completions]


@pytest.mark.parametrize(
    ("family", "arbiter", "sampling"),
    [
        *covering(FAMILIES, ARBITERS, BOTH),
        ("opt", "lossless", "greedy"),
        ("opt", "random:rate=0.4", "sampled"),
    ],
)
def test_the_engine_agrees_with_the_reference_decoder(family, arbiter, sampling):
    pair, sampling = family_pair(family), SHORT[sampling]
    done = decode(pair, arbiter, 4, 3, sampling=sampling)
    assert told(done) == slowly(pair, arbiter, sampling, num_speculative_tokens=4)
    assert_it_rules(arbiter, done)


@pytest.mark.parametrize(
    ("family", "arbiter", "sampling", "batches"),
    [
        (FAMILIES[i], arbiter, list(BOTH)[(i + j) % 2], [(1,), (3, 8)][(i + j // 2) % 2])
        for j, arbiter in enumerate(ARBITERS)
        for i in [(j + 1) // 2 % 2]
    ],
)
def test_and_does_where_the_draft_stops_early(family, arbiter, sampling, batches):
    """Each row stops for itself: no row knows how long the others' blocks are."""
    pair, sampling = family_pair(family), some_of(sampling, batches[0])
    ends = {"num_speculative_tokens": 5, "draft_confidence_threshold": UNSURE}
    expected, prompts = slowly(pair, arbiter, sampling, **ends), PROMPTS[: len(sampling)]
    for batch in batches:
        done = decode(pair, arbiter, 5, batch, UNSURE, prompts=prompts, sampling=sampling)
        assert told(done) == expected
        assert_it_rules(arbiter, done)
        lengths = [step.num_draft_tokens for c in done for step in c.trace]
        assert min(lengths) < max(lengths)


@pytest.mark.parametrize(
    ("family", "arbiter", "sampling", "batch"),
    [
        (FAMILIES[i], arbiter, list(BOTH)[(i + j) % 2], [1, 8][(i + j // 2) % 2])
        for j, arbiter in enumerate(ARBITERS)
        for i in [1 - (j + 1) // 2 % 2]  # the other family than above
    ],
)
def test_and_does_where_blocks_end_with_the_text(family, arbiter, sampling, batch):
    """A quarter of the vocabulary ends a text here, so that many blocks end before their time."""
    pair = family_pair(family)
    stops = tuple(range(2, pair.target.config.vocab_size, 4))
    sampling = [dataclasses.replace(one, stop_token_ids=stops) for one in BOTH[sampling]]
    ends = {"end_blocks_at_stop": True}
    expected = slowly(pair, arbiter, sampling, num_speculative_tokens=6, **ends)
    done = decode(pair, arbiter, 6, batch, sampling=sampling, **ends)
    assert told(done) == expected
    assert_it_rules(arbiter, done)
    lengths = [step.num_draft_tokens for c in done for step in c.trace]
    assert min(lengths) < max(lengths)


@pytest.mark.parametrize(
    ("arbiter", "sampling", "most", "batch", "least"),
    [
        (arbiter, list(BOTH)[i], [1, 3][(i + j) % 2], [3, 1][(i + j // 2) % 2], [1e-9, 0.0][j % 2])
        for j, arbiter in enumerate(ARBITERS)
        for i in [(j + 1) // 2 % 2]
    ],
)
def test_and_does_where_a_text_goes_on_lossless_after_some_corrections(
    llama_pair, arbiter, sampling, most, batch, least
):
    pair, sampling = llama_pair, some_of(sampling, batch)
    expected = slowly(
        pair,
        arbiter,
        sampling,
        num_speculative_tokens=12,
        max_corrections=most,
        draft_confidence_threshold=least,
    )
    done = decode(
        pair,
        arbiter,
        12,
        batch,
        prompts=PROMPTS[: len(sampling)],
        sampling=sampling,
        max_corrections=most,
        threshold=least,
    )
    assert told(done) == expected
    assert_it_rules(arbiter, done)
    for completion in done:
        at = [i for i, o in enumerate(completion.origins) if o is Origin.CORRECTION][most - 1 :]
        if at:
            assert Origin.OVERRIDE not in completion.origins[at[0] :]
            late = [s.num_draft_tokens for s in completion.trace if s.position > at[0]]
            assert max(late, default=0) <= 10
            assert not least or set(late[:1]) <= {10}, "each token is more probable than that"


class Timid:
    """Rules for the draft wherever it may, and stands back from some prompts."""

    name, needs = "timid", Needs.NOTHING

    def is_foreign(self, prompt_ids):
        return prompt_ids[0] % 2 == 0

    def rule(self, batch):
        return Ruling(batch.draft_ids >= 0)


@pytest.mark.parametrize(
    ("sampling", "most", "batch"),
    [("greedy", None, 3), ("sampled", None, 8), ("greedy", 1, 1)],
)
def test_texts_of_prompts_that_the_arbiter_stands_back_from_are_lossless(
    llama_pair, sampling, most, batch
):
    pair, settings = llama_pair, {"num_speculative_tokens": 6, "max_corrections": most}
    sampling = SHORT[sampling][-2:] + SHORT[sampling][:-2]  # little is cut where it rules
    foreign = [Timid().is_foreign(prompt) for prompt in PROMPTS]
    assert 0 < sum(foreign) < len(PROMPTS)
    expected = [
        reference_decode(pair, Timid(), prompt, config, index=i, **settings)
        for i, (prompt, config) in enumerate(zip(PROMPTS, sampling, strict=True))
    ]
    engine = Engine(pair, Timid(), batch_size=batch, **settings)
    rollouts = engine.rollouts(PROMPTS, sampling)
    done = [rollout.completion for rollout in rollouts]
    assert told(done) == expected
    for one, config, is_foreign in zip(done, sampling, foreign, strict=True):
        assert is_foreign == (Origin.OVERRIDE not in one.origins)
        if is_foreign and config.is_greedy:
            assert one.token_ids == expected_ids("llama", one.prompt_ids)[:16]
        if is_foreign and most:
            assert max(step.num_draft_tokens for step in one.trace) <= 6
    branches = [Branch(one, 2, one.completion.token_ids[2]) for one in rollouts]
    for one, is_foreign in zip(engine.branches(branches), foreign, strict=True):
        assert is_foreign == (Origin.OVERRIDE not in one.completion.origins[3:])


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_blocks_that_end_with_the_text_change_no_lossless_text_and_waste_less(family):
    pair = family_pair(family)
    stops = tuple(range(0, pair.target.config.vocab_size, 3))
    sampling = [dataclasses.replace(one, stop_token_ids=stops) for one in BOTH["greedy"]]
    whole, ended = (
        decode(pair, "lossless", 6, 3, sampling=sampling, end_blocks_at_stop=ends)
        for ends in (False, True)
    )
    assert [c.token_ids for c in ended] == [c.token_ids for c in whole]
    num_whole, num_ended = (sum(c.stats.num_draft_tokens for c in d) for d in (whole, ended))
    assert num_ended < num_whole


class Counting:
    """Rules by how many mismatches a text has had, and says so."""

    name, needs = "counting", Needs.NOTHING

    def rule(self, batch):
        return Ruling(batch.num_mismatches % 3 != 1, batch.num_mismatches.double())


@pytest.mark.parametrize(("k", "sampling"), [(1, "greedy"), (4, "sampled"), (8, "greedy")])
def test_an_arbiter_is_told_how_many_mismatches_a_text_has_had(llama_pair, k, sampling):
    sampling = SHORT[sampling]
    engine = Engine(llama_pair, Counting(), num_speculative_tokens=k, batch_size=3)
    done = engine.generate(PROMPTS, sampling)
    for i, (prompt, config) in enumerate(zip(PROMPTS, sampling, strict=True)):
        scores = [m.score for m in done[i].reached]
        assert scores == list(range(len(scores)))
        expected = reference_decode(
            llama_pair, Counting(), prompt, config, num_speculative_tokens=k, index=i
        )
        assert (done[i].token_ids, done[i].origins) == expected
    assert sum(len(c.reached) for c in done) > 20
