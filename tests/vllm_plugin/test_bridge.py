"""Rows of another engine are ruled on, and become text, as in our own."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cospec.arbiters import AlwaysDraft, AlwaysTarget, LogProbGap, RandomOverride
from cospec.arbiters.learned import LearnedArbiter
from cospec.arbiters.policy import Policy, PolicyConfig
from cospec.config import SamplingConfig
from cospec.engine.arbitrate import arbitrate
from cospec.engine.rows import Row
from cospec.engine.verify import collect_mismatches, verify
from cospec.engine.walk import Block, walk
from cospec.errors import ArbiterError
from cospec.features import ScalarFeatures
from cospec.models.cache import Output
from cospec.sampling import Chance
from cospec.types import MismatchBatch, Needs, Origin, Proposal, Ruling
from cospec.vllm_plugin import bridge
from cospec.vllm_plugin.bridge import RowArbiter, RowRulings, VerifiedRows
from cospec.vllm_plugin.verdicts import count_step, ended_before, force

K, V = 4, 12
STOP = 3
ALL = Needs.LOGITS | Needs.LOOKAHEAD | Needs.BLOCK_LOG_Q
GREEDY = Chance(None, None)


class Recorder:
    """Answers as another arbiter does, and remembers what it saw."""

    def __init__(self, arbiter, needs=ALL):
        self.arbiter, self.needs, self.name = arbiter, needs, arbiter.name
        self.seen = []

    def rule(self, batch):
        self.seen.append(batch)
        return self.arbiter.rule(batch)


class Scores:
    """Rules for the draft, with a fixed score."""

    name, needs = "scores", Needs.NOTHING

    def __init__(self, score):
        self.score = score

    def rule(self, batch):
        ones = torch.ones(len(batch))
        return Ruling(ones.bool(), ones * self.score)


def learned(threshold=0.15):
    features = ScalarFeatures(torch.arange(V) % 5)
    torch.manual_seed(5)
    policy = Policy(len(features.names), PolicyConfig())
    torch.nn.init.normal_(policy.layers[-1].weight, std=0.5)  # it begins with one ruling for all
    return LearnedArbiter(policy.eval(), features, threshold)


def blocks(num_rows, seed):
    """Logits and drafted tokens such that about half of them match: p (B, K + 1, V), q, ids."""
    g = torch.Generator().manual_seed(seed)
    p, q = (
        3 * torch.randn(num_rows, K + 1, V, generator=g),
        torch.randn(num_rows, K, V, generator=g),
    )
    q = q + p[:, :-1]
    return p, q, q.argmax(dim=-1)


def flat(p, q, ids, lengths=None, **changes):
    """The rows as a runner has them, all blocks from position 7 on."""
    lengths = [K] * len(p) if lengths is None else lengths
    where = [(r, j) for r, n in enumerate(lengths) for j in range(n)]
    r, j = torch.tensor(where).reshape(-1, 2).unbind(dim=1)
    values = dict(
        target_logits=p[r, j],
        draft_logits=q[r, j],
        draft_ids=ids[r, j],
        is_drafted=torch.ones(len(r), dtype=torch.bool),
        requests=r,
        block_positions=j,
        positions=7 + j,
        num_overrides=2 * r,
        num_mismatches=3 * r,
        is_open=torch.ones(len(r), dtype=torch.bool),
        stop_ids=torch.full((len(r), 2), -1),
        max_tokens=torch.full((len(r),), 100),
    )
    return VerifiedRows(**values | changes)


def stock_greedy(rows, judged, bonus_ids):
    """Tokens that vLLM's greedy kernel emits, and the number it accepts, by request."""
    emitted, accepted = [], []
    for r, bonus in enumerate(bonus_ids):
        tokens = []
        for i in (rows.requests == r).nonzero()[:, 0].tolist():
            tokens.append(int(judged[i].argmax()))
            if tokens[-1] != rows.draft_ids[i] or not rows.is_drafted[i]:
                break
        else:
            tokens.append(int(bonus))
        emitted.append(tokens)
        accepted.append(len(tokens) - 1)
    return emitted, torch.tensor(accepted)


def whole_blocks(ids: torch.Tensor, q: torch.Tensor, **more: object) -> Proposal:
    """The proposal of tokens (B, K) by logits (B, K, V)."""
    lengths = torch.full((len(ids),), ids.shape[1])
    return Proposal(ids, lengths, torch.ones_like(ids).bool(), list(q.unbind(dim=1)), **more)


@pytest.mark.parametrize("seed", range(5))
def test_an_arbiter_sees_what_our_engine_shows_it(seed):
    p, q, ids = blocks(6, seed)
    states, drafts = torch.randn(6, K + 1, 5), torch.randn(6, K, 3)
    proposal = whole_blocks(ids, q, hidden=list(drafts.unbind(dim=1)))
    verified = verify(Output(p, states), proposal, GREEDY)
    rows, places = (~verified.is_match).nonzero().unbind(dim=1)
    order = torch.arange(6)
    history = torch.stack([torch.full((6,), 7), 2 * order, order], dim=1)
    theirs = collect_mismatches(verified, proposal, rows, places, history, ALL | Needs.HIDDEN, None)
    recorder = Recorder(AlwaysTarget(), ALL | Needs.HIDDEN)
    handed_out = dict(
        target_hidden=states[:, :-1].flatten(0, 1),
        target_hidden_after=states[:, 1:].flatten(0, 1),
        draft_hidden=drafts.flatten(0, 1),
    )
    RowArbiter(recorder, K)(flat(p, q, ids, **handed_out))
    (ours,) = recorder.seen
    for field in fields(MismatchBatch):
        a, b = getattr(ours, field.name), getattr(theirs, field.name)
        assert a is b is None or torch.equal(torch.as_tensor(a), torch.as_tensor(b)), field.name


@pytest.mark.parametrize("seed", range(3))
def test_a_block_that_was_cut_short_is_as_long_as_it_is(seed):
    """Found: vLLM drafts less where a step has no room, and such a block counted as K tokens."""
    p, q, ids = blocks(8, seed)
    lengths = torch.tensor([4, 1, 2, 3] * 2)
    proposal = replace(whole_blocks(ids, q), lengths=lengths)
    verified = verify(Output(p, None), proposal, GREEDY)
    inside = torch.arange(K) < lengths[:, None]
    rows, places = (~verified.is_match & inside).nonzero().unbind(dim=1)
    history = torch.stack([torch.full((8,), 7), 2 * torch.arange(8), torch.arange(8)], dim=1)
    theirs = collect_mismatches(verified, proposal, rows, places, history, ALL, None)
    recorder = Recorder(AlwaysTarget(), ALL)
    RowArbiter(recorder, K)(flat(p, q, ids, lengths.tolist()))
    (ours,) = recorder.seen
    seen = ("block_positions", "block_lengths", "lookahead_matches", "lookahead_log_p")
    for name in (*seen, "block_log_q"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


@pytest.mark.parametrize("seed", range(5))
def test_it_looks_no_further_than_a_drafted_stop_if_blocks_end_there(seed):
    p, q, ids = blocks(24, seed)
    is_stop = ids == STOP
    lengths = torch.where(is_stop.any(dim=1), is_stop.int().argmax(dim=1) + 1, K)
    assert lengths.min() < K == lengths.max()
    proposal = replace(whole_blocks(ids, q), lengths=lengths)
    verified = verify(Output(p, None), proposal, GREEDY)
    inside = torch.arange(K) < lengths[:, None]
    rows, places = (~verified.is_match & inside).nonzero().unbind(dim=1)
    order = torch.arange(24)
    history = torch.stack([torch.full((24,), 7), 2 * order, order], dim=1)
    theirs = collect_mismatches(verified, proposal, rows, places, history, ALL, None)
    recorder = Recorder(AlwaysTarget(), ALL)
    given = flat(p, q, ids)
    stop_ids = torch.full((len(given.requests), 1), STOP)
    given = replace(given, stop_ids=stop_ids, requests=given.requests + 1000)  # drafted nothing
    RowArbiter(recorder, K, end_blocks_at_stop=True, keep_features=True)(given)
    (ours,) = recorder.seen
    assert (ours.rows >= 1000).all()
    kept = inside[ours.rows - 1000, ours.block_positions]
    seen = ("block_positions", "block_lengths", "lookahead_matches", "lookahead_log_p")
    for name in (*seen, "block_log_q"):
        assert torch.equal(getattr(ours, name)[kept], getattr(theirs, name)), name


class _Careless:
    """Answers once for the whole batch."""

    name, needs = "careless", Needs.NOTHING

    def rule(self, batch: MismatchBatch) -> Ruling:
        return Ruling(torch.ones(1, dtype=torch.bool))


def test_an_answer_that_is_no_ruling_on_each_mismatch_is_refused():
    """Found: it stood for all of them."""
    p, q, ids = blocks(12, 3)
    with pytest.raises(ArbiterError, match=r"careless ruled with keep_draft of shape \(1,\)"):
        RowArbiter(_Careless(), K)(flat(p, q, ids))


def test_a_request_goes_on_lossless_after_its_last_correction():
    p, q, ids = blocks(12, 3)
    rows = flat(p, q, ids)
    rows = replace(rows, num_overrides=0 * rows.requests + 5, num_mismatches=5 + rows.requests % 4)
    whole = RowArbiter(AlwaysDraft(), K)(rows).keep_draft
    limited = RowArbiter(AlwaysDraft(), K, max_corrections=2)(rows).keep_draft
    assert torch.equal(limited, whole & (rows.requests % 4 < 2))
    assert limited.any() and (whole & ~limited).any()


@pytest.mark.parametrize("arbiter", [LogProbGap(2.0), learned(), AlwaysDraft(), AlwaysTarget()])
@pytest.mark.parametrize("seed", range(8))
def test_text_and_counts_are_those_of_our_engine(arbiter, seed):
    p, q, ids = blocks(8, seed)
    exact, max_tokens = 8, [9 + r // 2 for r in range(8)]
    proposal = whole_blocks(ids, q)
    verified = verify(Output(p, None), proposal, GREEDY)
    walked, our_blocks = [], []
    for r in range(8):
        config = SamplingConfig(max_new_tokens=max_tokens[r], exact_prefix_tokens=exact)
        row = Row(r, [0], config, frozenset({STOP}), None)
        overrides = [Origin.OVERRIDE] * min(2 * r, 7)
        row.generated, row.origins = [0] * 7, [*overrides, *[Origin.MATCH] * (7 - len(overrides))]
        walked.append(row)
        flags = [verified.is_match, verified.is_finite, proposal.is_finite]
        target_ids = verified.target_ids[r].tolist()
        flags_of_row = (flag[r].long().tolist() for flag in flags)
        our_blocks.append(Block(K, ids[r].tolist(), target_ids, *flags_of_row, K))
    decisions = arbitrate(arbiter, walked, our_blocks, proposal, verified, GREEDY, keep_trace=True)
    for row, block, decided in zip(walked, our_blocks, decisions, strict=True):
        walk(row, block, decided, keep_trace=True)

    rows = flat(p, q, ids)
    rows = replace(
        rows,
        stop_ids=torch.full((len(rows.requests), 1), STOP),
        max_tokens=torch.tensor(max_tokens)[rows.requests],
        num_overrides=(2 * rows.requests).clamp(max=7),
        num_mismatches=(2 * rows.requests).clamp(max=7),
    )
    rulings = RowArbiter(arbiter, K, exact_prefix_tokens=exact)(rows)
    judged = force(rows.target_logits, rows, rulings)
    emitted, accepted = stock_greedy(rows, judged, verified.target_ids[:, -1])
    tally = count_step(rows, rulings, accepted)
    for row, tokens, number in zip(walked, emitted, tally.num_overrides.tolist(), strict=True):
        kept = row.generated[7:]
        assert tokens[: len(kept)] == kept  # vLLM's scheduler cuts what a stop leaves over
        assert number == row.stats.num_overrides
    total = sum((row.stats for row in walked), start=walked[0].stats.__class__())
    assert tally.counts.tolist() == [
        total.num_strict_accepts,
        total.num_overrides,
        total.num_mismatches,
        total.num_non_finite_scores,
    ]
    assert int(tally.is_reached.sum()) == total.num_mismatches


@pytest.mark.parametrize("arbiter", [LogProbGap(2.0), learned(), AlwaysDraft()])
@pytest.mark.parametrize("is_sampled", [False, True])
def test_ruling_on_all_rows_is_ruling_on_those_that_can_be_kept(arbiter, is_sampled):
    p, q, ids = blocks(24, 11)
    rows = flat(p, q, ids, lengths=4 * [4, 0, 2, 4, 1, 3])
    rows = replace(
        rows,
        is_sampled=rows.requests % 2 == 0 if is_sampled else None,
        is_open=rows.requests != 3,
        is_drafted=rows.block_positions != 2,
    )
    compact, full = (
        RowArbiter(arbiter, K, keep_features=True, is_compact=flag)(rows) for flag in (True, False)
    )
    assert torch.equal(compact.keep_draft, full.keep_draft)
    assert compact.keep_draft.any() and not compact.keep_draft.all()
    assert torch.equal(compact.target_ids, full.target_ids)
    assert torch.equal(compact.is_non_finite, full.is_non_finite)
    if compact.features is not None:
        asked = compact.features.isfinite().all(dim=1)
        assert asked.any()
        torch.testing.assert_close(compact.features[asked], full.features[asked])


def test_a_step_without_a_row_to_rule_on_asks_nobody_and_copies_nothing():
    p, q, ids = blocks(6, 11)
    rows, recorder = flat(p, q, ids), Recorder(AlwaysDraft())
    closed = replace(rows, is_open=torch.zeros_like(rows.is_open))
    rulings = RowArbiter(recorder, K)(closed)
    assert not recorder.seen and not rulings.keep_draft.any() and rulings.is_mismatch.any()
    assert force(closed.target_logits, closed, rulings) is closed.target_logits
    sampled = replace(closed, is_sampled=torch.ones_like(rows.is_open))
    edited = force(closed.target_logits, sampled, rulings)  # vLLM divides it in place
    assert edited is not closed.target_logits and torch.equal(edited, closed.target_logits)
    assert not RowArbiter(AlwaysTarget(), K)(rows).keep_draft.any()

    class Changed(AlwaysTarget):
        def rule(self, batch):
            return AlwaysDraft().rule(batch)

    assert RowArbiter(Changed(), K)(rows).keep_draft.any()
    assert RowArbiter(recorder, K)(rows).keep_draft.any() and recorder.seen


@pytest.mark.parametrize("is_compact", [True, False])
def test_a_ruling_that_cannot_count_is_asked_for_only_where_a_log_shows_it(is_compact):
    p, q, ids = blocks(8, 11)
    rows = flat(p, q, ids)
    rows = replace(
        rows,
        num_mismatches=(rows.requests < 2).long(),
        num_overrides=torch.zeros_like(rows.requests),
        stop_ids=torch.where(rows.requests == 3, rows.draft_ids, -1)[:, None],
    )

    def asked(**options):
        recorder = Recorder(learned())
        found = RowArbiter(recorder, K, max_corrections=1, is_compact=is_compact, **options)(rows)
        return recorder.seen, found

    few, found = asked()
    shown, logged = asked(keep_features=True)
    assert torch.equal(found.keep_draft, logged.keep_draft) and found.keep_draft.any()
    num_few, num_shown = (sum(map(len, seen)) for seen in (few, shown))
    corrected = rows.requests < 2
    assert not found.keep_draft[corrected].any() and not found.keep_draft[rows.requests == 3].any()
    if is_compact:
        could_count = found.is_mismatch & ~corrected & (rows.requests != 3)
        assert num_few == int(could_count.sum()) < num_shown
    else:
        assert num_few == num_shown == len(rows.requests), "all rows, without waiting"


def test_rows_in_pieces_are_ruled_on_as_in_one_call(monkeypatch):
    p, q, ids = blocks(6, 2)
    rows, arbiter = flat(p, q, ids), learned()
    whole = RowArbiter(arbiter, K, keep_features=True)(rows)
    recorder = Recorder(arbiter)
    monkeypatch.setattr(bridge, "MAX_ELEMENTS", 5 * V)
    pieces = RowArbiter(recorder, K, keep_features=True)(rows)
    assert max(map(len, recorder.seen)) == 5
    assert torch.equal(whole.keep_draft, pieces.keep_draft)
    for a, b in [(whole.score, pieces.score), (whole.features, pieces.features)]:
        torch.testing.assert_close(a, b, equal_nan=True)


def one_mismatch(**changes):
    """A request with one drafted token, 1, where the target prefers 0."""
    p = torch.zeros(1, K + 1, V)
    p[..., 0], p[..., 1] = 2.0, 1.0
    q = torch.zeros(1, K, V)
    return flat(p, q, torch.ones(1, K, dtype=torch.int64), lengths=[1], **changes)


def with_logit(token, value):
    logits = one_mismatch().target_logits.clone()
    logits[0, token] = value
    return {"target_logits": logits}


INF, NAN = float("inf"), float("nan")
TRUE, FALSE = torch.tensor([True]), torch.tensor([False])
VETOES = {
    "the draft's token ends the text": (Scores(1.0), {"stop_ids": torch.tensor([[9, 1]])}),
    "the target's token ends the text": (Scores(1.0), {"stop_ids": torch.tensor([[0, -1]])}),
    "exact prefix": (Scores(1.0), {"positions": torch.tensor([4])}),
    "masked": (Scores(1.0), with_logit(1, -INF)),
    "truncated": (Scores(1.0), {"is_cut": TRUE}),
    "score NaN": (Scores(NAN), {}),
    "score infinite": (Scores(INF), {}),
    "target NaN": (Scores(1.0), with_logit(5, NAN)),
    "target infinite": (Scores(1.0), with_logit(5, INF)),
    "no token drafted": (Scores(1.0), {"is_drafted": FALSE, "draft_ids": torch.tensor([-1])}),
    "request opted out": (Scores(1.0), {"is_open": FALSE}),
    "threshold of the request": (Scores(0.6), {"thresholds": torch.tensor([0.7])}),
    "guarded, and a bold request": (Scores(0.0), {"thresholds": torch.tensor([-1e30])}),
    "no draft logits": (Recorder(AlwaysDraft()), {"draft_logits": None}),
    "no hidden states": (Recorder(AlwaysDraft(), Needs.TARGET_HIDDEN), {}),
    "no hidden states of the draft": (Recorder(AlwaysDraft(), Needs.DRAFT_HIDDEN), {}),
    "draft NaN": (learned(0.0), {"draft_logits": torch.full((1, V), NAN)}),
}


@pytest.mark.parametrize("is_compact", [False, True])
@pytest.mark.parametrize("arbiter, changes", VETOES.values(), ids=VETOES.keys())
def test_a_ruling_for_the_draft_is_turned_down(arbiter, changes, is_compact):
    rows = one_mismatch(**changes)
    rule_on = RowArbiter(arbiter, K, exact_prefix_tokens=5, is_compact=is_compact)
    rulings = rule_on(rows)
    assert not rulings.keep_draft.any()
    forced = force(rows.target_logits, rows, rulings)
    assert torch.equal(forced.nan_to_num(), rows.target_logits.nan_to_num())
    kept = RowArbiter(AlwaysDraft(), K, exact_prefix_tokens=5, is_compact=is_compact)(
        one_mismatch()
    )
    assert kept.keep_draft.all(), "without the change it stands"


def test_scores_that_are_not_finite_are_counted_where_they_were_reached():
    rows = one_mismatch()
    rulings = RowArbiter(Scores(NAN), K)(rows)
    assert count_step(rows, rulings, torch.tensor([0])).counts.tolist() == [0, 0, 1, 1]


def test_a_threshold_of_the_request_replaces_the_arbiters():
    p, q, ids = blocks(6, 4)
    rows, arbiter = flat(p, q, ids), learned(0.3)
    bold = replace(rows, thresholds=torch.full(rows.positions.shape, 0.12))
    own = replace(rows, thresholds=torch.full(rows.positions.shape, NAN))
    expected = RowArbiter(arbiter.with_threshold(0.12), K)(rows).keep_draft
    assert torch.equal(RowArbiter(arbiter, K)(bold).keep_draft, expected)
    assert not torch.equal(RowArbiter(arbiter, K)(rows).keep_draft, expected)
    assert torch.equal(
        RowArbiter(arbiter, K)(own).keep_draft, RowArbiter(arbiter, K)(rows).keep_draft
    )


def test_a_kept_token_gets_all_probability_in_a_copy():
    rows = flat(*blocks(1, 0), lengths=[3])
    logits = torch.randn(3, V)
    before = logits.clone()
    rows = replace(rows, draft_ids=torch.tensor([4, -1, 6]))
    judged = force(logits, rows, ruled(torch.tensor([True, False, False])))
    assert torch.equal(logits, before)
    assert torch.equal(judged[1:], before[1:])
    assert judged[0].softmax(dim=-1).tolist() == [float(i == 4) for i in range(V)]


def ruled(keep):
    """Rulings that keep some tokens."""
    return RowRulings(keep, keep, 0 * keep.long(), ~keep)


def test_after_the_end_of_a_text_nothing_is_forced_and_nothing_counts():
    p, q, _ = blocks(3, 0)
    ids = torch.full((3, K), 4)
    ids[0, 1] = STOP
    rows = replace(flat(p, q, ids), stop_ids=torch.full((3 * K, 1), STOP))
    last = torch.tensor([7, 7, STOP]).repeat_interleave(K)  # the third text had ended by a token
    read = torch.where(rows.block_positions == 0, last, rows.draft_ids.roll(1))
    earlier = rows.requests == 1  # and the second by one that was drafted
    ended = ended_before(earlier, read, rows.block_positions, rows.stop_ids)
    assert ended.tolist() == [False] * K + [True] * 2 * K
    rows = replace(rows, is_ended=ended)
    rulings = ruled(torch.ones(3 * K, dtype=torch.bool))
    judged = force(rows.target_logits, rows, rulings)
    is_forced = judged.isinf().any(dim=1)
    assert is_forced.tolist() == [True, True] + [False] * (3 * K - 2)
    tally = count_step(rows, rulings, torch.tensor([K, K, K]))
    assert tally.num_overrides.tolist() == [2, 0, 0] == tally.num_mismatches.tolist()
    assert tally.is_ended.tolist() == [True, False, False]
    assert tally.is_counted.sum() == 2


def test_a_sampled_token_stands_against_the_best_other_one():
    rows = one_mismatch(is_sampled=TRUE)
    recorder = Recorder(LogProbGap(0.5))
    likely = replace(rows, draft_ids=torch.tensor([0]))  # the target's favourite may be rejected
    assert RowArbiter(recorder, K)(likely).keep_draft.all()
    assert recorder.seen[0].target_ids.tolist() == [1]
    assert not RowArbiter(recorder, K)(rows).keep_draft.any()
    assert recorder.seen[1].target_ids.tolist() == [0]


def test_a_sampled_token_that_the_target_prefers_is_no_override():
    rows = one_mismatch(is_sampled=TRUE, draft_ids=torch.tensor([0]))
    rulings = RowArbiter(AlwaysDraft(), K)(rows)
    assert count_step(rows, rulings, torch.tensor([1])).counts.tolist() == [1, 0, 0, 0]
    assert count_step(rows, rulings, torch.tensor([0])).counts.tolist() == [0, 0, 1, 0]


def test_a_sampled_token_that_passed_the_accept_test_is_no_mismatch():
    p, q, _ = blocks(1, 2)
    second = p[:, :K].topk(2, dim=-1).indices[..., 1]  # never the target's most probable token
    rows = replace(flat(p, q, second), is_sampled=torch.ones(K, dtype=torch.bool))
    rulings = RowArbiter(AlwaysTarget(), K)(rows)
    tally = count_step(rows, rulings, torch.tensor([2]))
    assert tally.is_counted.tolist() == [True] * 3 + [False] * (K - 3)
    assert tally.is_reached.tolist() == [i == 2 for i in range(K)]
    assert tally.num_mismatches.tolist() == [1]
    recorder = Recorder(AlwaysTarget())
    RowArbiter(recorder, K)(rows)
    assert recorder.seen[0].num_mismatches.tolist() == [0] * K


def test_lookahead_ends_with_the_block_of_the_request():
    p, q, ids = blocks(3, 6)
    recorder = Recorder(AlwaysTarget())
    rows = flat(p, q, ids, lengths=[2, 1, 4])
    RowArbiter(recorder, K, is_compact=False)(rows)
    (batch,) = recorder.seen
    has_ended = torch.tensor([0, 1, 1] + [1] * 6 + [0, 0, 0] + [0, 0, 1] + [0, 1, 1] + [1] * 3)
    has_ended = has_ended.reshape(7, 3).bool()
    assert (batch.lookahead_log_p[has_ended] == 0).all()
    assert (batch.lookahead_log_p[~has_ended] < 0).all()
    assert not batch.lookahead_matches[has_ended].any()


def test_chance_comes_from_the_generator_and_is_the_same_on_every_rank():
    p, q, ids = blocks(40, 1)
    rows, arbiter = flat(p, q, ids), RandomOverride(0.5)
    first, second = (
        RowArbiter(arbiter, K, generator=torch.Generator().manual_seed(3))(rows).keep_draft
        for _ in range(2)
    )
    assert torch.equal(first, second)
    assert 0.3 < first.sum() / RowArbiter(AlwaysDraft(), K)(rows).keep_draft.sum() < 0.7


class NoWaiting(TorchDispatchMode):
    """Fails at operations whose result's shape or value the host has to wait for on a GPU."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "repeat_interleave")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        assert not name.startswith(self.WAITING), f"{name} waits for the device"
        if name in {"index", "index_put", "index_put_"}:
            assert all(i is None or i.dtype != torch.bool for i in args[1]), "a mask as an index"
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("arbiter", [LogProbGap(2.0), learned(), AlwaysDraft(), AlwaysTarget()])
@pytest.mark.parametrize("is_sampled", [False, True])
def test_nothing_waits_for_the_device(arbiter, is_sampled):
    p, q, ids = blocks(6, 11)
    rows = flat(p, q, ids, lengths=[4, 0, 2, 4, 1, 3])
    some = torch.ones(len(rows.positions)).bool()
    rows = replace(rows, is_sampled=some, is_cut=~some) if is_sampled else rows
    rule_on = RowArbiter(arbiter, K, keep_features=True, is_compact=False)
    with NoWaiting():
        rulings = rule_on(rows)
        force(rows.target_logits, rows, rulings)
        count_step(rows, rulings, torch.zeros(6, dtype=torch.int32))
    with pytest.raises(AssertionError, match="waits"), NoWaiting():
        replace(rule_on, is_compact=True)(rows)
