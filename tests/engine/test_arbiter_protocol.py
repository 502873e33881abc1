"""Arbiters that break their protocol are refused, and get what they declared and no more."""

from __future__ import annotations

import pytest
import torch

from cospec.errors import (
    ArbiterError,
)
from cospec.types import MismatchBatch, Origin, Ruling
from tests.conftest import (
    some_prompts,
)
from tests.engine.helpers import (
    GREEDY,
    INF,
    NAN,
    SAMPLED,
    FromFunction,
    decode,
    ids,
    kept,
    table_pair,
    total,
)


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_scores_that_are_not_finite_rule_for_the_target_and_are_counted(
    llama_pair, sampling, value
):
    broken = FromFunction(lambda batch: Ruling(kept(batch), torch.full((len(batch),), value)))
    prompts = some_prompts(5)
    done = decode(llama_pair, broken, prompts, sampling)
    exact = decode(llama_pair, prompts=prompts, sampling=sampling)
    assert ids(done) == ids(exact)
    assert [c.origins for c in done] == [c.origins for c in exact]
    stats = total(done)
    assert stats.num_overrides == 0
    is_broken = [m.veto == "non_finite" for c in done for m in c.reached]
    assert stats.num_non_finite_scores == sum(is_broken) > 0.9 * len(is_broken)
    for mismatch in (m for c in done for s in c.trace for m in s.mismatches):
        assert mismatch.veto in ("non_finite", "stop_token") and not mismatch.keep_draft


def test_one_score_that_is_not_finite_spoils_no_other(llama_pair):
    """Scores are NaN at even positions of the text: overrides happen at odd ones only."""

    def rule(batch: MismatchBatch) -> Ruling:
        is_even = batch.positions % 2 == 0
        return Ruling(kept(batch), torch.where(is_even, NAN, 1.0))

    done = decode(llama_pair, FromFunction(rule), some_prompts(8))
    overrides = [i for c in done for i, o in enumerate(c.origins) if o is Origin.OVERRIDE]
    assert overrides and all(i % 2 for i in overrides)
    corrections = [i for c in done for i, o in enumerate(c.origins) if o is Origin.CORRECTION]
    assert total(done).num_non_finite_scores == sum(i % 2 == 0 for i in corrections)


@pytest.mark.parametrize(
    "keep",
    [
        lambda m: torch.ones(m, dtype=torch.int64),
        torch.ones,
        lambda m: torch.ones(m + 1, dtype=torch.bool),
        lambda m: torch.ones(m, 1, dtype=torch.bool),
        lambda m: torch.tensor(True),
    ],
    ids=["ints", "floats", "too many", "a column", "a scalar"],
)
def test_a_ruling_of_the_wrong_shape_or_dtype_is_refused(keep):
    broken = FromFunction(lambda batch: Ruling(keep(len(batch))))
    with pytest.raises(ArbiterError, match=r"lossless ruled .* torch\.bool of shape") as caught:
        decode(table_pair(), broken)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "answer",
    [
        lambda batch: Ruling(kept(batch), torch.ones(len(batch), 2)),
        lambda batch: Ruling(kept(batch), torch.ones(len(batch) + 1)),
        lambda batch: Ruling(kept(batch), [0.5] * len(batch)),
        lambda batch: Ruling([True] * len(batch)),
        lambda batch: None,
    ],
    ids=["wide scores", "too many scores", "a list of scores", "a list", "nothing"],
)
def test_an_answer_that_is_no_ruling_is_refused_with_a_sentence(answer):
    """Found: RuntimeError and AttributeError from inside the engine."""
    with pytest.raises(ArbiterError):
        decode(table_pair(), FromFunction(answer))


def test_what_an_arbiter_raises_comes_out_as_it_is():
    def rule(batch: MismatchBatch) -> Ruling:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        decode(table_pair(), FromFunction(rule))


@pytest.mark.parametrize("keep_trace", [True, False])
def test_an_arbiter_sees_what_it_declared_and_nothing_else(keep_trace):
    """Found: with a trace the logits of both models are there undeclared, so that an arbiter that
    forgot to declare them works until the trace is turned off.
    """
    seen = []

    def rule(batch: MismatchBatch) -> Ruling:
        seen.append((batch.target_logits, batch.draft_logits, batch.lookahead_matches))
        return Ruling(~kept(batch))

    decode(table_pair(), FromFunction(rule), keep_trace=keep_trace)
    assert seen and all(fields == (None, None, None) for fields in seen)


def test_features_that_are_not_a_row_a_mismatch_are_refused(llama_pair):
    def rule(batch: MismatchBatch) -> Ruling:
        return Ruling(kept(batch), None, torch.zeros(len(batch) + 1, 2))

    with pytest.raises(ArbiterError, match="ruled with features of shape"):
        decode(llama_pair, FromFunction(rule), some_prompts(2))
