"""A draft's shortened output matrix: which tokens have logits of their own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from cospec import Engine, ModelPair, SamplingConfig, load_arbiter
from cospec.engine import Branch
from cospec.errors import ConfigError
from cospec.models.pair import num_weights, weight_bytes
from cospec.models.quantized import Int4Linear, Int8Linear, can_quantize, quantize_weights
from cospec.models.shortlist import (
    NOTE,
    Shortlist,
    ShortlistHead,
    shorten_head,
    shortlist_of,
    using,
)
from tests.conftest import random_model, some_prompts
from tests.laws.known_law import FALSE_ALARM_RATE, p_value

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
    short = ShortlistHead(whole, 32, torch.tensor([50]))
    tokens = Shortlist(short)
    tokens.add(torch.tensor([[40, 95], [40, 3]]))
    x = torch.randn(2, 3, 64)
    with torch.inference_mode():
        expected, first = short(x), whole(x)[..., :32]
        with using(tokens):
            found = short(x)
    assert torch.equal(expected, Int8Linear.forward(whole.part(slice(None)), x))
    error = (found[..., :32] - first).norm() / first.norm()
    assert error < (0.05 if layer is Int4Linear else 1e-6)  # 4 bits are rounded from 8
    assert torch.equal(found[..., [40, 50, 95]], expected[..., [40, 50, 95]])
    others = [i for i in range(32, 96) if i not in (40, 50, 95)]
    least = found[..., :32].amin(dim=-1, keepdim=True)
    assert torch.equal(found[..., others], least.expand(2, 3, len(others)))


def short_pair(size=32):
    draft = random_model("llama", vocab_size=96, seed=1)
    quantize_weights(draft, "int8")
    target = random_model("llama", vocab_size=96)
    shorten_head(draft, size, [*ModelPair(target).eos_token_ids, 96, -1])  # ids that it lacks
    return ModelPair(target, draft)


def decoded(pair, **options):
    engine = Engine(pair, load_arbiter("lossless"), num_speculative_tokens=4, **options)
    return engine, engine.generate(some_prompts(4), SAMPLING)


SAMPLING = SamplingConfig(max_new_tokens=24, ignore_eos=True)


def test_texts_stay_the_targets_and_a_drafted_token_was_read_before():
    pair = short_pair()
    assert pair.draft_vocab_size == 32
    assert pair.draft.config._attn_implementation == "cospec_sdpa"
    _, found = decoded(pair)
    expected = Engine.target_only(pair).generate(some_prompts(4), SAMPLING)
    assert [c.token_ids for c in found] == [c.token_ids for c in expected]
    read = {i for c in found for i in (*c.prompt_ids, *c.token_ids)} | {*range(32)}
    drafted = {m.draft_id for c in found for step in c.trace for m in step.mismatches}
    assert drafted and drafted <= read | pair.eos_token_ids


def test_sampled_tokens_follow_the_targets_law():
    """Tokens that are not listed are hardly ever drafted: they come from the residual."""
    pair, prompt, num_draws = short_pair(), some_prompts(1)[0], 4000
    settings = SamplingConfig(max_new_tokens=2, temperature=1.0, seed=0, ignore_eos=True)
    engine = Engine(
        pair, load_arbiter("lossless"), num_speculative_tokens=2, batch_size=500, keep_trace=False
    )
    done = engine.generate([prompt] * num_draws, settings)
    with torch.inference_mode():
        probs = pair.target(torch.tensor([prompt])).logits[0, -1].double().softmax(0)
    counts = torch.tensor([c.token_ids[0] for c in done]).bincount(minlength=len(probs))
    assert p_value(counts, probs) > FALSE_ALARM_RATE
    assert sum(c.stats.num_strict_accepts for c in done) > num_draws / 8


def test_a_list_is_of_one_call_or_is_kept_with_the_prefixes():
    """Found: it was the model's, so that an arm profited from the texts of those before it."""
    pair = short_pair()
    for keeps in (False, True):
        engine, first = decoded(pair, enable_prefix_caching=keeps)
        again = engine.generate(some_prompts(4), SAMPLING)
        counts = [sum(c.stats.num_drafts for c in done) for done in (first, again)]
        assert counts[1] < counts[0] if keeps else counts[1] == counts[0]
    fresh = decoded(short_pair())[1]
    assert [c.stats for c in fresh] == [c.stats for c in decoded(pair)[1]]


def test_a_branch_is_drafted_with_the_list_of_its_rollout():
    """Found: it was drafted with an empty list, and so by another q than the rollout."""
    engine = Engine(
        short_pair(), load_arbiter("always_draft"), num_speculative_tokens=4, batch_size=1
    )
    generator = torch.Generator().manual_seed(0)
    for length in range(40, 46):
        prompt = torch.randint(32, 96, (length,), generator=generator).tolist()
        (rollout,) = engine.rollouts([prompt], SAMPLING)
        whole = rollout.completion
        place = whole.trace[1].position - 1  # the end of the first block
        point = Branch(rollout, place, whole.token_ids[place], whole.origins[place])
        (branch,) = engine.branches([point])
        assert branch.completion.token_ids == whole.token_ids


def test_whoever_reads_whole_texts_sees_all_logits():
    """Found: the list had the tokens of the text that an audit reads at once."""
    pair = short_pair()
    ids = torch.tensor([[70, 5, 6]])
    with torch.inference_mode():
        before = pair.draft(ids).logits
        decoded(pair)
        assert torch.equal(pair.draft(ids).logits, before)
    others = before[0, :, 32:]
    assert (others != others[:, :1]).any(dim=1).all()


def test_engines_share_a_draft_in_threads():
    """Found: they wrote to one list, and the process died."""
    pair = short_pair()
    expected = [c.token_ids for c in decoded(pair)[1]]
    with ThreadPoolExecutor(3) as pool:
        found = [pool.submit(decoded, pair) for _ in range(6)]
        assert all([c.token_ids for c in one.result()[1]] == expected for one in found)


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
    listed = shortlist_of(short.draft)._is_listed.nonzero()[:, 0].tolist()
    always = {*short.special_token_ids.values(), *short.eos_token_ids}
    assert {*listed} == {*range(32), *always}


@pytest.mark.parametrize("size", [0, 8, 40, 96, 112])
def test_a_size_that_cannot_be_cut_is_refused(saved, size):
    with pytest.raises(ConfigError, match=f"draft_vocab_size is {size}; it must be a multiple of"):
        ModelPair.from_pretrained(
            saved / "target", saved / "draft", draft_quantization="int8", draft_vocab_size=size
        )


@pytest.mark.parametrize(
    ("size", "kind", "match"),
    [
        (32, "none", "draft_vocab_size is 32, and draft_quantization is none; pass int8 or int4"),
        ("32", "int8", "draft_vocab_size is '32'; it must be a whole number"),
        (32.0, "int8", r"draft_vocab_size is 32\.0; it must be a whole number"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_loaded(size, kind, match):
    with pytest.raises(ConfigError, match=match):
        ModelPair.from_pretrained(
            "nowhere", "nowhere", draft_quantization=kind, draft_vocab_size=size
        )


def test_a_draft_whose_output_matrix_is_not_quantized_is_refused():
    with pytest.raises(ConfigError, match="output matrix is not quantized; pass draft_quantiz"):
        shorten_head(random_model("llama"), 32, [])
