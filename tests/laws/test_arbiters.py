"""Every ruling is accounted for, and an arbiter sees and decides what it may."""

from __future__ import annotations

import pytest
import torch

from cospec import Engine, SamplingConfig
from cospec.arbiters import AlwaysDraft, AlwaysTarget
from cospec.types import Needs, Origin, Stats
from tests.conftest import FAMILIES, VOCAB, family_pair
from tests.laws.decoding import GREEDY, NUM_NEW, PROMPTS, decode


@pytest.mark.parametrize("family", FAMILIES)
def test_always_draft_emits_the_drafts_own_choices(family):
    pair = family_pair(family)
    sampling = SamplingConfig(max_new_tokens=NUM_NEW, override_stop_tokens=True)
    done = decode(pair, "always_draft", 4, 3, sampling=sampling)
    assert any(Origin.OVERRIDE in c.origins for c in done)
    for completion in done:
        ids = completion.prompt_ids + completion.token_ids
        with torch.inference_mode():
            choice = pair.draft(torch.tensor([ids]), use_cache=False).logits[0].argmax(-1).tolist()
        start = len(completion.prompt_ids)
        assert len(completion.origins) == len(completion.token_ids)
        for i, origin in enumerate(completion.origins, start):
            assert origin is not Origin.CORRECTION
            if origin is not Origin.BONUS:
                assert ids[i] == choice[i - 1]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_token_and_mismatch_is_accounted_for(family):
    done = decode(family_pair(family), "random:rate=0.5", 4, 3)
    total = sum((c.stats for c in done), Stats())
    assert 0 < total.num_overrides < total.num_mismatches
    for completion in done:
        stats, origins = completion.stats, completion.origins
        assert stats.num_tokens == len(completion.token_ids) == len(origins)
        assert stats.num_strict_accepts == origins.count(Origin.MATCH)
        assert stats.num_overrides == origins.count(Origin.OVERRIDE)
        assert stats.num_drafts == len(completion.trace)
        assert stats.num_draft_tokens == 4 * stats.num_drafts
        assert sum(stats.num_accepted_tokens_per_pos) == stats.num_accepted_tokens
        reached = [m for step in completion.trace for m in step.mismatches if m.is_reached]
        assert stats.num_mismatches == len(reached)
        assert stats.num_open_mismatches == sum(m.is_open for m in reached)
        for m in reached:
            is_override = origins[m.position] is Origin.OVERRIDE
            assert m.keep_draft == is_override
            kept = m.draft_id if is_override else m.target_id
            assert completion.token_ids[m.position] == kept
            assert 0 < m.p_draft_id <= m.p_target_id <= 1, "greedy: the target's is its argmax"
            assert 0 < m.q_target_id <= m.q_draft_id <= 1


def test_a_trace_changes_no_token(llama_pair):
    plain = Engine(llama_pair, AlwaysDraft(), keep_trace=False).generate(PROMPTS, GREEDY)
    traced = Engine(llama_pair, AlwaysDraft()).generate(PROMPTS, GREEDY)
    assert [c.token_ids for c in plain] == [c.token_ids for c in traced]
    assert not any(c.trace for c in plain)


def test_trace_probabilities_are_those_of_the_models(llama_pair):
    (done,) = decode(llama_pair, "gap:max_gap=1", 4, 1, prompts=PROMPTS[2:3])
    ids = done.prompt_ids + done.token_ids
    with torch.inference_mode():
        p, q = (
            m(torch.tensor([ids]), use_cache=False).logits[0].softmax(-1)
            for m in (llama_pair.target, llama_pair.draft)
        )
    reached = [m for step in done.trace for m in step.mismatches if m.is_reached]
    assert len(reached) > 3
    for m in reached:
        at = len(done.prompt_ids) + m.position - 1
        seen = [m.p_draft_id, m.p_target_id, m.q_draft_id, m.q_target_id]
        expected = [p[at, m.draft_id], p[at, m.target_id], q[at, m.draft_id], q[at, m.target_id]]
        assert seen == pytest.approx([float(x) for x in expected], rel=1e-4)


def test_an_arbiter_gets_the_hidden_states_it_asks_for(llama_pair):
    seen = []

    class Spy(AlwaysTarget):
        needs = Needs.HIDDEN | Needs.LOGITS

        def rule(self, batch):
            seen.append(batch)
            return super().rule(batch)

    Engine(llama_pair, Spy(), batch_size=3).generate(PROMPTS, GREEDY)
    heads = llama_pair.target.lm_head, llama_pair.draft.lm_head
    assert seen
    for batch in seen:
        with torch.inference_mode():
            torch.testing.assert_close(heads[0](batch.target_hidden), batch.target_logits)
            torch.testing.assert_close(heads[1](batch.draft_hidden), batch.draft_logits)
        assert batch.target_hidden_after.shape == batch.target_hidden.shape
        assert batch.lookahead_matches is None, "only what was asked for"
        assert batch.target_logits.shape == (len(batch), VOCAB)
