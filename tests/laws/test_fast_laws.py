"""The laws on every cheaper draft: quantized ones, searches, and blocks that end by cost."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from cospec import Engine, ModelPair, SamplingConfig, load_arbiter
from cospec.config import DecodeConfig
from cospec.drafters import DRAFTERS, ModelDrafter
from cospec.drafters.adaptive import acceptance, least_reach
from cospec.drafters.suffix import SuffixDrafter, continue_suffix
from cospec.engine import Branch
from cospec.engine.rows import Row
from cospec.engine.speculative import SpeculativeBatch
from cospec.models import costs
from cospec.models.cache import CachedModel
from cospec.models.costs import token_cost
from cospec.models.quantized import can_quantize, quantize_weights
from cospec.models.shortlist import shorten_head
from cospec.types import Needs, Origin, Ruling, Stats
from tests.conftest import FAMILIES, TableModel, family_pair
from tests.laws.decoding import GREEDY, PROMPTS, expected_ids
from tests.laws.known_law import (
    DRAFT,
    FALSE_ALARM_RATE,
    NUM_DRAWS,
    SETTINGS,
    TARGET,
    law,
    p_value,
    text_counts,
)

COPYING = [prompt + prompt for prompt in PROMPTS[:4]]
"""Prompts whose end occurred before."""
FEW = ("llama", "gemma2", "qwen2", "gpt2")
START = [0, 2, 3, 1, 0, 2]
"""Ends in two tokens that others follow."""
FRESH = [3, 0, 1, 2]
"""Ends in tokens that are new together."""
CHEAP = [
    *("int8", "suffix", "ngram+model", "int8, suffix+model", "adaptive", "int8, adaptive"),
    *("ends", "cascade", "int8, cascade", "ngram", "int4", "int8, short", "int4, short"),
    "int8, cascade, short",
]
GRID = [
    pytest.param(
        family,
        way,
        marks=() if family in FEW and (FEW.index(family) + i) % 2 == 0 else pytest.mark.slow,
    )
    for family in FAMILIES
    for i, way in enumerate(CHEAP)
]
"""Every way with every family; by default each way with two of four."""
SIZES = [(1, 3), (4, 1), (8, 4)]
PAYS = 0.1
"""A cost of a drafted token at which some blocks of these pairs are ended early."""


def cheap(family: str, way: str) -> tuple[ModelPair, dict[str, Any]]:
    """A pair and options of an engine."""
    pair, parts = family_pair(family), way.split(", ")
    for kind in {"int8", "int4"}.intersection(parts):
        if not can_quantize(kind):
            pytest.skip(f"no {kind} product here")
        if (family, kind) == ("gpt2", "int4"):
            pytest.skip("its layers are convolutions, and no others fit")
        draft = copy.deepcopy(pair.draft)
        quantize_weights(draft, kind)
        if "short" in parts:
            shorten_head(draft, 32, pair.eos_token_ids)
        pair = ModelPair(pair.target, draft)
    if "adaptive" in parts:
        return pair, dict(adaptive=True, adaptive_cost=PAYS)
    if "cascade" in parts:
        return pair, dict(cascade=True)
    if "ends" in parts:
        return pair, dict(end_blocks_at_stop=True)
    if "ngram" in parts:
        pair = ModelPair(pair.target)
    return pair, dict(drafter=parts[-1] if parts[-1] in DRAFTERS else "model", prompt_lookup_min=1)


def expected_of(family: str) -> list[list[int]]:
    return [expected_ids(family, prompt) for prompt in COPYING]


@pytest.mark.parametrize(("family", "way"), GRID)
def test_lossless_greedy_output_is_what_transformers_generates(family, way):
    pair, options = cheap(family, way)
    k, batch = SIZES[(list(FAMILIES).index(family) + CHEAP.index(way)) % len(SIZES)]
    engine = Engine(
        pair, load_arbiter("lossless"), num_speculative_tokens=k, batch_size=batch, **options
    )
    done = engine.generate(COPYING, GREEDY)
    assert [c.token_ids for c in done] == expected_of(family)
    stats = sum((c.stats for c in done), Stats())
    assert stats.num_strict_accepts > 0 and stats.num_target_forwards < stats.num_tokens
    lengths = {step.num_draft_tokens for c in done for step in c.trace}
    if way in ("suffix", "ngram"):
        assert stats.num_draft_forwards == 0 and lengths >= {0, k}
    elif "model" in way or ("cascade" in way and k > 1):  # nothing is guessed in blocks of one
        assert 0 < stats.num_draft_forwards < stats.num_draft_tokens
    elif "adaptive" in way:
        assert k == 1 or len(lengths) > 1


@pytest.mark.parametrize("way", ["suffix", "suffix+model", "adaptive"])
def test_lossless_sampling_follows_the_targets_law(way):
    """Looked-up tokens are accepted with p(token), the model's with p / q, in one batch."""
    options = dict(adaptive=True, adaptive_cost=0.4) if way == "adaptive" else dict(drafter=way)
    engine = Engine(
        ModelPair(TableModel(TARGET), TableModel(DRAFT)),
        load_arbiter("lossless"),
        num_speculative_tokens=3,
        batch_size=512,
        prompt_lookup_min=2,
        keep_trace=False,
        **options,
    )
    prompts = [(START, FRESH)[i % 2] for i in range(NUM_DRAWS)]
    done = engine.generate(prompts, [SETTINGS["top_p"]] * NUM_DRAWS)
    stats = sum((c.stats for c in done), Stats())
    assert NUM_DRAWS / 2 < stats.num_draft_tokens < 3 * stats.num_drafts
    probs = law(TARGET, SETTINGS["top_p"], START[-1])
    assert p_value(text_counts(done), probs) > FALSE_ALARM_RATE


@pytest.mark.parametrize("arbiter", ["random:rate=0.5"])
@pytest.mark.parametrize("drafter", ["ngram+model", "suffix+model", "adaptive"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batch_decodes_each_row_as_if_it_were_alone(llama_pair, drafter, arbiter, temperature):
    """The draft model reads what it missed while a search drafted, whatever is beside the row."""
    sampling = SamplingConfig(max_new_tokens=16, temperature=temperature, seed=0, ignore_eos=True)
    options = dict(num_speculative_tokens=4, prompt_lookup_min=1)
    options |= (
        dict(adaptive=True, adaptive_cost=PAYS) if drafter == "adaptive" else dict(drafter=drafter)
    )
    alone, together = (
        Engine(llama_pair, load_arbiter(arbiter), batch_size=size, **options).generate(
            COPYING, sampling
        )
        for size in (1, 4)
    )
    assert [(c.token_ids, c.origins) for c in alone] == [(c.token_ids, c.origins) for c in together]
    assert any(Origin.OVERRIDE in c.origins for c in alone)


@pytest.mark.parametrize("cascade", [False, True])
@pytest.mark.parametrize("drafter", ["model", "ngram+model", "suffix+model"])
def test_what_the_draft_holds_as_read_is_a_fresh_reading_of_the_text(llama_pair, drafter, cascade):
    config = DecodeConfig(
        num_speculative_tokens=4, drafter=drafter, prompt_lookup_min=1, cascade=cascade
    )
    model = DRAFTERS[drafter](llama_pair, config, Needs.NOTHING)
    assert isinstance(model, ModelDrafter)
    batch = SpeculativeBatch(llama_pair, load_arbiter("random:rate=0.5"), model, config)
    sampling = SamplingConfig(max_new_tokens=60, ignore_eos=True, seed=0)
    rows = [Row(i, prompt, sampling, frozenset(), None) for i, prompt in enumerate(COPYING)]
    batch.admit(rows)
    for _ in range(10):
        batch.step()
        fresh = CachedModel(llama_pair.draft)
        fresh.reserve(len(rows), max(map(len, rows)))
        with torch.inference_mode():
            fresh.prefill([(row.prompt_ids + row.generated)[:-1] for row in rows], 0)
        for r, row in enumerate(rows):
            num_read, stored = model.save_row(r, len(row) - 1)
            assert 0 < num_read < len(row)
            for ours, theirs in zip(stored, fresh.save_row(r, num_read), strict=True):
                for a, b in zip(ours, theirs, strict=True):
                    torch.testing.assert_close(a[:num_read], b, rtol=1e-4, atol=1e-4)


class NeedsDraft:
    """Keeps whatever it is asked about, and needs the draft's logits and states."""

    name, needs = "needs-draft", Needs.DRAFT

    def rule(self, batch):
        assert batch.draft_logits.shape[0] == len(batch) == batch.draft_hidden.shape[0]
        best = batch.draft_logits.max(dim=1).indices
        assert torch.equal(best, batch.draft_ids), "these are the model's own tokens"
        return Ruling(torch.ones(len(batch), dtype=torch.bool))


@pytest.mark.parametrize("batch_size", [1, 4])
def test_an_arbiter_that_needs_the_draft_rules_on_the_models_tokens_only(llama_pair, batch_size):
    engine = Engine(
        llama_pair,
        NeedsDraft(),
        drafter="suffix+model",
        prompt_lookup_min=1,
        num_speculative_tokens=4,
        batch_size=batch_size,
    )
    done = engine.generate(COPYING, GREEDY)
    found = [m for c in done for step in c.trace for m in step.mismatches if m.is_reached]
    unasked = [m for m in found if m.veto == "no_draft"]
    assert unasked and not any(m.keep_draft for m in unasked)
    assert all(torch.tensor(m.q_draft_id).isnan() for m in unasked)
    asked = [m for m in found if m.veto is None]
    assert asked and all(m.keep_draft and m.q_draft_id > 0 for m in asked)


def test_branches_leave_a_rollout_whose_draft_has_not_read_all_of_it(llama_pair):
    engine = Engine(
        llama_pair,
        load_arbiter("always_draft"),
        drafter="suffix+model",
        prompt_lookup_min=1,
        batch_size=4,
    )
    rollouts = engine.rollouts(COPYING, SamplingConfig(max_new_tokens=24, ignore_eos=True))
    branches = [Branch(one, place, 7) for one in rollouts for place in (3, 22)]
    alone = [engine.branches([branch])[0].completion.token_ids for branch in branches]
    assert [end.completion.token_ids for end in engine.branches(branches)] == alone
    for branch, ids in zip(branches, alone, strict=True):
        text = branch.rollout.completion
        (again,) = engine.generate(
            [text.prompt_ids + ids[: branch.position + 1]],
            SamplingConfig(max_new_tokens=23 - branch.position, ignore_eos=True),
        )
        assert again.token_ids == ids[branch.position + 1 :]


def test_branches_leave_where_the_draft_has_no_places_yet(llama_pair, monkeypatch):
    """Found: a text that grew on by search alone was longer than what the draft's cache held."""
    prompt, long = max(COPYING, key=len), SamplingConfig(max_new_tokens=90, ignore_eos=True)
    text = Engine.target_only(llama_pair).generate([prompt], long)[0].token_ids
    engine = Engine(
        llama_pair, load_arbiter("lossless"), drafter="suffix+model", prompt_lookup_min=1
    )
    with monkeypatch.context() as patch:  # searches that are always right
        patch.setattr(SuffixDrafter, "find", lambda _, ids: text[len(ids) - len(prompt) :][:4])
        (rollout,) = engine.rollouts([prompt], long)
    assert rollout.completion.token_ids == text
    num_read, _ = rollout.caches[1]
    assert 1 < num_read < len(prompt) < 64 < len(prompt) + 85
    (end,) = engine.branches([Branch(rollout, 85, 7)])
    prefix = prompt + text[:85] + [7]
    (again,) = engine.generate([prefix], SamplingConfig(max_new_tokens=4, ignore_eos=True))
    assert end.completion.token_ids[86:] == again.token_ids


@pytest.mark.parametrize(
    ("text", "k", "shortest", "least", "expected"),
    [
        ([1, 2, 3, 4, 1, 2], 2, 1, 0.0, [3, 4]),
        ([1, 2, 3, 4, 1, 2], 9, 1, 0.0, [3, 4, 1, 2]),
        ([1, 2, 3, 4, 1, 2], 2, 3, 0.0, []),
        ([1, 2, 3, 4], 4, 1, 0.0, []),
        ([5], 4, 1, 0.0, []),
        ([9, 1, 5, 9, 1, 6, 9, 1, 6, 8, 1], 1, 1, 0.0, [6]),  # the most frequent
        ([9, 1, 5, 9, 1, 6, 9, 1], 1, 1, 0.0, [6]),  # of equals the latest
        ([9, 1, 5, 9, 1, 6, 9, 1], 1, 1, 0.6, []),  # half of the votes
        ([7, 9, 1, 5, 9, 1, 6, 7, 9, 1], 1, 1, 0.6, [5]),  # the longest match alone votes
        ([4, 4, 4], 3, 1, 0.0, [4]),
    ],
)
def test_a_suffix_is_continued_by_what_followed_it_most(text, k, shortest, least, expected):
    assert continue_suffix(text, k, shortest, least) == expected


def test_nothing_is_drafted_where_it_does_not_pay(llama_pair):
    engine = Engine(llama_pair, load_arbiter("lossless"), adaptive=True, adaptive_cost=1.0)
    done = engine.generate(COPYING, GREEDY)
    assert [c.token_ids for c in done] == expected_of("llama")
    assert sum(c.stats.num_draft_forwards for c in done) == 0
    assert all(c.stats.num_target_forwards == len(c.token_ids) for c in done)


def test_a_dearer_token_and_a_worse_draft_end_blocks_earlier():
    least = [least_reach(share, cost, 8) for share, cost in [(0.9, 0.1), (0.9, 0.4), (0.5, 0.4)]]
    assert 0 < least[0] < least[1] < least[2] < 1
    assert least_reach(0.9, 0.0, 8) == 0 and least_reach(0.3, 0.4, 8) >= 1


def test_a_rows_acceptance_is_that_of_its_last_tokens():
    good, bad = [Origin.MATCH] * 100, [Origin.CORRECTION] * 100
    assert acceptance([]) == 0.8
    assert acceptance(bad + good * 2) > 0.8 > acceptance(good + bad) > acceptance(bad * 2) > 0
    assert acceptance(bad + [Origin.BONUS] * 128) == 0.8, "a row that stopped tries again"


def test_the_cost_of_a_token_is_measured_once(llama_pair):
    first = token_cost(llama_pair, 3, 2)
    assert 0 < first == token_cost(llama_pair, 3, 2)


def test_a_cost_is_of_the_shortest_and_the_longest_forward(llama_pair, monkeypatch):
    """Found: all lengths between them were timed as well, which took minutes for long blocks."""
    lengths = []
    timed = costs._seconds
    monkeypatch.setattr(costs, "_seconds", lambda *a: lengths.append(a[-1]) or timed(*a))
    assert token_cost(llama_pair, 21, 2) > 0
    assert set(lengths) == {1, 22}
