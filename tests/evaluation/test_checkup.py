"""A look at a pair: what is counted is what the models have, and the verdict follows from it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cospec import ModelPair
from cospec.evaluation.checkup import WORTH, check_up
from tests.conftest import some_prompts


@pytest.fixture(scope="module")
def found(llama_pair):
    return check_up(llama_pair, some_prompts(2), num_tokens=24, batch_size=1)


def test_memory_is_that_of_the_weights_and_of_what_the_cache_allocates(found, llama_pair):
    weights = [weight for model in llama_pair.models for weight in model.parameters()]
    assert found.weight_bytes == sum(4 * weight.numel() for weight in weights)
    layers, heads, size = 2, 2, 8
    assert found.cache_bytes_per_token == 2 * layers * 2 * heads * size * 4


def test_a_draft_that_is_the_target_is_always_right(llama_pair):
    pair = ModelPair(llama_pair.target, llama_pair.target)
    same = check_up(pair, some_prompts(2), num_tokens=8, batch_size=2)
    assert same.acceptance == 1
    assert same.speedups[7]["mean_acceptance_length"] > 3
    assert same.costs.batch_size == 2


def test_a_draft_of_another_mind_is_not(found):
    assert 0 < found.acceptance < 1
    assert found.num_tokens <= 48


def test_the_verdict_says_whether_it_pays(found):
    slow, fast = ({"k": 4, "mean_acceptance_length": 2.0, "speedup": s} for s in (WORTH - 0.2, 1.9))
    assert "does not pay here: at best 0.90 times" in replace(found, speedups=[slow]).verdict
    verdict = replace(found, speedups=[slow, fast]).verdict
    assert "about 1.9 times as fast as the target alone: -k 4." in verdict
