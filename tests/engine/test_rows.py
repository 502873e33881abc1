"""Counts that a row keeps of its own text, however the text came there."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from cospec import Engine, ModelPair, SamplingConfig, load_arbiter
from cospec.config import DecodeConfig
from cospec.drafters import ModelDrafter
from cospec.engine import Branch
from cospec.engine.branches import branch_row
from cospec.engine.prompts import make_row
from cospec.engine.rows import Row
from cospec.engine.speculative import SpeculativeBatch
from cospec.types import FinishReason, Needs, Origin
from tests.conftest import EOS, some_prompts
from tests.engine.helpers import table_pair
from tests.test_display import of_bytes

SETTINGS = SamplingConfig(max_new_tokens=400, ignore_eos=True, seed=0)


class Watched(list):
    """A list that tells how many of its entries were looked at."""

    num_seen = 0

    def __getitem__(self, place):
        found = super().__getitem__(place)
        self.num_seen += len(found) if isinstance(place, slice) else 1
        return found

    def count(self, value):
        self.num_seen += len(self)
        return super().count(value)


def test_counts_are_those_of_the_whole_text_and_look_at_each_token_once():
    random, every = Random(0), list(Origin)
    row = Row(0, [7], SETTINGS, frozenset(), None)
    row.origins, told = Watched(), []
    while not row.finish_reason:
        for origin in random.choices(every, k=random.randint(0, 5)):
            if not row.finish_reason:
                row.emit(8, origin)
                told.append(origin)
        asked = random.choice(every)
        assert row.count(asked) == told.count(asked)
    assert [row.count(origin) for origin in every] == [told.count(origin) for origin in every]
    assert row.origins.num_seen == len(told) == 400


def test_a_step_takes_no_longer_late_in_a_text():
    """Found: each step counted the overrides and corrections of the whole text anew."""
    pair, config = table_pair(), DecodeConfig(num_speculative_tokens=3, max_corrections=500)
    drafter = ModelDrafter(pair, config, Needs.NOTHING)
    batch = SpeculativeBatch(pair, load_arbiter("random:rate=0.5"), drafter, config)
    row = Row(0, [0], SETTINGS, frozenset(), None)
    row.origins = Watched()
    batch.admit([row])
    while not row.finish_reason:
        batch.step()
    assert {Origin.OVERRIDE, Origin.CORRECTION} <= set(row.origins)
    assert len(row.origins) == 400 and row.stats.num_drafts > 100
    assert row.origins.num_seen < 4 * len(row.origins)


def test_a_branch_counts_the_text_that_it_shares(llama_pair):
    engine = Engine(llama_pair, load_arbiter("random:rate=0.5"))
    rollouts = engine.rollouts(some_prompts(3), SamplingConfig(max_new_tokens=24, seed=0))
    num_overrides = 0
    for rollout in rollouts:
        for position in range(len(rollout.completion.token_ids)):
            branch = Branch(rollout, position, 7)
            row = branch_row(llama_pair, 0, branch, needs_draft=True)
            assert row.origins == [*rollout.completion.origins[:position], Origin.OVERRIDE]
            for origin in Origin:
                assert row.count(origin) == row.origins.count(origin)
            num_overrides += row.count(Origin.OVERRIDE) > 1
    assert num_overrides > 3


def test_a_stop_string_is_found_on_both_sides_of_special_tokens(llama_pair, tokenizer):
    """Found: special tokens, of which the text shows nothing, hid its beginning."""
    pair = ModelPair(llama_pair.target, llama_pair.draft, tokenizer)
    settings = SamplingConfig(max_new_tokens=40, ignore_eos=True, stop=("ab",))
    row = make_row(pair, 0, [7], settings)
    first, last = (tokenizer.convert_tokens_to_ids(letter) for letter in "ab")
    for token in (last, first, *[EOS] * 9):
        row.emit(token, Origin.MATCH)
        assert row.finish_reason is None
    row.emit(last, Origin.MATCH)
    assert row.finish_reason is FinishReason.STOP
    assert row.completion().text == "b"


def test_a_stop_string_is_found_after_a_character_of_several_byte_tokens():
    """Found: a window that began within the character showed nothing but broken ones."""
    tokenizer, first = of_bytes("fallback")
    row = Row(0, [0], replace(SETTINGS, stop=("\n",)), frozenset(), tokenizer, frozenset())
    for byte in "é€😀".encode():
        row.emit(first + byte, Origin.MATCH)
        assert not row.finish_reason
    row.emit(first + ord("\n"), Origin.MATCH)
    assert row.finish_reason is FinishReason.STOP
    assert row.text() == "é€😀"
