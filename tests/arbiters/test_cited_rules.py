"""The rules of the literature against their formulas, worked by hand on small distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cospec.arbiters import (
    BiLD,
    ChowAverage,
    ChowCascade,
    CoSD,
    DiffCascade,
    FLy,
    FuzzyJS,
    FuzzyKL,
    JuDi,
    Mars,
    Mentored,
    OptCascade,
    SGLangThresholds,
    StaticEnsemble,
    TopK,
    TopKRatio,
    TypicalAcceptance,
)
from cospec.arbiters.mentored import least_log_alpha
from cospec.errors import ConfigError
from cospec.types import Arbiter, MismatchBatch, Needs
from tests.arbiters.test_rules import logits_of, mismatches

Rows = list[list[float]]


def batch_of(p: Rows | None = None, q: Rows | None = None, **fields: object) -> MismatchBatch:
    """Mismatches where the target has `p` and the draft `q`; the draft says 1, the target 0."""
    if p is not None:
        fields["target_logits"] = logits_of(p)
    if q is not None:
        fields["draft_logits"] = logits_of(q)
    return mismatches(len(p or q), **fields)


def expect(arbiter: Arbiter, batch: MismatchBatch, scores: list[float]) -> None:
    """These scores, and the draft's token kept where they are above 0."""
    ruling = arbiter.rule(batch)
    assert ruling.score.tolist() == pytest.approx(scores, abs=1e-6)
    assert ruling.keep_draft.tolist() == [score > 0 for score in scores]


@pytest.mark.parametrize("window", [6.0, 2.5, np.float64(6)])
def test_a_window_that_is_no_whole_number_is_refused(window):
    """Found: it passed, and the first mismatch raised a TypeError."""
    with pytest.raises(ConfigError, match=r"window is .*; it must be a whole number of tokens"):
        FLy(window=window)
    assert FLy(window=np.int64(6)) == FLy(window=6)


def test_typical_acceptance_wants_the_threshold_or_less_where_the_target_is_unsure():
    """By hand: exp(-H) is 2^-1.5 = 0.354, 0.845, 0.663 and 1/8, so that 0.3 of it is above 0.09 but
    for the last: the bounds are 0.09, 0.09, 0.09 and 0.0375.
    """
    p = [
        [0.5, 0.25, 0.25, 0, 0, 0, 0, 0],
        [0.96, 0.04, 0, 0, 0, 0, 0, 0],
        [0.89, 0.08, 0.03, 0, 0, 0, 0, 0],
        [0.125] * 8,
    ]
    expect(TypicalAcceptance(), batch_of(p), [0.16, -0.05, -0.01, 0.0875])
    expect(TypicalAcceptance(0.3, 0.6), batch_of(p[:1] + p[3:]), [0.25 - 0.2121320, 0.05])
    assert TypicalAcceptance().needs == Needs.TARGET_LOGITS


def test_mars_compares_the_two_largest_logits():
    """By hand: 9.5 - 0.9 * 10, 8.5 - 9, 9.6 - 9 and -1.05 + 0.9."""
    logits = [[10, 9.5, 1], [10, 8.5, 1], [10, 9.5, 9.6], [-1, -1.05, -5]]
    batch = mismatches(4, target_logits=torch.tensor(logits))
    ruling = Mars().rule(batch)
    assert ruling.score.tolist() == pytest.approx([0.5, -0.5, 0.6, -0.15], abs=1e-6)
    assert ruling.keep_draft.tolist() == [True, False, False, False]
    assert Mars(0.84).rule(batch).keep_draft.tolist() == [True, True, False, False]


def test_mars_does_not_relax_where_logits_are_not_positive():
    """-1.05 / -1 is above 0.9, and so is -50 / -1."""
    logits = torch.tensor([[-1.0, -1.05, -60.0], [-1.0, -50.0, -60.0], [0.0, 0.0, -1.0]])
    assert not Mars(0.5).rule(mismatches(3, target_logits=logits)).keep_draft.any()


def test_top_k_wants_a_rank_and_a_difference_in_probability():
    p = [[0.5, 0.3, 0.2], [0.8, 0.1, 0.1], [0.4, 0.25, 0.35]]
    for k, kept in {1: [False] * 3, 2: [True, False, False], 3: [True, False, True]}.items():
        ruling = TopK(k, delta=0.3).rule(batch_of(p))
        assert ruling.score.tolist() == pytest.approx([0.1, -0.4, 0.15])
        assert ruling.keep_draft.tolist() == kept
    assert TopK() == TopK(10, 0.6)


def test_top_k_ratio_wants_a_rank_and_a_share_of_the_best_probability():
    p = [[0.5, 0.3, 0.2, 0.0], [0.6, 0.25, 0.15, 0.0], [0.3, 0.2, 0.25, 0.25]]
    ruling = TopKRatio().rule(batch_of(p))
    assert ruling.score.tolist() == pytest.approx([0.05, -0.05, 0.05])
    assert ruling.keep_draft.tolist() == [True, False, False]
    assert TopKRatio(k=4).rule(batch_of(p)).keep_draft.tolist() == [True, False, True]


def test_sglang_draws_its_coin_again_from_where_it_failed():
    """By hand: p(x) is 0.4 and 0.4 / 0.5 = 0.8, so that of the coins above 0.4 those below 0.8 are
    kept: (0.8 - 0.4) / 0.6 = 2/3 of them.
    """
    uniforms = torch.tensor([0.0, 0.66, 0.67, 0.99], dtype=torch.float64)
    batch = batch_of([[0.6, 0.4]] * 4, uniforms=uniforms)
    expect(SGLangThresholds(1, 0.5), batch, [0.2, 0.002, -0.001, -0.097])
    expect(SGLangThresholds(0.3, 0.5), batch, [0.2, 0.1, 0.1, 0.1])
    expect(SGLangThresholds(), batch, [0.0, -0.396, -0.402, -0.594])


def test_bild_wants_a_sure_draft_and_a_target_that_is_not_surprised():
    """By hand: exp(-5) = 0.0067379, and -log(0.1) = 2.3026."""
    p = [[0.9, 0.1], [0.9, 0.1], [0.995, 0.005]]
    q = [[0.3, 0.7], [0.45, 0.55], [0.3, 0.7]]
    expect(BiLD(), batch_of(p, q), [0.0932621, -0.05, -0.0017379])
    assert BiLD(rollback=2.31).rule(batch_of(p, q)).keep_draft.tolist() == [True, False, False]
    assert BiLD(rollback=2.30).rule(batch_of(p, q)).keep_draft.tolist() == [False] * 3


def test_chows_cascade_looks_at_the_drafts_confidence():
    q = [[0.15, 0.85], [0.25, 0.75]]
    expect(ChowCascade(), batch_of(q=q), [0.05, -0.05])
    expect(ChowCascade(0.3), batch_of(q=q), [0.15, 0.05])
    assert ChowCascade().needs == Needs.DRAFT_LOGITS


def test_the_average_rule_asks_how_sure_the_draft_is_of_the_whole_block():
    """By hand: means of -0.03 over four tokens, and of -0.06 over the two before the end."""
    block_log_q = torch.tensor([[-0.01, -0.05, 0.0, -0.06], [-0.12, 0.0, 0.0, 0.0]])
    batch = mismatches(2, block_log_q=block_log_q, block_lengths=torch.tensor([4, 2]))
    expect(ChowAverage(), batch, [0.02, -0.01])
    expect(ChowAverage(min_log_q=-0.07), batch, [0.04, 0.01])
    expect(ChowAverage(min_log_q=0), batch, [-0.03, -0.06])


def test_the_diff_cascade_compares_the_two_confidences():
    p, q = [[0.65, 0.35], [0.75, 0.25]], [[0.5, 0.5]] * 2
    expect(DiffCascade(), batch_of(p, q), [0.05, -0.05])
    expect(DiffCascade(-0.1), batch_of(p, q), [-0.25, -0.35])


def test_the_optimal_cascade_allows_for_the_total_variation():
    """By hand: the total variation is 0.2 and 0.6."""
    p, q = [[0.6, 0.4], [0.9, 0.1]], [[0.4, 0.6], [0.3, 0.7]]
    expect(OptCascade(), batch_of(p, q), [0.04, -0.08])
    expect(OptCascade(0.4), batch_of(p, q), [0.08, 0.04])


def test_fuzzy_js_is_the_divergence_from_the_middle():
    """By hand: 3/4 log(3/2) + 1/4 log(1/2) = 0.1308120, log 2 for disjoint distributions."""
    p, q = [[0.75, 0.25], [1.0, 0.0]], [[0.25, 0.75], [0.0, 1.0]]
    expect(FuzzyJS(), batch_of(p, q), [0.4 - 0.1308120, 0.4 - 0.6931472])


def test_fuzzy_kl_is_that_of_the_target_from_the_draft():
    """By hand: 1/2 log 3 = 0.5493061; 1/2 log(5/8) + 1/2 log(5/2) = 0.2231436 (the other way round
    it is 0.1927449); a draft without mass counts as 1e-10: log(1/2) + 5 log 10 = 10.8197783.
    """
    p = [[0.75, 0.25], [0.5, 0.5], [0.5, 0.5]]
    q = [[0.25, 0.75], [0.8, 0.2], [0.0, 1.0]]
    scores = [0.4 - 0.5493061, 0.4 - 0.2231436, 0.4 - 10.8197783]
    expect(FuzzyKL(), batch_of(p, q), scores)
    assert FuzzyKL(0.2).rule(batch_of(p, q)).keep_draft.tolist() == [False] * 3


def test_judi_relaxes_by_the_divergence_only_where_the_target_is_unsure():
    """By hand: 1/2 log(5/8) + 1/2 log(5/2) = 0.2231436 (the other way round it is 0.1927449);
    1/2 log 3 = 0.5493061; 0.95 log(0.95 / 0.9) + 0.05 log(0.05 / 0.1) = 0.0167066, of a target that
    is too sure, so that the score alone would have kept the draft's token.
    """
    p = [[0.5, 0.5], [0.75, 0.25], [0.95, 0.05]]
    q = [[0.8, 0.2], [0.25, 0.75], [0.9, 0.1]]
    ruling = JuDi().rule(batch_of(p, q))
    assert ruling.score.tolist() == pytest.approx([0.0768564, -0.2493061, 0.2832934], abs=1e-6)
    assert ruling.keep_draft.tolist() == [True, False, False]
    assert JuDi(0.2).rule(batch_of(p, q)).keep_draft.tolist() == [False] * 3
    assert JuDi(0.6).rule(batch_of(p, q)).keep_draft.tolist() == [True, True, False]
    assert JuDi(0.6, 0.7).rule(batch_of(p, q)).keep_draft.tolist() == [True, False, False]
    assert JuDi(0.3, 0.96).rule(batch_of(p, q)).keep_draft.tolist() == [True, False, True]
    assert JuDi().needs == Needs.LOGITS


def test_judi_without_its_mask_is_fuzzy_decoding_by_kl():
    generator = torch.Generator().manual_seed(0)
    p, q = (6 * torch.randn(2, 64, 5, generator=generator)).softmax(dim=2)
    batch = batch_of(p.tolist(), q.tolist())
    assert (p.amax(dim=1) > 0.9).sum() > 10
    unmasked = JuDi(2.0, confidence=1).rule(batch).keep_draft
    assert torch.equal(unmasked, FuzzyKL(2.0).rule(batch).keep_draft)
    masked = JuDi(2.0).rule(batch).keep_draft
    assert torch.equal(masked, unmasked & (p.amax(dim=1) <= 0.9)) and (masked != unmasked).any()


def test_cosd_wants_a_sure_draft_or_a_target_that_is_no_surer():
    p = [[0.9, 0.05, 0.05], [0.1, 0.1, 0.8], [0.9, 0.05, 0.05]]
    q = [[0.2, 0.6, 0.2], [0.3, 0.4, 0.3], [0.3, 0.4, 0.3]]
    expect(CoSD(), batch_of(p, q), [0.1, 0.1, -0.1])
    expect(CoSD(alpha=0.3, beta=0.1), batch_of(p, q), [0.3, 0.1, 0.1])


def test_the_ensemble_keeps_the_best_token_of_the_mixture():
    """By hand: 0.7 p + 0.3 q is (0.45, 0.55, 0), (0.65, 0.35, 0) and (0.28, 0.34, 0.38)."""
    p = [[0.6, 0.4, 0.0], [0.8, 0.2, 0.0], [0.4, 0.1, 0.5]]
    q = [[0.1, 0.9, 0.0], [0.3, 0.7, 0.0], [0.0, 0.9, 0.1]]
    expect(StaticEnsemble(), batch_of(p, q), [0.1, -0.3, -0.04])
    assert StaticEnsemble(0.7).rule(batch_of(p, q)).keep_draft.tolist() == [True, True, True]


def test_mentored_decoding_accepts_as_often_as_the_budget_allows():
    """By hand, p = (0.6, 0.4) and q = (0.4, 0.6): alpha = 0.8 makes the outcome (0.5, 0.5), which
    costs 0.6 log 1.2 + 0.4 log 0.8 = 0.0201355 nats and accepts 5/6 of the drafted 1, where the
    strict test accepts 2/3: half of those that it rejects.
    """
    uniforms = torch.tensor([0.0, 0.49, 0.51, 0.99], dtype=torch.float64)
    batch = batch_of([[0.6, 0.4]] * 4, [[0.4, 0.6]] * 4, uniforms=uniforms)
    ruling = Mentored(0.0201355).rule(batch)
    assert ruling.keep_draft.tolist() == [True, True, False, False]
    assert ruling.score[0].item() == pytest.approx(math.log(1.25), abs=1e-5)


def test_mentored_decoding_spares_the_tokens_between():
    """By hand, p = (0.5, 0.3, 0.2) and q = (0.2, 0.3, 0.5): alpha = 1/2 makes the outcome
    (0.3, 0.3, 0.4), which costs 1/2 log(5/3) + 1/5 log(1/2) = 0.1167834 nats; all is accepted from
    the budget KL(p || q) = 1/2 log(5/2) + 1/5 log(2/5) = 0.2748872 on, where alpha = 2/5.
    """
    p, q = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.2, 0.3, 0.5]])
    for budget, alpha in {0.0: 1.0, 0.1167834: 0.5, 0.2749: 0.4, 9.0: 0.4}.items():
        found = least_log_alpha(p.double().log(), q.double().log(), budget).exp()
        assert found.item() == pytest.approx(alpha, abs=1e-5)


def test_mentored_decoding_keeps_a_greedy_mismatch_that_the_target_finds_more_probable():
    uniforms = torch.tensor([0.999], dtype=torch.float64)
    batch = batch_of([[0.4, 0.35, 0.25]], [[0.3, 0.34, 0.36]], uniforms=uniforms)
    assert Mentored(0.001).rule(batch).keep_draft.all()
    assert not Mentored(0).rule(batch).keep_draft.any()


def test_the_search_for_alpha_spends_the_budget():
    """Against the definition: the outcome is clamp(q, p / beta, p / alpha), sums to 1 and costs the
    budget; tokens that either model rules out are no trouble.
    """
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(2, 16, 40, generator=generator, dtype=torch.float64)
    logits[0, :, :3] = -math.inf
    logits[1, :, 2:6] = -math.inf
    p, q = logits.softmax(dim=2)
    alpha = least_log_alpha(p.log(), q.log(), 0.3).exp()[:, None]
    upper = (p / alpha).minimum(q)
    low, high = torch.zeros(16, 1, dtype=torch.float64), torch.ones(16, 1, dtype=torch.float64)
    for _ in range(60):  # of 1 / beta
        middle = (low + high) / 2
        is_short = upper.maximum(p * middle).sum(dim=1, keepdim=True) < 1
        low, high = torch.where(is_short, middle, low), torch.where(is_short, high, middle)
    outcome = upper.maximum(p * low)
    costs = torch.where(p > 0, p * (p / outcome).log(), 0.0).sum(dim=1)
    assert (alpha < 1).all()
    assert costs.tolist() == pytest.approx([0.3] * 16, abs=1e-9)
