"""Each token's probability under both models, against a forward of each over the whole text."""

from __future__ import annotations

import pytest
import torch

from cospec import Engine, ModelPair, SamplingConfig, load_arbiter
from cospec.engine import Branch
from cospec.types import Completion, Origin

PROMPTS = [[9, 8, 7], [5, 12, 20, 33, 9]]


def by_forward(model, completion: Completion, prompt_ids: list[int]) -> list[float]:
    ids = torch.tensor([prompt_ids + completion.token_ids])
    with torch.inference_mode():
        probs = model(ids).logits[0, len(prompt_ids) - 1 : -1].softmax(dim=-1)
    return probs.gather(1, ids[0, len(prompt_ids) :, None])[:, 0].tolist()


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"draft_confidence_threshold": 0.1},
        {"batch_size": 1, "cascade": True},
        {"num_speculative_tokens": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_they_are_what_a_forward_says(llama_pair, config, temperature):
    engine = Engine(llama_pair, load_arbiter("random:rate=0.5"), **config)
    sampling = SamplingConfig(max_new_tokens=24, temperature=temperature, top_k=20, seed=1)
    done = engine.generate(PROMPTS, sampling)
    assert {o for one in done for o in one.origins} == set(Origin)
    for one in done:
        p, q = zip(*one.token_probs, strict=True)
        assert p == pytest.approx(by_forward(llama_pair.target, one, one.prompt_ids), abs=1e-5)
        expected = by_forward(llama_pair.draft, one, one.prompt_ids)
        told = [i for i, origin in enumerate(one.origins) if origin is not Origin.BONUS]
        assert [q[i] for i in told] == pytest.approx([expected[i] for i in told], abs=1e-5)
        assert all(q[i] is None for i in range(len(q)) if i not in told)


def test_no_model_drafted_no_draft_is_told(llama_pair):
    engine = Engine(ModelPair(llama_pair.target), load_arbiter("lossless"), drafter="ngram")
    (one,) = engine.generate([[9, 8, 7] * 4], SamplingConfig(max_new_tokens=16))
    p, q = zip(*one.token_probs, strict=True)
    assert p == pytest.approx(by_forward(llama_pair.target, one, one.prompt_ids), abs=1e-5)
    assert set(q) == {None}


def test_rollouts_and_branches_tell_none(llama_pair):
    """Nobody learns from them, and replicas would send them."""
    engine = Engine(llama_pair, load_arbiter("random:rate=0.5"))
    (text,) = engine.rollouts(PROMPTS[:1], SamplingConfig(max_new_tokens=24, seed=1))
    mismatch = text.completion.reached[1]
    (branch,) = engine.branches([Branch(text, mismatch.position, *mismatch.other)])
    for one in (text.completion, branch.completion):
        assert one.trace and set(one.token_probs) == {(None, None)}


def test_without_a_trace_nothing_is_told(llama_pair):
    engine = Engine(llama_pair, load_arbiter("lossless"), keep_trace=False)
    (one,) = engine.generate(PROMPTS[:1], SamplingConfig(max_new_tokens=8))
    assert one.token_probs == [(None, None)] * 8
