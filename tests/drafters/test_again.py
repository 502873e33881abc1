"""An answer that is written again: the same tokens as one forward each, in fewer forwards."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cospec import Engine, SamplingConfig, load_arbiter
from cospec.drafters import ModelDrafter
from tests.conftest import family_pair, some_prompts
from tests.laws.decoding import covering

FAMILIES = ["llama", "gemma3_text", "mistral"]
ARBITERS = ["lossless", "gap:max_gap=1", "agreement:min_share=0.4"]
WHOLE = {"num_speculative_tokens": 24, "end_blocks_at_stop": True}


def decode(pair, arbiter, batch_size, **changes):
    engine = Engine(pair, load_arbiter(arbiter), **WHOLE | {"batch_size": batch_size} | changes)
    return engine.generate(some_prompts(6), SamplingConfig(max_new_tokens=24))


@pytest.mark.parametrize(("family", "arbiter", "batch_size"), covering(FAMILIES, ARBITERS, [1, 4]))
def test_tokens_and_rulings_stay_and_forwards_are_saved(family, arbiter, batch_size, monkeypatch):
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


def test_texts_that_go_on_lossless_write_again_too(monkeypatch):
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
