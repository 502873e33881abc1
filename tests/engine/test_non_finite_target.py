"""Non-finite logits of the target are an error that names the place and spoils nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cospec import Engine, SamplingConfig
from cospec.arbiters import AlwaysTarget
from cospec.errors import (
    NonFiniteError,
)
from cospec.models import ModelPair
from tests.conftest import (
    TableModel,
)
from tests.engine.helpers import (
    GREEDY,
    INF,
    NAN,
    NUM_NEW,
    SAMPLED,
    Spoilt,
    decode,
    ids,
    table_pair,
)
from tests.laws.known_law import DRAFT as DRAFT_TABLE
from tests.laws.known_law import TARGET as TARGET_TABLE

FIRST_BAD = 30


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("k", [1, 3, 8])
def test_a_target_that_turns_non_finite_is_named_by_prompt_and_position(k, sampling, value):
    """The logits from position 30 on are bad, hence token 31 - 18 = 13 of a prompt of 18.

    Longer prompts come first and end before that; shorter ones never come.
    """
    pair = ModelPair(Spoilt(TARGET_TABLE, FIRST_BAD, value), TableModel(DRAFT_TABLE))
    prompts = [[0] * 20, [1] * 19, [2] * 18, [3]]
    short = replace(sampling, max_new_tokens=2)
    settings = [short, short, sampling, sampling]
    sound = decode(table_pair(), prompts=prompts, sampling=settings, num_speculative_tokens=k)
    engine = Engine(pair, AlwaysTarget(), num_speculative_tokens=k, batch_size=1)
    with pytest.raises(NonFiniteError, match="for prompt 2 at generated token 13;") as caught:
        engine.generate(prompts, settings)
    assert isinstance(caught.value, FloatingPointError)
    assert caught.value.completions == {0: sound[0], 1: sound[1]}
    again = engine.generate(prompts[:2], short)
    assert again == sound[:2], "the engine is as good as new"


def test_plain_decoding_names_the_same_position():
    pair = ModelPair(Spoilt(TARGET_TABLE, FIRST_BAD, NAN), TableModel(DRAFT_TABLE))
    with pytest.raises(NonFiniteError, match="for prompt 0 at generated token 11;"):
        Engine.target_only(pair).generate([[0] * 20], GREEDY)


def test_plain_decoding_names_the_model_that_it_decodes_with():
    """Found: it blamed the target for the draft's."""
    pair = ModelPair(TableModel(TARGET_TABLE), Spoilt(DRAFT_TABLE, FIRST_BAD, NAN))
    with pytest.raises(NonFiniteError, match="the draft's logits hold NaN"):
        Engine.draft_only(pair).generate([[0] * 20], GREEDY)


def test_a_prompt_whose_own_logits_are_non_finite_fails_at_token_zero():
    pair = ModelPair(Spoilt(TARGET_TABLE, FIRST_BAD, NAN), TableModel(DRAFT_TABLE))
    with pytest.raises(NonFiniteError, match="for prompt 0 at generated token 0;"):
        decode(pair, prompts=[[0] * 40])


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("k", [1, 4, 8])
def test_non_finite_logits_behind_the_last_token_do_no_harm(k, sampling):
    """The last block of a row reads on behind its end; what it says there counts for nothing."""
    prompts = [[2] * (FIRST_BAD + 1 - NUM_NEW)]
    spoilt = ModelPair(Spoilt(TARGET_TABLE, FIRST_BAD, NAN), TableModel(DRAFT_TABLE))
    expected = decode(table_pair(), prompts=prompts, sampling=sampling, num_speculative_tokens=k)
    done = decode(spoilt, prompts=prompts, sampling=sampling, num_speculative_tokens=k)
    assert ids(done) == ids(expected)


@pytest.mark.parametrize("bad_first", [False, True])
def test_rows_that_finish_in_the_block_that_fails_are_handed_over(bad_first):
    """Found: the error left the block before its finished rows were collected."""
    pair = ModelPair(Spoilt(TARGET_TABLE, FIRST_BAD, NAN), TableModel(DRAFT_TABLE))
    sampling = SamplingConfig(max_new_tokens=1)
    prompts = [[0], [2] * 40]
    (expected,) = decode(table_pair(), prompts=[[0]], sampling=sampling)
    with pytest.raises(NonFiniteError) as caught:
        decode(pair, prompts=prompts[::-1] if bad_first else prompts, sampling=sampling)
    assert ids(list(caught.value.completions.values())) == [expected.token_ids]


def test_a_stream_gives_what_was_finished_before_the_target_turned_non_finite():
    """It takes the prompts in their order: the longest one is not the first to fail."""
    pair = ModelPair(Spoilt(TARGET_TABLE, FIRST_BAD, NAN), TableModel(DRAFT_TABLE))
    (expected,) = decode(table_pair(), prompts=[[0]])
    stream = Engine(pair, AlwaysTarget(), batch_size=1).stream([[0], [2] * 40], GREEDY)
    deltas = []
    with pytest.raises(NonFiniteError, match="for prompt 1 at generated token 0;"):
        deltas.extend(stream)
    assert ids([d.completion for d in deltas if d.completion]) == [expected.token_ids]
