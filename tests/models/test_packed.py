"""Packed weights change the layout, not the results."""

from __future__ import annotations

import copy
import platform
import sys
from functools import cache, partial
from itertools import product

import pytest
import torch
from torch import nn

from cospec import Engine, ModelPair, SamplingConfig, load_arbiter
from cospec.models import packed
from cospec.models.cache import CachedModel
from cospec.models.packed import LEAST_WEIGHTS, PackedLinear, can_pack, pack_weights
from cospec.models.pair import num_weights, weight_bytes
from cospec.models.quantized import can_quantize
from cospec.types import Stats
from tests.conftest import disturbed, random_model, some_prompts

DTYPES = [torch.float32, torch.bfloat16]
needs_packing = pytest.mark.skipif(not can_pack(torch.float32), reason="no oneDNN packing here")


@pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64")
    or not torch.backends.mkldnn.is_available(),
    reason="other machines may have neither",
)
def test_the_usual_machine_packs_and_quantizes():
    """Or the tests of both would be skipped everywhere."""
    assert can_pack(torch.float32) and can_quantize() and can_quantize("int4")


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request):
    if not can_pack(request.param):
        pytest.skip(f"this processor does not pack {request.param}")
    return request.param


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(320,), (1, 320), (3, 320), (2, 7, 320), (0, 320)])
def test_a_packed_layer_computes_what_the_plain_one_does(dtype, bias, shape):
    linear = nn.Linear(320, 256, bias=bias).to(dtype)
    x = torch.randn(shape).to(dtype)
    with torch.inference_mode():
        found, expected = PackedLinear(linear)(x), linear(x)
    assert found.shape == expected.shape and found.dtype == dtype
    torch.testing.assert_close(found, expected)


def test_a_row_has_the_same_bits_whatever_is_beside_it(dtype):
    for width in (512, 1536, 4864):
        packed = PackedLinear(nn.Linear(width, 1024).to(dtype))
        rows = torch.randn(64, width).to(dtype)
        with torch.inference_mode():
            together = packed(rows)
            for number in (1, 2, 3, 4, 5, 16, 33):
                same = torch.equal(packed(rows[:number]), together[:number])
                assert same, (width, number)


def test_a_copy_computes_the_same(dtype):
    packed = nn.Sequential(PackedLinear(nn.Linear(320, 256).to(dtype)))
    x = torch.randn(3, 320).to(dtype)
    with torch.inference_mode():
        assert torch.equal(copy.deepcopy(packed)(x), packed(x))


def test_the_weight_comes_back_as_it_was(dtype):
    linear = nn.Linear(320, 256).to(dtype)
    assert torch.equal(PackedLinear(linear).weight.to_dense(), linear.weight)


@pytest.fixture
def packs_small(monkeypatch):
    """Small models take part as well."""
    monkeypatch.setitem(LEAST_WEIGHTS, torch.float32, 1 << 16)


SAMPLING = SamplingConfig(max_new_tokens=24, ignore_eos=True)


_SIZES = dict(hidden_size=256, intermediate_size=512)
_WIDE: dict[str, dict[str, int]] = {
    "llama": _SIZES,
    "qwen2": _SIZES,
    "gemma2": _SIZES,
    "phi3": _SIZES,
    "gpt_neox": _SIZES,
    "opt": dict(hidden_size=256, word_embed_proj_dim=256, ffn_dim=512),
}
"""Families whose layers are built alike or not; GPT-2's are no linear ones."""


@cache
def packed_pair(family):
    """A pair with packed weights, and what its target gives alone with plain and packed ones."""
    target = random_model(family, **_WIDE[family])
    pair = ModelPair(target, disturbed(target, 0.05))
    plain = Engine.target_only(pair).generate(some_prompts(8), SAMPLING)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LEAST_WEIGHTS, torch.float32, 1 << 16)
        assert pack_weights(pair.target) and pack_weights(pair.draft)
    packed = Engine.target_only(pair).generate(some_prompts(8), SAMPLING)
    return pair, plain, packed


@needs_packing
@pytest.mark.parametrize(
    ("family", "k", "batch_size"),
    [*product(["llama"], [1, 4], [1, 8]), *((family, 4, 3) for family in _WIDE)],
)
def test_lossless_equals_plain_decoding_of_the_target_with_packed_and_plain_weights(
    family, k, batch_size
):
    pair, *alone = packed_pair(family)
    engine = Engine(pair, load_arbiter("lossless"), num_speculative_tokens=k, batch_size=batch_size)
    prompts = some_prompts(8)[: 8 if batch_size > 1 else 3]
    done = engine.generate(prompts, SAMPLING)
    for one in alone:
        assert [c.token_ids for c in done] == [c.token_ids for c in one[: len(prompts)]]
    total = sum((c.stats for c in done), Stats())
    assert 0 < total.num_strict_accepts < total.num_draft_tokens


@needs_packing
@pytest.mark.usefixtures("packs_small")
def test_the_fingerprint_of_a_pair_is_that_of_its_plain_weights(tmp_path, tokenizer):
    for name, seed in (("target", 0), ("draft", 1)):
        model = random_model("llama", seed=seed, hidden_size=256, intermediate_size=512)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    plain, packed = (
        ModelPair.from_pretrained(tmp_path / "target", tmp_path / "draft", pack_weights=pack)
        for pack in (False, True)
    )
    kinds = [sum(isinstance(m, PackedLinear) for m in p.target.modules()) for p in (plain, packed)]
    assert kinds[0] == 0 < kinds[1]
    assert plain.fingerprint == packed.fingerprint
    again = ModelPair(packed.target, packed.draft, packed.tokenizer)
    assert again.fingerprint == plain.fingerprint
    copied = ModelPair(copy.deepcopy(packed.target), copy.deepcopy(packed.draft))
    assert copied.fingerprint == plain.fingerprint, "found: a copy had another one"


def test_a_pair_says_where_its_weights_cannot_be_packed(tmp_path, tokenizer, monkeypatch):
    """Found: it decoded more slowly, and nobody learned why."""
    random_model("llama").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    monkeypatch.setattr(packed, "can_pack", lambda dtype: dtype == torch.float32)
    load = partial(ModelPair.from_pretrained, tmp_path, tmp_path, device="cpu")
    assert load(dtype="float32").notes == load(dtype="bfloat16", pack_weights=False).notes == ()
    (note,) = load(dtype="bfloat16").notes
    assert "no packed products for torch.bfloat16: decoding is slower" in note


@needs_packing
@pytest.mark.usefixtures("packs_small")
def test_small_layers_stay_and_a_tied_output_matrix_is_copied():
    model = random_model("llama", vocab_size=512, hidden_size=256, intermediate_size=512)
    model.config.tie_word_embeddings = True
    model.lm_head.weight = model.model.embed_tokens.weight
    model.model.layers[0].mlp.up_proj = nn.Linear(8, 8)
    plain = model.lm_head.weight.detach().clone()
    size, number = weight_bytes(model), num_weights(model)
    assert pack_weights(model) > 0
    assert isinstance(model.model.layers[0].mlp.up_proj, nn.Linear)
    assert torch.equal(model.lm_head.weight.to_dense(), plain)
    assert torch.equal(model.model.embed_tokens.weight, plain)
    assert (weight_bytes(model), num_weights(model)) == (size + plain.nbytes, number)


@pytest.mark.skipif(not can_pack(torch.bfloat16), reason="no bfloat16 packing here")
@pytest.mark.parametrize("family", _WIDE)
def test_in_bfloat16_a_text_is_the_same_in_any_batch_and_with_speculation(family):
    """Every product is packed there, and gives a row the same bits whatever is beside it."""
    target = random_model(family, **_WIDE[family]).bfloat16()
    pair = ModelPair(target, disturbed(target, 0.05))
    assert pack_weights(target) and pack_weights(pair.draft)
    prompts = some_prompts(8)
    alone = [
        c.token_ids for c in Engine.target_only(pair, batch_size=1).generate(prompts, SAMPLING)
    ]
    for k, batch_size in ((1, 1), (4, 1), (4, 3), (5, 8)):
        sizes = {"num_speculative_tokens": k, "batch_size": batch_size}
        done = Engine(pair, load_arbiter("lossless"), **sizes).generate(prompts, SAMPLING)
        assert [c.token_ids for c in done] == alone, sizes
    assert [c.token_ids for c in Engine.target_only(pair).generate(prompts, SAMPLING)] == alone


@pytest.mark.parametrize(("dtype", "span"), [(torch.bfloat16, 512), (torch.float32, 64)])
def test_attention_in_bfloat16_reads_places_enough_for_sums_in_one_order(dtype, span):
    """Found: over fewer, texts of the real pair depended on the rows beside them."""
    cached = CachedModel(random_model("llama").to(dtype))
    cached.reserve(2, 600)
    for end, expected in ((5, span), (573, -(-573 // span) * span)):
        window = cached.window([end - 2], 2)
        assert {mask.shape[-1] for mask in window.masks.values()} == {expected}
