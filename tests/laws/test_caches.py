"""After any step both caches hold what a fresh prefill of the live tokens would."""

from __future__ import annotations

import dataclasses
from itertools import product
from random import Random

import pytest
import torch

from cospec import Engine, SamplingConfig, load_arbiter
from cospec.config import DecodeConfig
from cospec.drafters import ModelDrafter
from cospec.engine.rows import Row
from cospec.engine.speculative import SpeculativeBatch
from cospec.models import prefill
from cospec.models.cache import CachedModel
from cospec.models.prefill import num_shared_tokens, plan_prefill
from cospec.types import Origin
from tests.conftest import EOS, FAMILIES, VOCAB, family_pair
from tests.laws.decoding import (
    GREEDY,
    PROMPTS,
    SHARING,
    covering,
    decode,
    expected_ids,
    expected_starts,
)


@pytest.mark.parametrize(
    ("family", "arbiter", "prompts"),
    [
        *covering(FAMILIES, ["random:rate=0.5"], ["apart", "sharing"]),
        *product(["llama"], ["lossless"], ["apart", "sharing"]),
    ],
)
def test_after_any_step_both_caches_equal_a_fresh_prefill(family, arbiter, prompts):
    pair, prompts = family_pair(family), {"apart": PROMPTS, "sharing": SHARING}[prompts]
    config, ruler = DecodeConfig(4, keep_trace=False), load_arbiter(arbiter)
    drafter = ModelDrafter(pair, config, ruler.needs)
    batch = SpeculativeBatch(pair, ruler, drafter, config)
    waiting = [Row(i, p, GREEDY, frozenset({EOS}), None) for i, p in enumerate(prompts)]
    batch.admit([waiting.pop() for _ in range(4)])
    seen, fresh = [], {}
    while batch.rows:
        batch.step()
        batch.drop_finished()
        while waiting and len(batch.rows) < 4:
            batch.admit([waiting.pop()])
        for cached in batch._stores:
            for r, row in enumerate(batch.rows):
                lags = cached is drafter and row.origins[-1:] == [Origin.BONUS]
                tokens = (row.prompt_ids + row.generated)[: len(row) - 1 - lags]
                seen.append((cached, row, tokens, strip_of(cached, r, len(tokens))))
    for cached, row, tokens, held in seen:  # one reading of the whole text holds all its beginnings
        text = row.prompt_ids + row.generated
        assert tokens == text[: len(tokens)]
        if (key := (cached, row.index)) not in fresh:
            fresh[key] = strip_read_afresh(cached.model, text)
        assert_strips_equal(held, fresh[key])


@pytest.mark.parametrize("batch", [1, 3, 9])
def test_prompts_that_begin_alike_are_read_once_and_lossless_stays_exact(llama_pair, batch):
    prompts = [*SHARING, SHARING[0]]
    read = []
    hook = llama_pair.target.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs["position_ids"].flatten()), with_kwargs=True
    )
    done = decode(llama_pair, "lossless", 4, batch, prompts=prompts)
    hook.remove()
    assert [c.token_ids for c in done] == [expected_ids("llama", p) for p in prompts]
    assert sum(int((positions == 23).sum()) for positions in read) == 1
    if batch == 9:
        rests = [len(prompt) - 25 for prompt in SHARING]
        assert [len(positions) for positions in read[:2]] == [24, sum(rests)], "twins are copied"


@pytest.mark.parametrize(("batch", "arbiter"), [(1, "lossless"), (2, "always_draft")])
def test_what_a_finished_row_has_left_is_taken_for_its_own_prompt_alone(llama_pair, batch, arbiter):
    """Prompts in this order: one that goes on from the text before, and one like the first."""
    first, second = SHARING[0], [9] * 3 + SHARING[1]
    few = dataclasses.replace(GREEDY, max_new_tokens=12)
    (done,) = decode(llama_pair, arbiter, 4, 1, prompts=[first], sampling=few)
    longer = first + done.token_ids
    prompts = [first, longer, second, [*longer, 7], [*first, 8]]
    engine = Engine(llama_pair, load_arbiter(arbiter), num_speculative_tokens=4, batch_size=batch)
    found = {
        delta.index: delta.completion.token_ids
        for delta in engine.stream(prompts, few)
        if delta.completion is not None
    }
    for i, prompt in enumerate(prompts):
        (alone,) = decode(llama_pair, arbiter, 4, 1, prompts=[prompt], sampling=few)
        assert found[i] == alone.token_ids


@pytest.mark.parametrize(
    ("batch", "drafter"), [(1, "model"), (3, "model"), (3, "ngram+model"), (1, None), (3, None)]
)
def test_lossless_stays_exact_where_caches_are_kept_between_calls(llama_pair, batch, drafter):
    """Prompts in an order in which rows are taken from one another's strips.

    The longest text crosses the first 64 places of a cache.
    """
    few = dataclasses.replace(GREEDY, max_new_tokens=17)
    options = {"batch_size": batch, "enable_prefix_caching": True}
    if drafter is None:
        engine = Engine.target_only(llama_pair, **options)
    else:
        options |= {"num_speculative_tokens": 4, "drafter": drafter}
        engine = Engine(llama_pair, load_arbiter("lossless"), **options)
    apart = [[9] * 3 + prompt for prompt in SHARING]
    calls = [SHARING[:3], [*apart[:2], SHARING[3]], [apart[1], SHARING[0], apart[2]], SHARING[::-1]]
    for prompts in calls:
        expected = expected_starts("llama", prompts, 17)
        assert [c.token_ids for c in engine.generate(prompts, few)] == expected


def test_what_prompts_of_two_calls_begin_with_is_read_once_if_caches_are_kept(llama_pair):
    counts = []
    for keeps in (False, True):
        read = []
        hook = llama_pair.target.register_forward_pre_hook(
            lambda _, args, kwargs, read=read: read.append(kwargs["input_ids"].numel()),
            with_kwargs=True,
        )
        engine = Engine.target_only(llama_pair, batch_size=1, enable_prefix_caching=keeps)
        for prompt in SHARING[:2]:
            engine.generate([prompt], SamplingConfig(max_new_tokens=1))
        hook.remove()
        counts.append(sum(read))
    assert counts[0] - counts[1] == num_shared_tokens(*SHARING[:2])


def test_a_stream_that_is_given_up_leaves_no_rows_behind(llama_pair):
    engine = Engine(llama_pair, load_arbiter("lossless"), enable_prefix_caching=True)
    next(engine.stream(SHARING, GREEDY))
    (done,) = engine.generate(SHARING[:1], GREEDY)
    assert done.token_ids == expected_ids("llama", SHARING[0])


@pytest.mark.parametrize("batch", [3, 9])
def test_a_prompt_that_begins_otherwise_is_exact_beside_those_that_share(llama_pair, batch):
    prompts = [*SHARING, [7, *SHARING[1]]]
    done = decode(llama_pair, "lossless", 4, batch, prompts=prompts)
    assert [c.token_ids for c in done] == [expected_ids("llama", p) for p in prompts]


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_share_hold_what_reading_them_alone_would_store(family):
    model = family_pair(family).target
    generator = torch.Generator().manual_seed(3)
    first, second, *ends = torch.randint(6, VOCAB, (4, 70), generator=generator).tolist()
    held = first[:20] + ends[0]
    longer = [first + second[:30] + end for end in ends]  # share more than with row 0, and the rest
    apart = [second + ends[0], second + ends[1][:1]]  # shares with each other alone
    both = [longer[1], apart[1], held[:30] + ends[1], longer[0], ends[1], apart[0], longer[0], [7]]
    for prompts in (longer, apart, both):
        cached = CachedModel(model)
        cached.reserve(9, 180)
        with torch.inference_mode():
            cached.prefill([held], 0)
            cached.prefill(prompts, 1, [held])
        for r, tokens in enumerate([held, *prompts]):
            assert_strip_equals_prefill(cached, r, tokens)


def test_a_row_that_is_replaced_gives_what_it_had_before(llama_pair):
    generator = torch.Generator().manual_seed(3)
    a, b, c = torch.randint(6, VOCAB, (3, 40), generator=generator).tolist()
    held = [a + c, b + c, c]
    prompts = [b + a, a + b[:9], c[:30] + a, b[:20]]  # each begins like the row of another
    cached = CachedModel(llama_pair.target)
    cached.reserve(4, 80)
    with torch.inference_mode():
        cached.prefill(held, 0)
        cached.prefill(prompts, 0, held)
    for r, tokens in enumerate(prompts):
        assert_strip_equals_prefill(cached, r, tokens)


def test_a_plan_reads_the_fewest_tokens():
    a, b, c = ([i] * 40 for i in (1, 2, 3))
    prompts = [[*a, 4], [*b, 5], c, [*a, 6, 7], [*b, 8], [*a, 6, 9]]
    plan = {tuple(sorted(g.places)): g for g in plan_prefill(prompts, [[9] * 50, b[:30]])}
    assert set(plan) == {(0, 3, 5), (1, 4), (2,)}
    assert plan[0, 3, 5][1:] == (40, 0, 0)
    assert plan[1, 4][1:] == (40, 1, 30)
    assert plan[2,][1:] == (40, 0, 0)


def test_a_plan_compares_a_prompt_with_its_neighbours_alone(monkeypatch):
    """Found: with each row of the batch, which took most of the time at batch 512."""
    compared, count = [], prefill.num_shared_tokens
    monkeypatch.setattr(
        prefill, "num_shared_tokens", lambda a, b: compared.append(1) or count(a, b)
    )
    random = Random(0)
    held = [[*range(20), *random.choices(range(9), k=30)] for _ in range(300)]
    prompts = [[*row[:40], 7] for row in held[::3]]
    plan = plan_prefill(prompts, held)
    assert len(compared) <= 3 * len(prompts)
    for group in plan:
        shared = [count(prompts[group.places[0]], row) for row in held]
        assert group.num_held == min(max(shared), group.num_shared)
        assert shared[group.donor] >= group.num_held


def strip_of(cached, r, num_tokens):
    """Copies of what a row holds of its first tokens."""
    return [x[r, :num_tokens].clone() for layer in cached._cache.buffers for x in layer]


def strip_read_afresh(model, tokens):
    fresh = CachedModel(model)
    fresh.reserve(1, len(tokens))
    with torch.inference_mode():
        fresh.prefill([tokens], 0)
    return strip_of(fresh, 0, len(tokens))


def assert_strips_equal(held, fresh):
    """Assert that a row holds what the fresh reading begins with."""
    for ours, theirs in zip(held, fresh, strict=True):
        torch.testing.assert_close(ours, theirs[: len(ours)], rtol=1e-3, atol=1e-4)


def assert_strip_equals_prefill(cached, r, tokens):
    if tokens:
        held = strip_of(cached, r, len(tokens))
        assert_strips_equal(held, strip_read_afresh(cached.model, tokens))


@pytest.mark.parametrize("batch", [1, 4])
def test_what_follows_the_end_of_a_block_is_not_read(llama_pair, batch):
    stops = tuple(range(0, VOCAB, 3))
    sampling = dataclasses.replace(GREEDY, stop_token_ids=stops)
    counts = {"target": 0, "draft": 0}

    def count(name: str):
        def hook(_, args, kwargs):
            counts[name] += kwargs["input_ids"].numel()

        return hook

    hooks = [
        model.register_forward_pre_hook(count(name), with_kwargs=True)
        for name, model in (("target", llama_pair.target), ("draft", llama_pair.draft_model))
    ]
    done = decode(llama_pair, "always_draft", 12, batch, sampling=sampling, end_blocks_at_stop=True)
    for hook in hooks:
        hook.remove()
    num_prompt = sum(len(prompt) - 1 for prompt in PROMPTS)
    blocks = [step.num_draft_tokens for c in done for step in c.trace]
    assert min(blocks) < 12
    assert counts["target"] == num_prompt + sum(blocks) + len(blocks)
    # The draft reads the last token before a block, and of the block all but its own last token.
    # A block that stood whole leaves that and the bonus token, and rows beside it read as many.
    assert counts["draft"] >= num_prompt + sum(blocks)
    assert counts["draft"] <= num_prompt + sum(blocks) + len(blocks)


def test_a_stream_that_is_left_at_its_end_keeps_the_caches(llama_pair):
    """Found: whoever stopped at the completion lost them."""
    engine = Engine.target_only(llama_pair, batch_size=1, enable_prefix_caching=True)
    few = SamplingConfig(max_new_tokens=1)
    next(delta for delta in engine.stream(SHARING[:1], few) if delta.completion)
    assert engine._kept is not None and not engine._kept.rows
    (done,) = engine.generate(SHARING[1:2], few)
    assert done.token_ids == expected_ids("llama", SHARING[1])[:1]
