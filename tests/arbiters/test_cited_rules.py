"""The rules of the literature against their formulas, worked by hand on small distributions."""

from __future__ import annotations

import pytest
import torch

from cospec.arbiters import (
    Mars,
    SGLangThresholds,
    TopK,
    TopKRatio,
    TypicalAcceptance,
)
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
