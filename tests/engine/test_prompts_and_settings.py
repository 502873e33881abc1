"""Prompts and settings that cannot be decoded are refused with a sentence."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from cospec import Engine, PairPrompt, SamplingConfig
from cospec.arbiters import AlwaysTarget
from cospec.config import DecodeConfig
from cospec.errors import (
    ArbiterError,
    ConfigError,
    PromptError,
)
from cospec.models import ModelPair
from tests.conftest import (
    CONTEXT,
    VOCAB,
    random_model,
    some_prompts,
)
from tests.engine.helpers import (
    GREEDY,
    NAN,
    NUM_NEW,
    FromFunction,
    decode,
    table_pair,
)


@pytest.mark.parametrize(
    ("prompts", "sentence"),
    [
        ([], "list of prompts is empty"),
        ("hello", r"one string; pass a list of prompts: \[prompt\]"),
        ([[]], "prompt 0 is empty"),
        ([[7, 8], []], "prompt 1 is empty"),
        ([[7, VOCAB]], f"prompt 0 holds token id {VOCAB}; allowed are 0 to {VOCAB - 1}"),
        ([[7], [-1]], "prompt 1 holds token id -1"),
        (["hello"], "prompt 0 is a text, and this pair has no tokenizer"),
        ([[7] * (CONTEXT + 1)], f"prompt 0 has {CONTEXT + 1} tokens.*context holds {CONTEXT}"),
        (
            [[7], [7] * (CONTEXT - NUM_NEW + 1)],
            f"prompt 1 has .* max_new_tokens is {NUM_NEW}: together {CONTEXT + 1}, but",
        ),
    ],
)
def test_a_prompt_that_cannot_be_decoded_is_refused_before_the_first_token(
    llama_pair, prompts, sentence
):
    asked = []
    spy = FromFunction(asked.append)
    engine = Engine(llama_pair, spy)
    with pytest.raises(PromptError, match=sentence) as caught:
        engine.generate(prompts, GREEDY)
    assert isinstance(caught.value, ValueError)
    assert caught.value.completions == {}
    assert not asked
    with pytest.raises(PromptError, match=sentence):
        next(iter(engine.stream(prompts, GREEDY)))


@pytest.mark.parametrize(
    "prompts",
    [
        *([7, 8, 9], [None], [[[7, 8]]], [["seven"]], [[7.5]], [7.0], [b"seven"]),
        torch.tensor([[7, 8], [9, 7]]),
    ],
    ids=["one prompt", "none", "too deep", "words", "fractions", "a number", "bytes", "a tensor"],
)
def test_a_prompt_of_an_unknown_kind_is_refused_with_a_sentence(llama_pair, prompts):
    """Found: bare TypeErrors and ValueErrors from inside, and token 7.5 was read as 7."""
    with pytest.raises(PromptError):
        Engine(llama_pair, AlwaysTarget()).generate(prompts, GREEDY)


@pytest.mark.parametrize("engine", [Engine.target_only, lambda p: Engine(p, AlwaysTarget())])
def test_a_stop_string_that_is_a_special_token_ends_the_text(llama_pair, tokenizer, engine):
    """Found: decoded text leaves special tokens out, so that it was never there."""
    tokenizer = copy.deepcopy(tokenizer)
    pair = ModelPair(llama_pair.target, llama_pair.draft, tokenizer)
    (free,) = engine(pair).generate([[7, 8]], GREEDY)
    at = next(i for i, t in enumerate(free.token_ids) if i > 3 and t not in free.token_ids[:i])
    name = tokenizer.convert_ids_to_tokens(free.token_ids[at])
    tokenizer.add_special_tokens({"additional_special_tokens": [name]})
    (done,) = engine(pair).generate([[7, 8]], replace(GREEDY, stop=(name, "never")))
    assert done.token_ids == free.token_ids[: at + 1]
    assert done.finish_reason == "stop"


def test_an_empty_text_is_refused(llama_pair, tokenizer):
    pair = ModelPair(llama_pair.target, llama_pair.draft, tokenizer)
    with pytest.raises(PromptError, match="prompt 1 is empty"):
        Engine(pair, AlwaysTarget()).generate(["an", ""], GREEDY)


def test_half_of_a_character_is_refused_with_the_words_around_it(llama_pair, tokenizer):
    """Found: a UnicodeEncodeError, or a TypeError of the tokenizer, from inside."""
    pair = ModelPair(llama_pair.target, llama_pair.draft, tokenizer)
    with pytest.raises(PromptError, match=r"half of a character, '\\ud800', in 'and \\ud800'"):
        Engine(pair, AlwaysTarget()).generate(["an", "and \ud800"], GREEDY)


def test_a_tensor_of_ids_is_a_prompt(llama_pair):
    prompt = some_prompts(2)[1]
    done = decode(llama_pair, prompts=[torch.tensor(prompt), tuple(prompt), prompt])
    assert len({tuple(c.token_ids) for c in done}) == 1


def test_the_context_is_that_of_the_model_with_the_shorter_one():
    target, draft = random_model("llama"), random_model("llama", max_position_embeddings=40)
    for pair in (ModelPair(target, draft), ModelPair(draft, target)):
        assert pair.context_length == 40
        with pytest.raises(PromptError, match="context holds 40"):
            decode(pair, prompts=[[7] * (41 - NUM_NEW)])
        (done,) = decode(pair, prompts=[[7] * (40 - NUM_NEW)])
        assert done.token_ids


def test_a_prompt_is_held_by_the_models_that_read_it():
    """Found: a draft's short context refused prompts that only the target reads."""
    target, draft = random_model("llama"), random_model("llama", max_position_embeddings=40)
    pair, prompt = ModelPair(target, draft), [7] * (41 - NUM_NEW)
    alone = Engine.target_only(pair).generate([prompt], GREEDY)[0].token_ids
    (searched,) = Engine(pair, AlwaysTarget(), drafter="ngram").generate([prompt], GREEDY)
    assert searched.token_ids == alone
    own = PairPrompt(target=prompt, draft=prompt[1:])
    assert decode(pair, prompts=[own])[0].token_ids == alone
    for fails in (
        lambda: decode(pair, prompts=[PairPrompt(target=prompt, draft=prompt)]),
        lambda: Engine.draft_only(pair).generate([prompt], GREEDY),
    ):
        with pytest.raises(PromptError, match="context holds 40"):
            fails()


def test_stop_strings_without_a_tokenizer_are_refused(llama_pair):
    with pytest.raises(ConfigError, match="stop strings need a tokenizer"):
        decode(llama_pair, prompts=[[7]], sampling=SamplingConfig(stop=("x",)))


@pytest.mark.parametrize("k", [0, -1])
def test_a_draft_length_below_one_is_refused(llama_pair, k):
    with pytest.raises(ConfigError, match=rf"num_speculative_tokens is {k}.*target_only"):
        Engine(llama_pair, AlwaysTarget(), num_speculative_tokens=k)


def test_blocks_that_no_context_holds_are_refused(llama_pair):
    """Found: -k of 2**40 asked for 70 TB of cache."""
    with pytest.raises(ConfigError, match=rf"is {CONTEXT + 1}, .*holds {CONTEXT}; lower"):
        Engine(llama_pair, AlwaysTarget(), num_speculative_tokens=CONTEXT + 1)
    Engine(llama_pair, AlwaysTarget(), num_speculative_tokens=CONTEXT)


@pytest.mark.parametrize("size", [0, -4])
def test_a_batch_size_below_one_is_refused(llama_pair, size):
    with pytest.raises(ConfigError, match=f"batch_size is {size}; it must be at least 1"):
        Engine(llama_pair, AlwaysTarget(), batch_size=size)
    with pytest.raises(ConfigError, match="batch_size"):
        Engine.target_only(llama_pair, batch_size=size)


def test_an_unknown_option_is_refused_with_the_nearest_name(llama_pair):
    with pytest.raises(ConfigError, match="did you mean 'num_speculative_tokens'"):
        Engine(llama_pair, AlwaysTarget(), num_speculative_token=3)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, NAN])
def test_a_confidence_that_is_no_probability_is_refused(threshold):
    with pytest.raises(ConfigError, match=f"draft_confidence_threshold is {threshold}; it is a"):
        Engine(table_pair(), AlwaysTarget(), draft_confidence_threshold=threshold)


def test_a_cost_of_adaptive_blocks_without_adaptive_is_refused():
    with pytest.raises(ConfigError, match=r"adaptive_cost is 0\.3, and adaptive is off"):
        DecodeConfig(adaptive_cost=0.3)


@pytest.mark.parametrize("num_configs", [0, 1, 3])
def test_another_number_of_settings_than_prompts_is_refused(llama_pair, num_configs):
    sentence = f"{num_configs} sampling configs for 2 prompts"
    with pytest.raises(ConfigError, match=sentence):
        decode(llama_pair, prompts=[[7], [8]], sampling=[GREEDY] * num_configs)


@pytest.mark.parametrize("streams", [[], [0], [0, 1, 2]])
def test_another_number_of_streams_than_prompts_is_refused(llama_pair, streams):
    with pytest.raises(ConfigError, match=f"got {len(streams)} streams for 2 prompts"):
        Engine(llama_pair, AlwaysTarget()).generate([[7], [8]], GREEDY, streams=streams)


@pytest.mark.parametrize("arbiter", ["lossless", None, AlwaysTarget])
def test_what_is_no_arbiter_is_refused(arbiter):
    """Found: ``'str' object has no attribute 'needs'``."""
    with pytest.raises(ArbiterError, match=r"arbiter is .*; pass .*: load_arbiter\(spec, pair\)"):
        Engine(table_pair(), arbiter)


@pytest.mark.parametrize("sampling", [{"max_new_tokens": 64}, {}, 64, "greedy", [GREEDY, None]])
def test_settings_that_are_none_are_refused(sampling):
    """Found: a KeyError or an AttributeError from inside."""
    with pytest.raises(ConfigError, match=r"sampling has .*; pass SamplingConfig\(\.\.\.\) for"):
        decode(table_pair(), prompts=[[0], [1]], sampling=sampling)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"adaptive": True, "adaptive_cost": float("inf")}, "adaptive_cost is inf"),
        ({"adaptive": True, "drafter": "ngram"}, "leave out drafter='ngram'"),
    ],
)
def test_adaptive_blocks_that_cannot_be_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        DecodeConfig(**values)


def test_numpys_costs_become_plain_ones():
    config = DecodeConfig(
        adaptive=True, adaptive_cost=np.float32(0.5), draft_confidence_threshold=np.float32(0.25)
    )
    assert json.dumps([config.adaptive_cost, config.draft_confidence_threshold]) == "[0.5, 0.25]"


@pytest.mark.parametrize(
    ("values", "message"),
    [({"stop": ("\ud800",)}, "whole characters"), ({"stop_token_ids": (2**70,)}, "ids of tokens")],
)
def test_stops_that_no_text_can_have_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        SamplingConfig(**values)


def test_a_drafter_that_is_no_class_is_refused(llama_pair):
    with pytest.raises(ConfigError, match="drafter is 3; pass a name such as 'ngram'"):
        Engine(llama_pair, AlwaysTarget(), drafter=3)


def test_a_stream_below_0_is_refused(llama_pair):
    with pytest.raises(ConfigError, match="streams has -1"):
        Engine(llama_pair, AlwaysTarget()).generate([[7], [8]], GREEDY, streams=[0, -1])
