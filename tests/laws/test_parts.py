"""Blocks too large to be copied at once: verified and ruled in parts, they give the same texts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cospec import Engine, load_arbiter
from cospec.arbiters import CSD, RULES
from tests.arbiters.trained import hidden, learned
from tests.conftest import VOCAB, family_pair
from tests.laws.decoding import BOTH, PROMPTS, covering, decode, expected_starts

ARBITERS = ["lossless", "random:rate=0.4", "agreement:min_share=0.3", "chow_average:min_log_q=-1.3"]
OTHERS = {
    "csd": lambda _: CSD(0, 0.01).remembering(torch.combinations(torch.arange(VOCAB))),
    "learned": lambda _: learned(),
    "learned, by chance": lambda _: learned(explore=1.0),
    "learned, of states": hidden,
}
SHORT = {
    name: [replace(one, max_new_tokens=10) for one in sampling] for name, sampling in BOTH.items()
}
_LIMIT = "cospec.engine.verify._MOST_LOGITS"


@pytest.mark.parametrize(
    ("arbiter", "sampling", "most_logits"), covering(ARBITERS, BOTH, [1, 6 * 61 * 2])
)
def test_blocks_in_parts_give_the_same_texts(monkeypatch, arbiter, sampling, most_logits):
    pair = family_pair("llama")
    whole = decode(pair, arbiter, 5, 6, sampling=SHORT[sampling])
    monkeypatch.setattr(_LIMIT, most_logits)
    found = decode(pair, arbiter, 5, 6, sampling=SHORT[sampling])
    assert_same(found, whole)
    if (arbiter, sampling) == ("lossless", "greedy"):
        assert [c.token_ids for c in found] == expected_starts("llama", PROMPTS, 10)


def assert_same(found, whole):
    for ours, theirs in zip(found, whole, strict=True):
        assert ours.token_ids == theirs.token_ids and ours.origins == theirs.origins
        assert ours.stats == theirs.stats and len(ours.trace) == len(theirs.trace)
        for one, other in zip(ours.reached, theirs.reached, strict=True):
            assert (one.keep_draft, one.is_open, one.veto) == (
                other.keep_draft, other.is_open, other.veto
            )  # fmt: skip
            assert (one.score is None) == (other.score is None)
            if one.score is not None:
                assert one.score == pytest.approx(other.score, rel=1e-4, abs=1e-6)


class Watched:
    """An arbiter, and the rows of the mismatches that it was asked about in each call."""

    def __init__(self, arbiter):
        self.name, self.needs, self._arbiter, self.calls = arbiter.name, arbiter.needs, arbiter, []

    def rule(self, batch):
        self.calls.append(batch.rows.tolist())
        return self._arbiter.rule(batch)


@pytest.mark.parametrize("kind", {**RULES, **OTHERS})
def test_an_arbiter_that_is_asked_about_some_rows_at_a_time_rules_the_same(monkeypatch, kind):
    """Found: it made float32 copies of the logits of all mismatches, which took gigabytes."""
    pair = family_pair("llama")
    arbiter = OTHERS[kind](pair) if kind in OTHERS else load_arbiter(kind)
    watched, done = [Watched(arbiter), Watched(arbiter)], []
    for it, most in zip(watched, (48 * VOCAB, 8 * VOCAB), strict=True):
        monkeypatch.setattr(_LIMIT, most)
        engine = Engine(pair, it, num_speculative_tokens=8, batch_size=6)
        done.append(engine.generate(PROMPTS, SHORT["sampled"]))
    assert_same(*done)
    most_rows, num_rows = (max(len(set(rows)) for rows in it.calls) for it in watched)
    assert most_rows == 6 > num_rows > 1
    for rows in watched[1].calls:
        assert len(rows) <= 8
    joined = [sum(map(len, it.calls)) for it in watched]
    assert joined[0] == joined[1]
