"""Reading into the ragged cache."""

from __future__ import annotations

import threading

import pytest
import torch

from cospec.models import ModelPair
from cospec.models.attention import can_go_without_padding, use_grouped_attention
from cospec.models.cache import CachedModel
from tests.conftest import FAMILIES, random_model

PADDED = {"gemma2", "opt"}
"""Families that some versions of transformers cannot read without padding."""


@pytest.mark.parametrize("num_rows", [1, 3])
@pytest.mark.parametrize("num_tokens", [1, 2, 5])
def test_the_output_matrix_gets_no_view_with_gaps(num_rows, num_tokens):
    """One row too: torch goes by the strides, also of an axis of length 1."""
    model = random_model("llama")
    seen = []
    model.get_output_embeddings().register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    cached = CachedModel(model)
    cached.reserve(num_rows, 16)
    token_ids = torch.ones(num_rows, num_tokens, dtype=torch.int64)
    with torch.inference_mode():
        found = cached.read(token_ids, cached.window([0] * num_rows, num_tokens))
    (states,) = seen
    assert states.shape[:2] == found.logits.shape[:2] == (num_rows, 1)
    assert states.stride(0) == states.stride(1) == states.shape[2]


def read_counts(model) -> list[int]:
    """Tokens of each forward from now on."""
    counts: list[int] = []
    model.get_input_embeddings().register_forward_pre_hook(
        lambda _, given: counts.append(given[0].numel())
    )
    return counts


@pytest.mark.parametrize("family", sorted(FAMILIES))
@torch.inference_mode()
def test_tokens_after_the_end_of_a_row_are_not_read_and_change_nothing(family):
    plain, model = random_model(family), random_model(family)
    ModelPair(model)  # chooses its attention
    counts = read_counts(model)
    prompts = [[1, 2, 3, 4, 5], [6, 7, 8], [9, 1, 2, 3]]
    ids = torch.arange(12).view(3, 4) + 10
    lengths = torch.tensor([2, 4, 1])
    is_read = torch.arange(4) < lengths[:, None]
    found = []
    for each in (plain, model):
        cached = CachedModel(each, capture_hidden=True)
        cached.reserve(3, 64)
        cached.prefill(prompts, 0)
        starts = [len(prompt) for prompt in prompts]
        window = cached.window(starts, 4)
        ragged = cached.read(ids, window if each is plain else window.only(is_read), 4)
        on = cached.read(ids[:, :1], cached.window((torch.tensor(starts) + lengths).tolist(), 1))
        assert ragged.hidden is not None
        found.append((ragged.logits[is_read], ragged.hidden[is_read], on.logits))
    can_go = can_go_without_padding(model)
    assert can_go or family in PADDED
    if can_go:
        assert counts == [12, 7, 3]
    for padded, ragged in zip(*found, strict=True):
        torch.testing.assert_close(ragged, padded, rtol=1e-4, atol=1e-5)


def test_a_window_of_all_tokens_is_the_window():
    cached = CachedModel(random_model("llama"))
    cached.reserve(2, 8)
    window = cached.window([0, 0], 3)
    assert window.only(torch.ones(2, 3, dtype=torch.bool)).wanted is None
    assert window.only(torch.tensor([[True, True, True], [True, False, False]])).wanted is not None


def test_a_block_that_reaches_past_the_context_reads_no_position_beyond_it():
    """Learned position tables end there; what is read past it is thrown away."""
    cached = CachedModel(random_model("gpt2"))
    end = cached.context_length
    cached.reserve(1, end + 4)
    window = cached.window([end - 2], 4)
    assert window.positions.tolist() == [[end - 2, end - 1, end - 1, end - 1]]
    with torch.inference_mode():
        assert cached.read(torch.ones(1, 4, dtype=torch.int64), window, 4).logits.shape[1] == 4


def test_a_forward_in_another_thread_leaves_no_states_in_this_one():
    """Found: two engines on one pair, each in its thread, took each other's hidden states."""
    model = random_model("llama")

    def read(token):
        cached = CachedModel(model, capture_hidden=True)
        cached.reserve(1, 8)
        window = cached.window([0], 1)
        with torch.inference_mode():
            return cached.read(torch.tensor([[token]]), window).hidden

    alone, others = read(7), []

    def run_another(*_):
        if not others:
            others.append(threading.Thread(target=read, args=(9,)))
            others[0].start()
            others[0].join()

    model.get_input_embeddings().register_forward_pre_hook(run_another)
    assert torch.equal(read(7), alone)


def test_a_spread_model_is_told_places_that_are_of_no_device():
    """Its last hidden states may be on another GPU than indices would be."""
    model = random_model("llama")
    use_grouped_attention(model)
    ids, asked = torch.arange(6).view(2, 3), []
    found = []
    for places in ({}, {"model": 0, "lm_head": 1}):
        model.hf_device_map = places
        cached = CachedModel(model)
        cached.reserve(2, 8)
        window = cached.window([0, 0], 3).only(ids != 5)
        handle = model.register_forward_pre_hook(
            lambda _, args, kwargs: asked.append(kwargs["logits_to_keep"]), with_kwargs=True
        )
        with torch.inference_mode():
            found.append(cached.read(ids, window, 2).logits)
        handle.remove()
    assert [type(one) for one in asked] == [torch.Tensor, list]
    assert torch.equal(*found)
