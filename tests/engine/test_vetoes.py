"""Overrides that the engine turns down, whatever the arbiter says."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from cospec import SamplingConfig, load_arbiter
from cospec.arbiters import AlwaysDraft, AlwaysTarget
from cospec.rulings import Veto, find_vetoes
from tests.engine.helpers import (
    GREEDY,
    INF,
    NAN,
    NUM_NEW,
    SAMPLED,
    FromFunction,
    decode,
    table_pair,
    total,
)
from tests.laws.known_law import TARGET as TARGET_TABLE
from tests.laws.known_law import (
    law,
)

GAPPY = torch.tensor(
    [[0.0, 0.6, 0.4, 0.0], [0.5, 0.0, 0.0, 0.5], [0.3, 0.7, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]
)
"""Seven steps are impossible. The draft wants two of them, and two that are second best."""
WANTING = torch.tensor(
    [[0.1, 0.1, 0.7, 0.1], [0.1, 0.7, 0.1, 0.1], [0.7, 0.1, 0.1, 0.1], [0.7, 0.1, 0.1, 0.1]]
)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_token_of_target_probability_zero_is_never_emitted(sampling):
    prompts = [[i % 4] for i in range(32)]
    done = decode(table_pair(GAPPY, WANTING), AlwaysDraft(), prompts, sampling)
    for completion in done:
        path = completion.prompt_ids + completion.token_ids
        assert all(GAPPY[a, b] > 0 for a, b in itertools.pairwise(path))
    found = [m for c in done for s in c.trace for m in s.mismatches]
    forbidden = [m for m in found if m.p_draft_id == 0]
    assert forbidden and all(m.veto == "forbidden" for m in forbidden)
    allowed = [m for m in found if m.p_draft_id > 0]
    assert allowed and all(m.veto is None and m.keep_draft for m in allowed)


@pytest.mark.parametrize("rule", ["gap", "mars", "mentored"])
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_token_of_target_probability_zero_is_no_broken_score(sampling, rule):
    """Found: the score of a forbidden token is infinite, and was counted as a non-finite one."""
    prompts = [[i % 4] for i in range(32)]
    done = decode(table_pair(GAPPY, WANTING), load_arbiter(rule), prompts, sampling)
    found = [m for c in done for m in c.reached if m.p_draft_id == 0]
    assert any(m.score == -INF for m in found)
    assert all(m.veto is None and not m.keep_draft and not m.is_open for m in found)
    assert total(done).num_non_finite_scores == 0


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_ruling_that_cannot_count_is_asked_for_only_where_a_trace_shows_it(sampling):
    sampling = replace(sampling, exact_prefix_tokens=3, stop_token_ids=(3,))

    def asked(arbiter, **options):
        seen = []

        def rule(batch):
            seen.extend(batch.positions.tolist())
            return arbiter.rule(batch)

        pair = table_pair(TARGET_TABLE, WANTING)
        done = decode(pair, FromFunction(rule), [[i % 3] for i in range(32)], sampling, **options)
        return [(c.token_ids, c.stats) for c in done], seen

    shown, all_places = asked(AlwaysDraft())
    bare, places = asked(AlwaysDraft(), keep_trace=False)
    assert bare == shown and min(all_places) == 0 and min(places) == 3
    _, often = asked(AlwaysTarget(), keep_trace=False)
    _, once = asked(AlwaysTarget(), keep_trace=False, max_corrections=1)
    assert len(once) < len(often) or sampling.is_greedy, "greedy texts have one mismatch each"


def test_of_several_reasons_the_first_is_told():
    flags = list(itertools.product([False, True], repeat=4))
    is_forbidden, is_exact, is_stop, is_broken = map(torch.tensor, zip(*flags, strict=True))
    vetoes = find_vetoes(
        torch.where(is_broken, NAN, 1.0),
        draft_logit=torch.where(is_forbidden, -INF, 1.0),
        is_cut=None,
        is_exact=is_exact,
        is_stop=is_stop,
    )
    reasons = [Veto.FORBIDDEN, Veto.EXACT_PREFIX, Veto.STOP_TOKEN, Veto.NON_FINITE]
    assert sorted(reasons) == reasons
    told = [next(itertools.compress(reasons, given), Veto.NONE) for given in flags]
    assert vetoes.tolist() == told


@pytest.mark.parametrize(
    "cut", [dict(top_p=0.6), dict(top_k=2), dict(min_p=0.4)], ids=lambda cut: next(iter(cut))
)
def test_an_override_stays_within_what_sampling_leaves(cut):
    """A token that truncation removed from the target's distribution has probability 0."""
    sampling = SamplingConfig(max_new_tokens=NUM_NEW, temperature=1.0, seed=0, **cut)
    texts = law(TARGET_TABLE, sampling).view(4, 4, 4)
    is_left = torch.stack([law(TARGET_TABLE, sampling, s).view(4, 16).sum(1) > 0 for s in range(4)])
    assert texts.sum() == pytest.approx(1) and not is_left.all()
    flat = torch.full((4, 4), 0.25)
    done = decode(table_pair(draft=flat), AlwaysDraft(), [[i % 4] for i in range(32)], sampling)
    for completion in done:
        path = completion.prompt_ids + completion.token_ids
        assert all(is_left[a, b] for a, b in itertools.pairwise(path))
    assert {m.veto for c in done for s in c.trace for m in s.mismatches} >= {"forbidden"}


CYCLE = torch.eye(4)[[1, 2, 0, 0]] * 0.9 + 0.025
"""0, 1, 2, 0, 1, ...; token 3 ends a text and is on no path."""
ENDING = torch.eye(4)[[1, 3, 0, 0]] * 0.9 + 0.025
"""0, 1, 3: the same, but the text ends after 1."""


@pytest.mark.parametrize(
    ("target", "draft", "is_allowed", "expected"),
    [
        (CYCLE, ENDING, False, [1, 2, 0, 1, 2, 0, 1, 2]),
        (CYCLE, ENDING, True, [1, 3]),
        (ENDING, CYCLE, False, [1, 3]),
        (ENDING, CYCLE, True, [1, 2, 0, 1, 2, 0, 1, 2]),
    ],
    ids=["may not end", "may end", "may not go on", "may go on"],
)
def test_an_arbiter_ends_no_text_and_prolongs_none_unless_allowed(
    target, draft, is_allowed, expected
):
    """By hand, with k = 8: no bonus token comes in between."""
    sampling = SamplingConfig(
        max_new_tokens=8, stop_token_ids=(3,), override_stop_tokens=is_allowed
    )
    pair = table_pair(target, draft)
    (done,) = decode(pair, AlwaysDraft(), [[0]], sampling, num_speculative_tokens=8)
    assert done.token_ids == expected
    vetoes = {m.veto for step in done.trace for m in step.mismatches if m.is_reached}
    assert vetoes == ({None} if is_allowed else {"stop_token"})
