"""The draft model's proposals: what they hold, by who looks at it."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from cospec import Engine, SamplingConfig, load_arbiter
from cospec.config import DecodeConfig
from cospec.drafters import ModelDrafter
from cospec.engine import Branch
from cospec.engine.rows import Row
from cospec.models.cache import CachedModel
from cospec.sampling import Chance
from cospec.types import Needs, Origin
from tests.conftest import some_prompts
from tests.engine.helpers import table_pair
from tests.laws.decoding import GREEDY, covering

K = 4
ARBITERS = ["lossless", "gap:max_gap=1", "chow_average:min_log_q=-1.3"]


def propose(pair, needs, **options):
    """Propose tokens after two prompts, greedily."""
    config = DecodeConfig(num_speculative_tokens=K, **options)
    prompts = some_prompts(3)[1:]
    rows = [Row(i, ids, SamplingConfig(), frozenset(), None) for i, ids in enumerate(prompts)]
    drafter = ModelDrafter(pair, config, needs)
    with torch.inference_mode():
        drafter.reserve(len(rows), max(map(len, rows)))
        drafter.prefill([ids[:-1] for ids in prompts], 0)
        return drafter.propose(rows, Chance(None, None))


@pytest.mark.parametrize("cascade", [False, True])
def test_logits_are_kept_where_a_trace_or_the_arbiter_wants_them(llama_pair, cascade):
    """Found: of 32 rows and 64 tokens they took gigabytes, and nobody looked at them."""
    kept = propose(llama_pair, Needs.NOTHING, cascade=cascade)
    assert len(kept.logits) == K
    for needs in (Needs.NOTHING, Needs.TARGET_LOGITS, Needs.LOOKAHEAD):
        bare = propose(llama_pair, needs, cascade=cascade, keep_trace=False)
        assert bare.logits is None and torch.equal(bare.token_ids, kept.token_ids)
    for needs in (Needs.LOGITS, Needs.DRAFT_LOGITS | Needs.BLOCK_LOG_Q):
        wanted = propose(llama_pair, needs, cascade=cascade, keep_trace=False)
        for ours, theirs in zip(wanted.logits, kept.logits, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("drafter", "arbiter", "temperature"),
    covering(["model", "ngram+model"], ARBITERS, [0.0, 1.0]),
)
def test_texts_are_the_same_without_a_trace(llama_pair, drafter, arbiter, temperature):
    sampling = SamplingConfig(max_new_tokens=16, temperature=temperature, seed=0)
    found, plain = (
        Engine(llama_pair, load_arbiter(arbiter), drafter=drafter, keep_trace=keep).generate(
            some_prompts(4), sampling
        )
        for keep in (True, False)
    )
    assert [c.token_ids for c in found] == [c.token_ids for c in plain]
    assert [c.stats for c in found] == [c.stats for c in plain]
    assert any(c.trace for c in found) and not any(c.trace for c in plain)


@pytest.fixture
def num_read(monkeypatch):
    """Tokens that each model has read, by its identity."""
    found, read = Counter(), CachedModel.read

    def spied(self, token_ids, window, num_logits=1):
        found[id(self.model)] += token_ids.numel() if window.wanted is None else len(window.wanted)
        return read(self, token_ids, window, num_logits)

    monkeypatch.setattr(CachedModel, "read", spied)
    return found


def adaptive(pair, cost, **options):
    """A lossless engine with adaptive blocks; at a cost of 1 no draft pays, at 0 each does."""
    arbiter = load_arbiter("lossless")
    return Engine(pair, arbiter, adaptive=True, adaptive_cost=cost, **options)


def test_the_draft_reads_no_prompt_where_no_draft_pays(llama_pair, num_read):
    """Found: beside a real target its reading of prompts took a ninth of the time."""
    adaptive(llama_pair, 1.0).generate(some_prompts(12), GREEDY)
    assert num_read[id(llama_pair.draft_model)] == 0 < num_read[id(llama_pair.target)]


@pytest.mark.parametrize("keep_trace", [False, True])
def test_where_no_draft_pays_the_target_decodes_alone(llama_pair, keep_trace):
    prompts = some_prompts(4)
    ours = adaptive(llama_pair, 1.0, keep_trace=keep_trace).generate(prompts, GREEDY)
    alone = Engine.target_only(llama_pair).generate(prompts, GREEDY)
    for one, expected in zip(ours, alone, strict=True):
        assert one.token_ids == expected.token_ids
        assert one.origins == expected.origins
        assert one.stats == expected.stats


def test_a_branch_drafts_where_its_rollout_read_nothing(llama_pair):
    prompts = some_prompts(4)
    rollouts = adaptive(llama_pair, 1.0).rollouts(prompts, GREEDY, keep_caches=True)
    branches = [Branch(rollout, 3, 7) for rollout in rollouts]
    ends = adaptive(llama_pair, 0.0, batch_size=2).branches(branches)
    expected = Engine.target_only(llama_pair).branches(branches)
    assert [one.completion.token_ids for one in ends] == [
        one.completion.token_ids for one in expected
    ]
    assert all(one.completion.stats.num_draft_forwards for one in ends)


def test_a_row_whose_block_ends_before_it_begins_is_not_read(llama_pair, num_read):
    """Found: when one row drafted again, all rows read as many tokens as it had missed."""
    texts = [list(range(6, 46)), list(range(50, 9, -1))]
    rows = [Row(i, ids, SamplingConfig(), frozenset(), None) for i, ids in enumerate(texts)]
    rows[1].origins = [Origin.CORRECTION] * 100
    config = DecodeConfig(num_speculative_tokens=K, adaptive=True, adaptive_cost=0.5)
    drafter = ModelDrafter(llama_pair, config, Needs.NOTHING)
    with torch.inference_mode():
        drafter.reserve(2, 64)
        drafter.prefill([ids[:-1] for ids in texts], 0)
        first, second = drafter.propose(rows, Chance(None, None)).lengths.tolist()
    assert first > second == 0
    assert num_read[id(llama_pair.draft_model)] == len(texts[0]) + first - 1


def test_prompts_that_wait_share_what_was_read_before(llama_pair, num_read):
    engine = adaptive(llama_pair, 0.0, enable_prefix_caching=True, batch_size=2)
    common = list(range(6, 46))
    read = []
    for end in ([50, 51], [52, 53]):
        num_read.clear()
        engine.generate([[*common, *end], [*common, *reversed(end)]], GREEDY)
        read.append(num_read[id(llama_pair.draft_model)])
    fresh = adaptive(llama_pair, 0.0, batch_size=2)
    num_read.clear()
    fresh.generate([[*common, 52, 53], [*common, 53, 52]], GREEDY)
    assert num_read[id(llama_pair.draft_model)] - read[1] == len(common)


@pytest.mark.parametrize("way", ["load", "copy", "clear"])
def test_a_waiting_prompt_copies_nothing_from_a_row_that_was_replaced(llama_pair, way):
    common = list(range(6, 46))
    texts = [[*common, 50], list(range(50, 9, -1)), [*common, 51]]
    rows = [Row(i, ids, SamplingConfig(), frozenset(), None) for i, ids in enumerate(texts)]
    config = DecodeConfig(num_speculative_tokens=K, adaptive=True, adaptive_cost=0.0)

    def drafter(*read):
        found = ModelDrafter(llama_pair, config, Needs.NOTHING)
        found.reserve(3, 64)
        found.prefill([row.prompt_ids[:-1] for row in read], 0)
        found.propose(read, Chance(None, None))
        return found

    with torch.inference_mode():
        ours = drafter(*rows[:2])
        if way == "load":
            ours.load_row(0, drafter(rows[1]).save_row(0, 40), 40)
        elif way == "copy":
            ours.copy_row(1, 0)
        else:
            ours.clear(0, 0)
        ours.prefill([rows[2].prompt_ids[:-1]], 1)
        again = [rows[1], rows[2]]
        found = ours.propose(again, Chance(None, None)).logits
        expected = drafter(*again).propose(again, Chance(None, None)).logits
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("cascade", [False, True])
@pytest.mark.parametrize(("confidence", "most"), [(0.81, 10), (0.79, 1)])
def test_after_the_last_correction_blocks_are_short_and_end_where_the_draft_is_unsure(
    confidence, most, cascade
):
    """The draft counts on with the given confidence, and the target does not after 2."""
    table = torch.full([32, 32], (1 - confidence) / 31)
    table[range(31), range(1, 32)] = confidence
    target = table.clone()
    target[2, 9] = 0.9
    pair = table_pair(target, table)
    config = {"num_speculative_tokens": 20, "max_corrections": 1, "cascade": cascade}
    sampling = SamplingConfig(max_new_tokens=20, ignore_eos=True)
    engine = Engine(pair, load_arbiter("lossless"), **config)
    (found,) = engine.generate([[0]], sampling)
    assert found.token_ids == [1, 2, *range(9, 27)]
    assert [step.num_draft_tokens for step in found.trace[:2]] == [20, most]
