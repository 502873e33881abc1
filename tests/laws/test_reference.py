"""The engine agrees with the slow reference decoder, under every kind of arbiter."""

from __future__ import annotations

import dataclasses

import pytest

from cospec import Engine, load_arbiter
from cospec.engine.reference import reference_decode
from cospec.evaluation.audit.auditor import reached
from cospec.types import Needs, Ruling
from tests.conftest import family_pair
from tests.laws.decoding import ARBITERS, BOTH, PROMPTS, UNSURE, covering, decode


@pytest.mark.parametrize(
    ("family", "arbiter", "sampling"), covering(["llama", "gemma2", "opt"], ARBITERS, BOTH)
)
def test_the_engine_agrees_with_the_reference_decoder(family, arbiter, sampling):
    pair, sampling = family_pair(family), BOTH[sampling]
    done = decode(pair, arbiter, 4, 3, sampling=sampling)
    for i, (prompt, config) in enumerate(zip(PROMPTS, sampling, strict=True)):
        expected = reference_decode(
            pair, load_arbiter(arbiter), prompt, config, num_speculative_tokens=4, index=i
        )
        assert (done[i].token_ids, done[i].origins) == expected


@pytest.mark.parametrize(
    ("family", "arbiter", "sampling"), covering(["llama", "gemma2"], ARBITERS, BOTH)
)
def test_and_does_where_the_draft_stops_early(family, arbiter, sampling):
    """Each row stops for itself: no row knows how long the others' blocks are."""
    pair, sampling = family_pair(family), BOTH[sampling]
    expected = [
        reference_decode(
            pair,
            load_arbiter(arbiter),
            prompt,
            config,
            num_speculative_tokens=5,
            draft_confidence_threshold=UNSURE,
            index=i,
        )
        for i, (prompt, config) in enumerate(zip(PROMPTS, sampling, strict=True))
    ]
    for batch in (1, 3, 8):
        done = decode(pair, arbiter, 5, batch, UNSURE, sampling=sampling)
        assert [(c.token_ids, c.origins) for c in done] == expected
        lengths = [step.num_draft_tokens for c in done for step in c.trace]
        assert min(lengths) < max(lengths)


@pytest.mark.parametrize(
    ("family", "arbiter", "sampling"), covering(["llama", "gemma2"], ARBITERS, BOTH)
)
def test_and_does_where_blocks_end_with_the_text(family, arbiter, sampling):
    """A third of the vocabulary ends a text here, so that most blocks end before their time."""
    pair = family_pair(family)
    stops = tuple(range(0, pair.target.config.vocab_size, 3))
    sampling = [dataclasses.replace(one, stop_token_ids=stops) for one in BOTH[sampling]]
    ends = {"end_blocks_at_stop": True}
    expected = [
        reference_decode(
            pair,
            load_arbiter(arbiter),
            prompt,
            config,
            num_speculative_tokens=6,
            index=i,
            **ends,
        )
        for i, (prompt, config) in enumerate(zip(PROMPTS, sampling, strict=True))
    ]
    for batch in (1, 8):
        done = decode(pair, arbiter, 6, batch, sampling=sampling, **ends)
        assert [(c.token_ids, c.origins) for c in done] == expected
        lengths = [step.num_draft_tokens for c in done for step in c.trace]
        assert min(lengths) < max(lengths)
        if arbiter == "lossless":
            whole = decode(pair, arbiter, 6, batch, sampling=sampling)
            if sampling[0].is_greedy:
                assert [c.token_ids for c in done] == [c.token_ids for c in whole]
            wasted = (sum(c.stats.num_draft_tokens for c in each) for each in (done, whole))
            assert next(wasted) < next(wasted)


class Counting:
    """Rules by how many mismatches a text has had, and says so."""

    name, needs = "counting", Needs.NOTHING

    def rule(self, batch):
        return Ruling(batch.num_mismatches % 3 != 1, batch.num_mismatches.double())


@pytest.mark.parametrize(("k", "sampling"), [(1, "greedy"), (4, "sampled"), (8, "greedy")])
def test_an_arbiter_is_told_how_many_mismatches_a_text_has_had(llama_pair, k, sampling):
    sampling = BOTH[sampling]
    engine = Engine(llama_pair, Counting(), num_speculative_tokens=k, batch_size=3)
    done = engine.generate(PROMPTS, sampling)
    for i, (prompt, config) in enumerate(zip(PROMPTS, sampling, strict=True)):
        told = [m.score for m in reached(done[i])]
        assert told == list(range(len(told)))
        expected = reference_decode(
            llama_pair, Counting(), prompt, config, num_speculative_tokens=k, index=i
        )
        assert (done[i].token_ids, done[i].origins) == expected
    assert sum(len(reached(c)) for c in done) > 20
