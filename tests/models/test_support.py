"""Models that cannot be decoded are refused, and the context ends where positions change."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPTNeoConfig,
    MambaConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from cospec.errors import (
    PairError,
    PromptError,
    UnsupportedModelError,
)
from cospec.models import ModelPair
from cospec.models.support import context_length, warn_of_mixed_rows
from tests.conftest import (
    VOCAB,
)
from tests.engine.helpers import (
    GREEDY,
    NUM_NEW,
    decode,
)


def both_ways(llama_pair: ModelPair, model: torch.nn.Module, sentence: str) -> None:
    for models in ((model, llama_pair.draft), (llama_pair.target, model)):
        with pytest.raises(UnsupportedModelError, match=sentence) as caught:
            ModelPair(*models)
        assert isinstance(caught.value, PairError)


def test_a_recurrent_model_is_refused(llama_pair):
    config = MambaConfig(vocab_size=VOCAB, hidden_size=16, state_size=4, num_hidden_layers=1)
    both_ways(llama_pair, AutoModelForCausalLM.from_config(config), "Mamba.*recurrent state")


def test_an_encoder_decoder_model_is_refused(llama_pair):
    config = T5Config(vocab_size=VOCAB, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    both_ways(llama_pair, T5ForConditionalGeneration(config), "T5.*encoder-decoder")


def test_a_model_whose_layers_mask_for_themselves_is_refused(llama_pair):
    """Found: beyond 256 tokens it was silently wrong, and the trial is too short to show it."""
    config = GPTNeoConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        attention_types=[[["global", "local"], 1]],
    )
    both_ways(llama_pair, AutoModelForCausalLM.from_config(config), "GPTNeo.*local attention")


def test_a_model_with_layers_of_an_unknown_type_is_refused(llama_pair):
    model = copy.deepcopy(llama_pair.target)
    model.config.layer_types = ["full_attention", "chunked_attention"]
    both_ways(llama_pair, model, "type chunked_attention; allowed are full_att")
    model.config.layer_types = ["full_attention", "linear_attention"]
    both_ways(llama_pair, model, "recurrent state")


def rope_config(family: str, rope: dict[str, Any], **settings: Any) -> Any:
    sizes = dict(hidden_size=32, num_attention_heads=4, num_hidden_layers=2, vocab_size=VOCAB)
    return AutoConfig.for_model(family, rope_parameters=rope, pad_token_id=0, **sizes | settings)


LONGROPE = dict(rope_type="longrope", rope_theta=1e4, short_factor=[1.0] * 4, long_factor=[2.0] * 4)


def test_a_rotary_scaling_that_switches_counts_up_to_the_switch():
    """Behind it all positions change, and what is cached would be of the old ones."""
    long = dict(max_position_embeddings=512)
    dynamic = dict(rope_type="dynamic", rope_theta=1e4, factor=4.0)
    yarn = dict(rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=128)
    default = dict(rope_type="default", rope_theta=1e4)
    original = dict(original_max_position_embeddings=64)
    assert context_length(rope_config("phi3", LONGROPE, **long | original)) == 64
    assert context_length(rope_config("llama", LONGROPE | original, **long)) == 64
    assert context_length(rope_config("llama", dynamic, **long)) == 512
    assert context_length(rope_config("llama", dynamic | original, **long)) == 64
    assert context_length(rope_config("llama", yarn, **long)) == 512
    assert context_length(rope_config("llama", default, **long)) == 512


def test_one_layer_type_with_a_switching_scaling_is_enough():
    nested = dict(
        full_attention=dict(
            rope_type="dynamic",
            rope_theta=1e4,
            factor=2.0,
            original_max_position_embeddings=96,
        ),
        sliding_attention=dict(rope_type="default", rope_theta=1e4),
    )
    config = rope_config("gemma3_text", nested, max_position_embeddings=512, head_dim=8)
    assert context_length(config) == 96


def test_a_model_without_a_length_limit_has_none():
    config = AutoConfig.for_model("bloom", vocab_size=VOCAB, hidden_size=32, n_layer=1, n_head=4)
    assert context_length(config) > 10**9


def test_a_prompt_beyond_the_switch_of_a_rotary_scaling_is_refused():
    config = rope_config(
        "phi3",
        LONGROPE,
        max_position_embeddings=512,
        original_max_position_embeddings=64,
        intermediate_size=64,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    pair = ModelPair(model, model)
    with pytest.raises(PromptError, match="context holds 64"):
        decode(pair, prompts=[[7] * (65 - NUM_NEW)])
    (done,) = decode(pair, prompts=[[7] * (64 - NUM_NEW)], sampling=GREEDY)
    assert len(done.token_ids) <= NUM_NEW


def test_a_target_in_8_bits_of_bitsandbytes_is_warned_of_once(caplog):
    """Found: lossless texts differed from the target's, and nothing said why."""
    target: Any = SimpleNamespace(name_or_path="me/8-bit", is_loaded_in_8bit=True)
    for model in (SimpleNamespace(name_or_path="me/plain"), target, target):
        warn_of_mixed_rows(model)
    assert caplog.text.count("note: the target me/8-bit has 8-bit weights of bitsandbytes") == 1
    assert "me/plain" not in caplog.text


def test_a_pair_warns_of_its_target_and_not_of_its_draft(llama_pair, caplog):
    marked = copy.copy(llama_pair.target)
    marked.is_loaded_in_8bit, marked.name_or_path = True, "me/marked"
    ModelPair(llama_pair.target, marked)
    assert "me/marked" not in caplog.text
    ModelPair(marked, llama_pair.draft)
    assert "the target me/marked has 8-bit weights" in caplog.text
