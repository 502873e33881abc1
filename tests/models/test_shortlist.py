"""A draft's shortened output matrix: which tokens have logits of their own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from cospec import Engine, ModelPair, SamplingConfig, load_arbiter
from cospec.errors import ConfigError
from cospec.models.pair import num_weights, weight_bytes
from cospec.models.quantized import Int4Linear, Int8Linear, can_quantize, quantize_weights
from cospec.models.shortlist import NOTE, ShortlistHead, shorten_head
from tests.conftest import random_model, some_prompts

pytestmark = pytest.mark.skipif(not can_quantize(), reason="no 8-bit product here")
needs_int4 = pytest.mark.skipif(not can_quantize("int4"), reason="no 4-bit product here")
LAYERS = [Int8Linear, pytest.param(Int4Linear, marks=needs_int4)]


def head(layer, *, bias=False):
    torch.manual_seed(0)
    return layer(nn.Linear(64, 96, bias=bias))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("layer", LAYERS)
def test_listed_tokens_have_their_logits_and_others_the_least(layer, bias):
    whole = head(layer, bias=bias)
    short = ShortlistHead(whole, 32)
    short.add(torch.tensor([[40, 95], [40, 3]]))
    x = torch.randn(2, 3, 64)
    with torch.inference_mode():
        found, expected = short(x), Int8Linear.forward(whole.part(slice(None)), x)
        first = whole(x)[..., :32]
    error = (found[..., :32] - first).norm() / first.norm()
    assert error < (0.05 if layer is Int4Linear else 1e-6)  # 4 bits are rounded from 8
    assert torch.equal(found[..., [40, 95]], expected[..., [40, 95]])
    others = [i for i in range(32, 96) if i not in (40, 95)]
    least = found[..., :32].amin(dim=-1, keepdim=True)
    assert torch.equal(found[..., others], least.expand(2, 3, len(others)))


def quantized(**changes):
    model = random_model("llama", vocab_size=96, **changes)
    quantize_weights(model, "int8")
    return model


def test_a_token_is_listed_once_the_model_has_read_it_and_a_copy_lists_its_own():
    whole = quantized()
    model = copy.deepcopy(whole)
    shorten_head(model, 32, [90])
    other = copy.deepcopy(model)
    with torch.inference_mode():
        before = model(torch.tensor([[5, 6]])).logits[0, -1]
        after = model(torch.tensor([[70, 5, 6]])).logits[0, -1]
        expected = whole(torch.tensor([[70, 5, 6]])).logits[0, -1]
        apart = other(torch.tensor([[5, 6]])).logits[0, -1]
    assert before[70] == before[71] != before[90]
    assert after[70] == expected[70] != after[71]
    assert torch.equal(apart, before)


def test_texts_stay_the_targets_and_a_drafted_word_was_read_before():
    pair = ModelPair(random_model("llama", vocab_size=96), quantized(seed=1))
    shorten_head(pair.draft, 32, pair.eos_token_ids)
    pair = ModelPair(pair.target, pair.draft)
    assert pair.draft_vocab_size == 32
    engine = Engine(pair, load_arbiter("lossless"), num_speculative_tokens=4)
    sampling = SamplingConfig(max_new_tokens=24, ignore_eos=True)
    prompts = some_prompts(4)
    found = engine.generate(prompts, sampling)
    expected = Engine.target_only(pair).generate(prompts, sampling)
    assert [c.token_ids for c in found] == [c.token_ids for c in expected]
    read = {i for c in found for i in (*c.prompt_ids, *c.token_ids)} | {*range(32)}
    drafted = {m.draft_id for c in found for step in c.trace for m in step.mismatches}
    assert drafted and drafted <= read | pair.eos_token_ids


@pytest.fixture
def saved(tmp_path, tokenizer):
    for name, seed in (("target", 0), ("draft", 1)):
        model = random_model("llama", seed=seed, vocab_size=96)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    return tmp_path


def test_a_loaded_pair_tells_of_it_and_counts_what_a_step_reads(saved):
    load = {"target": saved / "target", "draft": saved / "draft", "draft_quantization": "int8"}
    whole = ModelPair.from_pretrained(**load)
    short = ModelPair.from_pretrained(**load, draft_vocab_size=32)
    assert short.draft_vocab_size == 32 and NOTE in short.notes
    assert short.fingerprint == f"{whole.fingerprint}-32"
    assert num_weights(short.draft) == num_weights(whole.draft)
    rows = short.draft.get_output_embeddings()
    fewer = (rows.weight.nbytes - rows.first.weight.nbytes) / weight_bytes(short.target)
    assert short.draft_size == pytest.approx(whole.draft_size - fewer)
    listed = rows._is_listed.nonzero()[:, 0].tolist()
    always = {*short.special_token_ids.values(), *short.eos_token_ids}
    assert {*listed} == {*range(32), *always}


@pytest.mark.parametrize("size", [0, 8, 40, 96, 112])
def test_a_size_that_cannot_be_cut_is_refused(saved, size):
    with pytest.raises(ConfigError, match=f"draft_vocab_size is {size}; it must be a multiple of"):
        ModelPair.from_pretrained(
            saved / "target", saved / "draft", draft_quantization="int8", draft_vocab_size=size
        )


def test_a_draft_that_is_not_quantized_is_refused(saved):
    with pytest.raises(ConfigError, match="is not quantized; pass draft_quantization"):
        ModelPair.from_pretrained(saved / "target", saved / "draft", draft_vocab_size=32)
