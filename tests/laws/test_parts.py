"""Blocks too large to be copied at once: verified in parts, they give the same texts."""

from __future__ import annotations

import pytest

from tests.conftest import family_pair
from tests.laws.decoding import BOTH, PROMPTS, covering, decode, expected_ids

ARBITERS = ["lossless", "random:rate=0.4", "agreement:min_share=0.3", "chow_average:min_log_q=-2"]


@pytest.mark.parametrize(
    ("arbiter", "sampling", "most_logits"), covering(ARBITERS, BOTH, [1, 6 * 61 * 2])
)
def test_blocks_in_parts_give_the_same_texts(monkeypatch, arbiter, sampling, most_logits):
    pair = family_pair("llama")
    whole = decode(pair, arbiter, 5, 6, sampling=BOTH[sampling])
    monkeypatch.setattr("cospec.engine.verify._MOST_LOGITS", most_logits)
    found = decode(pair, arbiter, 5, 6, sampling=BOTH[sampling])
    for ours, theirs in zip(found, whole, strict=True):
        assert ours.token_ids == theirs.token_ids and ours.origins == theirs.origins
        assert ours.stats == theirs.stats and len(ours.trace) == len(theirs.trace)
    if (arbiter, sampling) == ("lossless", "greedy"):
        assert [c.token_ids for c in found] == [expected_ids("llama", p) for p in PROMPTS]
