"""Rulings of a trained arbiter, alone and in the engine."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from cospec import Engine, load_arbiter
from cospec.arbiters.guard import mismatch_rate
from cospec.errors import ArbiterError
from cospec.models.cache import CachedModel, Output
from cospec.types import MismatchBatch, Needs, Origin
from tests.arbiters.trained import (
    SAMPLING,
    STATES,
    Together,
    decode,
    hidden,
    learned,
    mismatches,
    policy,
    with_states,
)
from tests.conftest import EOS, family_pair, some_prompts


@functools.cache
def alone(family: str) -> list[list[int]]:
    """The texts of a target, which everything lossless has to write."""
    done = Engine.target_only(family_pair(family)).generate(some_prompts(5), SAMPLING)
    return [completion.token_ids for completion in done]


def test_it_keeps_the_drafts_token_where_the_probability_exceeds_the_threshold() -> None:
    it, batch = learned(threshold=0.3), mismatches()
    ruling = it.rule(batch)
    expected = torch.sigmoid(it.policy(it.features(batch))).detach()
    torch.testing.assert_close(ruling.score, expected)
    assert torch.equal(ruling.keep_draft, expected > 0.3)
    assert torch.equal(ruling.features, it.features(batch))
    assert 5 < int(ruling.keep_draft.sum()) < 35
    edge = float(expected[0])
    assert not it.with_threshold(edge).rule(batch).keep_draft[0], "not if it only equals it"
    assert it.needs == Needs.LOGITS | Needs.LOOKAHEAD | Needs.BLOCK_LOG_Q
    assert not ruling.score.requires_grad


def test_a_bolder_threshold_keeps_no_less() -> None:
    it, batch = learned(), mismatches()
    kept = [it.with_threshold(t).rule(batch).keep_draft for t in (1.0, 0.9, 0.5, 0.1, 0.0)]
    assert not kept[0].any() and kept[-1].all()
    for shy, bold in itertools.pairwise(kept):
        assert not (shy & ~bold).any()
    assert it.with_threshold(0.9).name == "cospec:threshold=0.9"


@pytest.mark.parametrize("threshold", [-1e30, -0.01, 1.01, 2.0, float("inf"), float("nan")])
def test_a_threshold_is_a_probability(threshold) -> None:
    """Found: --arbiter FOLDER:threshold=-1e30 kept what the guard stops."""
    with pytest.raises(ArbiterError, match=r"it is a probability, from 0 to 1"):
        learned(threshold=threshold)


def test_in_training_it_keeps_where_the_uniform_is_below_the_probability() -> None:
    it, batch = learned(explore=1.0, threshold=1.0), mismatches()
    ruling = it.rule(batch)
    assert Needs.UNIFORMS in it.needs
    assert torch.equal(ruling.keep_draft, batch.uniforms < ruling.score)
    assert 0 < int(ruling.keep_draft.sum()) < 40


@pytest.mark.parametrize(("family", "k"), [("llama", 1), ("gemma2", 4), ("llama", 7)])
def test_threshold_one_is_lossless(family: str, k: int) -> None:
    """Three networks rule side by side; one that kept something would show."""
    sure = policy()
    with torch.no_grad():
        sure.layers[-1].bias.fill_(1e4)  # even where the probability is 1 in float32
    corrected = policy(correction=True)
    with torch.no_grad():
        corrected.correction.weight.fill_(3.0)
        corrected.correction.bias.fill_(1e4)
    networks = {"random": policy(), "sure": sure, "corrected": corrected}
    rules = Together([learned(one, threshold=1.0, label=name) for name, one in networks.items()])
    done = decode(family_pair(family), rules, k)
    assert [c.token_ids for c in done] == alone(family)
    assert rules.kept == set()
    assert sum(c.stats.num_mismatches for c in done) > 0
    assert not any(c.stats.num_overrides for c in done)


def test_threshold_one_draws_what_lossless_sampling_draws() -> None:
    pair = family_pair("llama")
    sampling = dict(temperature=0.8, top_p=0.9, seed=4)
    lossless = decode(pair, load_arbiter("lossless"), **sampling)
    done = decode(pair, learned(threshold=1.0), **sampling)
    assert [c.token_ids for c in done] == [c.token_ids for c in lossless]


@pytest.mark.parametrize(
    "changes", [{}, {"exact_prefix_tokens": 6}, {"override_stop_tokens": True}]
)
def test_threshold_zero_rules_for_the_draft_wherever_the_safety_rules_allow(changes) -> None:
    done = decode(family_pair("llama"), learned(threshold=0.0), **changes)
    prefix, may_stop = changes.get("exact_prefix_tokens", 0), "override_stop_tokens" in changes
    vetoes = set()
    for m in (m for c in done for s in c.trace for m in s.mismatches if m.is_reached):
        is_stop = EOS in (m.draft_id, m.target_id) and not may_stop
        assert m.keep_draft == (m.position >= prefix and not is_stop)
        vetoes.add(m.veto)
    assert {None, *(["exact_prefix"] if prefix else [])} <= vetoes
    draft = decode(family_pair("llama"), load_arbiter("always_draft"), **changes)
    assert [c.token_ids for c in done] == [c.token_ids for c in draft]


@pytest.mark.parametrize("explore", [0.0, 1.0])
def test_a_policy_that_answers_nan_rules_for_the_target_and_is_counted(explore) -> None:
    network = policy()
    with torch.no_grad():
        network.layers[-1].bias.fill_(math.nan)
    it = learned(network, threshold=0.0, explore=explore)
    done = decode(family_pair("llama"), it, seed=0)
    assert [c.token_ids for c in done] == alone("llama")
    for c in done:
        assert c.stats.num_non_finite_scores == c.stats.num_mismatches
        assert c.origins.count(Origin.OVERRIDE) == 0


def test_a_policy_that_answers_infinity_rules_for_the_target_too() -> None:
    network = policy()
    with torch.no_grad():
        network.layers[-1].bias.fill_(math.inf)
    done = decode(family_pair("llama"), learned(network))
    for c in done:
        assert c.stats.num_non_finite_scores == c.stats.num_mismatches
        assert c.stats.num_overrides == 0


def test_what_a_draft_of_nan_logits_proposed_gets_a_score_of_nan() -> None:
    """Its features are NaN then; the engine rules for the target where the score is."""
    batch = mismatches(6)
    spoilt = batch.draft_logits.clone()
    spoilt[2] = math.nan
    broken = MismatchBatch(
        **{name: getattr(batch, name) for name in batch.__dataclass_fields__}
        | {"draft_logits": spoilt}
    )
    score = learned().rule(broken).score
    assert score.isnan().tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_state_that_is_not_finite_gets_a_score_of_nan(name, value) -> None:
    it, batch = hidden(family_pair("llama")), with_states(mismatches(6))
    spoilt = getattr(batch, name).clone()
    spoilt[2, 7] = value
    score = it.rule(replace(batch, **{name: spoilt})).score
    assert score.isnan().tolist() == [False, False, True, False, False, False]


def test_states_that_are_not_finite_rule_for_the_target_and_are_counted(monkeypatch) -> None:
    pair = family_pair("llama")
    read = CachedModel.read

    def spoilt(model: CachedModel, *args: Any) -> Output:
        output = read(model, *args)
        if output.hidden is not None:
            output.hidden[:, :, 3] = math.inf  # of the arbiter's copy: the logits are there already
        return output

    assert any(c.stats.num_overrides for c in decode(pair, hidden(pair).with_threshold(0.0)))
    monkeypatch.setattr(CachedModel, "read", spoilt)
    done = decode(pair, hidden(pair).with_threshold(0.0))
    assert [c.token_ids for c in done] == alone("llama")
    for c in done:
        assert c.stats.num_non_finite_scores == c.stats.num_mismatches


def test_nothing_is_kept_where_a_text_has_more_mismatches_than_in_training() -> None:
    """The first mismatch at token 0 has rate 1 / 5, the third at token 20 has 3 / 25."""
    assert mismatch_rate(torch.tensor([0, 2]), torch.tensor([0, 20])).tolist() == pytest.approx(
        [0.2, 0.12]
    )
    batch = mismatches()
    rate = mismatch_rate(batch.num_mismatches, batch.positions)
    is_dense = rate > 0.1
    assert 5 < is_dense.sum() < 35
    free, guarded = (learned(max_mismatch_rate=r).rule(batch) for r in (math.inf, 0.1))
    assert (free.keep_draft & is_dense).any()
    assert torch.equal(guarded.keep_draft, free.keep_draft & ~is_dense)
    assert torch.equal(guarded.score, torch.where(is_dense, 0.0, free.score))
    coins = learned(max_mismatch_rate=0.1, explore=1.0).rule(batch)
    assert not (coins.keep_draft & is_dense).any()


@pytest.mark.parametrize(("k", "batch_size"), [(1, 1), (4, 3), (9, 8)])
def test_an_arbiter_with_hidden_states_that_keeps_nothing_is_lossless(k, batch_size) -> None:
    """Catching the states changes nothing of what the models say."""
    pair = family_pair("llama")
    it = hidden(pair).with_threshold(1.0)
    engine = Engine(pair, it, num_speculative_tokens=k, batch_size=batch_size)
    prompts = some_prompts(5)[: None if batch_size > 1 else 2]
    done = engine.generate(prompts, SAMPLING)
    assert [one.token_ids for one in done] == alone("llama")[: len(prompts)]
    assert sum(one.stats.num_mismatches for one in done) > 0
