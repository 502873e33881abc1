"""Rollouts and branches, found again by decoding without shared caches."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import torch

from cospec.arbiters import AlwaysTarget
from cospec.arbiters.observed import Observed
from cospec.backends.base import Rollout
from cospec.backends.engine import EngineBackend
from cospec.config import DecodeConfig, SamplingConfig
from cospec.engine import Branch, Engine
from cospec.features import SCALAR_NAMES
from cospec.rl.collect import Collector
from cospec.rl.credit import assign_credit
from cospec.rl.types import Played
from cospec.tasks.base import Score
from cospec.types import Completion, FinishReason, Origin, Ruling, Stats, StepTrace
from tests.rl.conftest import GAP, arbiter, coin, gap_policy, train_config

if TYPE_CHECKING:
    from cospec import ModelPair
    from cospec.arbiters.learned import LearnedArbiter
    from cospec.arbiters.policy import Policy
    from cospec.rl.types import Baseline, BranchData
    from cospec.tasks import Example, Task
    from cospec.types import MismatchBatch, MismatchTrace


NUM_TOKENS, K = 20, 4
DECODE = DecodeConfig(K, batch_size=256)


def collector(pair: ModelPair, task: Task, **changes: object) -> Collector:
    settings = dict(
        group_size=2,
        branches_per_rollout=100.0,
        num_speculative_tokens=K,
        batch_size=256,
        max_new_tokens=NUM_TOKENS,
    )
    config = train_config(**settings | changes)
    backend = EngineBackend(pair, config.rollouts)
    return Collector(backend, pair, task, config, len(SCALAR_NAMES))


class Session:
    """Rollouts of one policy on the problems, and the means to decode them again."""

    def __init__(
        self, it: Collector, policy: Policy, examples: list[Example], seed: int = 0
    ) -> None:
        self.collector, self.policy, self.examples = it, policy, examples
        self.known: dict[str, Baseline] = {}
        self.lossless = it.baseline(examples, self.known)
        self.num_forwards = [num for _, num in self.lossless]
        self.played = it.play(arbiter(policy), examples, self.known, seed)

    def branch(self, seed: int = 1):
        return self.collector.branch(
            arbiter(self.policy), self.examples, self.lossless, self.played, seed
        )

    def decisions(self) -> list[tuple[Played, MismatchTrace]]:
        """Each place of each text once."""
        found = {}
        for one in self.played:
            ids = one.rollout.completion.token_ids
            for m in one.decisions:
                found.setdefault((one.place, *ids[: m.position]), (one, m))
        return list(found.values())

    def decode(self, kept: list[tuple[Played, list[int]]], limits: list[int]) -> list:
        """(Whether it is right, target forwards) of texts that begin so, under the threshold."""
        pair = self.collector._pair
        engine = self.collector._backend._engine(arbiter(self.policy, explore=0.0))
        ends: list = [(ids, 0) for _, ids in kept]
        open_ones = [
            i
            for i, (_, ids) in enumerate(kept)
            if len(ids) < limits[i] and not set(ids[-1:]) & pair.eos_token_ids
        ]
        prompts = [kept[i][0].rollout.completion.prompt_ids + kept[i][1] for i in open_ones]
        settings = [SamplingConfig(max_new_tokens=limits[i] - len(kept[i][1])) for i in open_ones]
        for i, c in zip(open_ones, engine.generate(prompts, settings), strict=True):
            ends[i] = (kept[i][1] + c.token_ids, c.stats.num_target_forwards)
        return [
            (self.is_right(one.place, ids), num)
            for (one, _), (ids, num) in zip(kept, ends, strict=True)
        ]

    def is_right(self, place: int, ids: list[int]) -> bool:
        text = self.collector._pair.tokenizer.decode(ids, skip_special_tokens=True)
        return self.collector._task.score(self.examples[place], text).correct


@pytest.fixture(scope="module")
def sure(pair, task, examples) -> Session:
    """A policy that is sure everywhere; either ruling of it is right, wrong or neither."""
    return Session(collector(pair, task), gap_policy(2.0), examples)


@pytest.fixture(scope="module")
def sure_branches(sure) -> BranchData:
    return sure.branch()


@pytest.fixture(scope="module")
def tossed(pair, task, examples) -> Session:
    return Session(collector(pair, task, group_size=3), coin(0.0), examples, seed=8)


# --- rollouts ----------------------------------------------------------------------------------


def test_the_lossless_baseline_is_the_targets_own_answer_at_the_cost_of_speculation(
    tossed, pair, task, examples
) -> None:
    prompts = [task.prompt(example, pair.tokenizer) for example in examples]
    sampling = SamplingConfig(max_new_tokens=NUM_TOKENS)
    alone = Engine.target_only(pair, DECODE).generate(prompts, sampling)
    speculative = Engine(pair, AlwaysTarget(), DECODE).generate(prompts, sampling)
    for example, a, b, found in zip(examples, alone, speculative, tossed.lossless, strict=True):
        assert found == (task.score(example, a.text).correct, b.stats.num_target_forwards)


def test_rewards_and_costs_are_those_of_decoding(tossed, pair, task, examples) -> None:
    repeated = [example for example in examples for _ in range(3)]
    prompts = [task.prompt(example, pair.tokenizer) for example in repeated]
    engine = Engine(pair, arbiter(tossed.policy), DECODE)
    done = engine.generate(prompts, SamplingConfig(max_new_tokens=NUM_TOKENS, seed=8))
    base = Engine(pair, AlwaysTarget(), DECODE).generate(
        prompts, SamplingConfig(max_new_tokens=NUM_TOKENS)
    )
    assert [one.place for one in tossed.played] == sorted(list(range(len(examples))) * 3)
    for example, one, c, b in zip(repeated, tossed.played, done, base, strict=True):
        assert one.rollout.completion.token_ids == c.token_ids
        assert one.is_right == task.score(example, c.text).correct
        assert one.cost == c.stats.num_target_forwards / b.stats.num_target_forwards
    assert {one.is_right for one in tossed.played} == {True, False}
    texts = [tuple(one.rollout.completion.token_ids) for one in tossed.played]
    assert any(len(set(texts[i : i + 3])) > 1 for i in range(0, len(texts), 3)), "own coins each"


def test_a_sure_policy_plays_as_its_threshold_does(sure, pair, task, examples) -> None:
    engine = Engine(pair, arbiter(sure.policy, explore=0.0), DECODE)
    prompts = [task.prompt(example, pair.tokenizer) for example in examples]
    done = engine.generate(prompts, SamplingConfig(max_new_tokens=NUM_TOKENS))
    for one in sure.played:
        assert one.rollout.completion.token_ids == done[one.place].token_ids
    rulings = Counter(m.keep_draft for one in sure.played for m in one.decisions)
    assert rulings[True] >= 10 and rulings[False] >= 10


def test_at_a_temperature_rollouts_are_sampled_and_so_are_their_branches(
    pair, task, examples
) -> None:
    never = Session(collector(pair, task, temperature=1.0), coin(-1e5), examples, seed=8)
    prompts = [task.prompt(example, pair.tokenizer) for example in examples for _ in range(2)]
    engine = Engine(pair, AlwaysTarget(), DECODE)
    sampling = SamplingConfig(max_new_tokens=NUM_TOKENS, temperature=1.0, seed=8)
    done = engine.generate(prompts, sampling)
    texts = [one.rollout.completion.token_ids for one in never.played]
    assert texts == [completion.token_ids for completion in done]
    assert any(a != b for a, b in zip(texts[::2], texts[1::2], strict=True))
    one, again, other = (never.branch(seed) for seed in (1, 1, 2))
    assert len(one) == len(other) >= 10
    assert torch.equal(one.delta_cost, again.delta_cost)
    assert not torch.equal(one.delta_cost, other.delta_cost), "coins of their own"


def test_a_decision_was_reached_and_tells_what_the_policy_saw(tossed, pair) -> None:
    num_decisions = num_mismatches = 0
    for one in tossed.played:
        completion = one.rollout.completion
        for m in one.decisions:
            assert not {m.draft_id, m.target_id} & pair.eos_token_ids, "a safety rule settles it"
            assert m.is_reached and m.veto is None and len(m.features) == tossed.policy.mean.numel()
            token = completion.token_ids[m.position]
            assert token == (m.draft_id if m.keep_draft else m.target_id)
            origin = completion.origins[m.position]
            assert origin is (Origin.OVERRIDE if m.keep_draft else Origin.CORRECTION)
        mismatches = [m for s in completion.trace for m in s.mismatches if m.is_reached]
        settled = [m for m in mismatches if {m.draft_id, m.target_id} & pair.eos_token_ids]
        assert all(m in one.decisions for m in mismatches if m not in settled)
        num_decisions += len(one.decisions)
        num_mismatches += len(mismatches)
    assert 0 < num_decisions < num_mismatches, "no safety rule was met: this test says little"


def test_the_policys_coins_fall_with_its_probability(pair, task, examples) -> None:
    """More than 5 standard deviations off about once in two million seeds; this one is fixed."""
    session = Session(collector(pair, task, group_size=5), coin(-1.0), examples, seed=4)
    bits = [
        m.keep_draft
        for one in session.played
        for m in one.decisions
        if not {m.draft_id, m.target_id} & pair.eos_token_ids
    ]
    p = float(torch.sigmoid(torch.tensor(-1.0)))
    sigma = (p * (1 - p) / len(bits)) ** 0.5
    assert abs(sum(bits) / len(bits) - p) < 5 * sigma < 0.1


def test_the_same_seed_plays_the_same_and_another_one_does_not(pair, task, examples) -> None:
    def play(seed: int, batch_size: int) -> Session:
        it = collector(pair, task, branches_per_rollout=4.0, batch_size=batch_size)
        return Session(it, coin(0.0), examples[:2], seed=seed)

    def texts(session: Session) -> list[list[int]]:
        return [one.rollout.completion.token_ids for one in session.played]

    session = play(8, 16)
    assert texts(play(8, 4)) == texts(session) != texts(play(9, 16))
    first, second, third = session.branch(3), play(8, 4).branch(3), session.branch(4)
    for name in ("delta_reward", "delta_cost"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    torch.testing.assert_close(first.features, second.features)
    assert not torch.equal(first.features, third.features), "other ones are drawn"


def test_a_round_played_two_problems_at_a_time_is_the_round_played_at_once(
    pair, task, sure, sure_branches
) -> None:
    it = collector(pair, task, prompts_per_chunk=2)
    played, data = it.round(arbiter(sure.policy), sure.examples, sure.known, 0)
    for one, expected in zip(played, sure.played, strict=True):
        assert (one.place, one.is_right, one.cost) == (
            expected.place,
            expected.is_right,
            expected.cost,
        )
        assert one.rollout.completion.token_ids == expected.rollout.completion.token_ids
        assert one.rollout.handle is None, "only those of two problems are held"
    for name in ("delta_reward", "delta_cost", "is_harmless"):
        parts = [getattr(it, name).sort().values for it in (data, sure_branches)]
        torch.testing.assert_close(*parts)
    sums = [it.features.sum(dim=0) for it in (data, sure_branches)]
    torch.testing.assert_close(*sums, rtol=1e-3, atol=1e-3)


def test_problems_that_are_not_played_together_toss_coins_of_their_own(
    pair, task, examples
) -> None:
    it = collector(pair, task, group_size=1, branches_per_rollout=1.0, prompts_per_chunk=1)
    twice = [examples[0]] * 2
    (first, second), _ = it.round(arbiter(coin(0.0)), twice, {}, 0)
    assert first.rollout.completion.token_ids != second.rollout.completion.token_ids


def test_a_problem_draws_the_same_numbers_in_any_company_and_others_than_the_next(
    pair, task, examples
) -> None:
    """Found: the first problem of each chunk, and of each round, had the baseline's same draws."""
    it = collector(pair, task, temperature=1.0)
    first, twin = examples[0], replace(examples[0], id="twin")

    def text(*played: Example) -> list[int]:
        *_, end = it.complete(AlwaysTarget(), played)
        return end.completion.token_ids

    assert text(first) == text(examples[1], examples[2], first)
    assert text(twin) == text(first, twin) != text(first)


def test_rollouts_that_keep_no_draft_token_are_not_decoded_again(sure, monkeypatch) -> None:
    num_decoded = []
    complete = EngineBackend.complete

    def counted(self, items, *rest, **options):
        num_decoded.append(len(items))
        return complete(self, items, *rest, **options)

    monkeypatch.setattr(EngineBackend, "complete", counted)
    known: dict[str, Baseline] = {}
    size = len(sure.examples)
    target = Observed(AlwaysTarget(), arbiter(sure.policy).features)
    sure.collector.round(target, sure.examples * 2, known, 0)
    assert num_decoded == [4 * size], "two rollouts each of every problem, and nothing more"
    assert known == sure.known
    num_decoded.clear()
    sure.collector.round(arbiter(sure.policy), sure.examples, {}, 0)
    assert num_decoded[0] == 2 * size
    assert 0 < num_decoded[1] <= size, "texts with overrides are not the target's"


# --- branches ----------------------------------------------------------------------------------


def key(m: MismatchTrace) -> tuple[float, ...]:
    """A decision's features: no two decisions share them."""
    return tuple(m.features.tolist())


def other_ruling(one: Played, m: MismatchTrace) -> tuple[Played, list[int]]:
    """The text up to a decision, with the token that was ruled against."""
    token_id = m.target_id if m.keep_draft else m.draft_id
    return one, [*one.rollout.completion.token_ids[: m.position], token_id]


def test_the_difference_of_a_branch_is_that_of_both_rulings_decoded_afresh(
    sure, sure_branches
) -> None:
    """A block begins behind the token that is put down, and with it other places of bonus tokens
    than in the block that an override goes on in: what was ruled is decoded from the start.
    """
    decisions, data = sure.decisions(), sure_branches
    limits = [NUM_TOKENS] * len(decisions)
    ruled = sure.decode([(one, []) for one, _ in decisions], limits)
    other = sure.decode([other_ruling(*decision) for decision in decisions], limits)
    expected = {
        key(m): (m.keep_draft, (float(a) - float(b)) * (1 if m.keep_draft else -1))
        for (_, m), (a, _), (b, _) in zip(decisions, ruled, other, strict=True)
    }
    assert len(data) == len(decisions) == len(expected) > 50
    assert {tuple(row) for row in data.features.tolist()} == set(expected)
    for row, delta in zip(data.features.tolist(), data.delta_reward.tolist(), strict=True):
        assert delta == expected[tuple(row)][1]
    every_kind = {(keep, sign) for keep in (True, False) for sign in (-1, 0, 1)}
    assert set(expected.values()) == every_kind, "choose another policy"


def test_answers_that_are_not_right_get_a_share_of_their_reward_if_asked_for(
    pair, task, examples, sure_branches
) -> None:
    def generous(example: Example, text: str) -> Score:
        score = task.score(example, text)
        return score if score.correct else Score(0.5 * (len(text) % 2))

    def deltas(weight: float) -> list[float]:
        it = collector(pair, replace(task, scorer=generous), partial_reward=weight)
        session = Session(it, gap_policy(2.0), examples)
        values = [one.score.value(weight) - 0.05 * one.cost for one in session.played]
        reward = assign_credit(session.played, it._config, None).metrics["reward"]
        assert reward == pytest.approx(sum(values) / len(values))
        return session.branch().delta_reward.tolist()

    right = sure_branches.delta_reward.tolist()
    assert deltas(0.0) == right
    assert {round(b - a, 6) for a, b in zip(right, deltas(0.6), strict=True)} >= {0, -0.3, 0.3}


def test_the_targets_token_decoded_afresh_is_the_rollout_itself(sure) -> None:
    decisions = [(one, m) for one, m in sure.decisions() if not m.keep_draft]
    kept = [(one, one.rollout.completion.token_ids[: m.position + 1]) for one, m in decisions]
    ends = sure.decode(kept, [NUM_TOKENS] * len(kept))
    assert [right for right, _ in ends] == [one.is_right for one, _ in decisions]


@pytest.fixture(scope="module")
def branch_costs(sure) -> dict[tuple[float, ...], tuple[MismatchTrace, float, int]]:
    """By features: the decision, what its delta_cost should be, and the branch's own forwards.

    The forwards until the decision are those of decoding no further than that.
    """
    decisions = sure.decisions()
    until = sure.decode([(one, []) for one, _ in decisions], [m.position + 1 for _, m in decisions])
    kept = [other_ruling(*decision) for decision in decisions]
    behind = sure.decode(kept, [NUM_TOKENS] * len(decisions))
    expected = {}
    for (one, m), (_, before), (_, after) in zip(decisions, until, behind, strict=True):
        cost = float(before + after)
        if not m.keep_draft and after:
            cost -= (K - m.block_position) / (K + 1)
        difference = one.cost - cost / sure.num_forwards[one.place]
        expected[key(m)] = (m, difference * (1 if m.keep_draft else -1), after)
    return expected


def test_the_cost_of_a_branch_is_counted_from_the_start_less_the_block_that_it_repeats(
    sure_branches, branch_costs
) -> None:
    """After the target's token a block begins anyway; after the draft's the engine would go on in
    the one at hand, whose rest is K - j of K + 1 tokens.
    """
    data, places = sure_branches, set()
    for row, delta in zip(data.features.tolist(), data.delta_cost.tolist(), strict=True):
        m, cost, num_forwards = branch_costs[tuple(row)]
        if num_forwards:
            assert delta == pytest.approx(cost, abs=1e-6)
            places.add((m.keep_draft, m.block_position))
    assert {j for keep, j in places if not keep} == set(range(K))
    assert any(keep for keep, _ in places)


def test_a_branch_that_ends_with_the_drafts_token_costs_what_was_spent_until_then(
    sure_branches, branch_costs
) -> None:
    data = sure_branches
    found = dict(zip(map(tuple, data.features.tolist()), data.delta_cost.tolist(), strict=True))
    ended = {
        features: cost
        for features, (m, cost, num_forwards) in branch_costs.items()
        if not num_forwards and not m.keep_draft
    }
    if not ended:
        pytest.fail("no branch ends at once: this test says nothing")
    for features, cost in ended.items():
        assert found[features] == pytest.approx(cost, abs=1e-6)


def text_of_blocks(num_tokens: int, starts: list[int], k: int = 3) -> Rollout:
    """A text with blocks that begin at these places, each a counted target forward."""
    trace = [StepTrace(start, k, k, 0, ()) for start in starts]
    stats = Stats(num_tokens=num_tokens, num_drafts=len(starts))
    ids, origins = [1] * num_tokens, [Origin.MATCH] * num_tokens
    return Rollout(Completion(0, [1], ids, "", origins, FinishReason.LENGTH, stats, trace))


@pytest.mark.parametrize(
    ("num_tokens", "starts", "cost"),
    [
        (12, [6, 10], 2 + 2),  # our engine: a block begins behind the branch's token
        (6, [], 2),  # the branch's token ends the text
        (12, [7, 11], 2 + 2 + 0.25),  # vLLM: a token of the target's own comes first
        (7, [], 2 + 0.25),  # and ends the text
    ],
)
def test_a_token_that_came_without_a_forward_costs_what_those_of_the_rollout_do(
    num_tokens, starts, cost
) -> None:
    """Found: in vLLM the first token after a branch was free, so that branches were too cheap."""
    one = Played(0, text_of_blocks(12, [0, 4, 8]), Score(1.0), 1.0, [])
    m = SimpleNamespace(position=5, block_position=1, keep_draft=True)
    end = text_of_blocks(num_tokens, starts)
    assert Collector._cost(one, m, end) == cost
    in_block = (3 - 1) / (3 + 1) if starts else 0.0
    assert Collector._cost(one, SimpleNamespace(**vars(m) | {"keep_draft": False}), end) == (
        cost - in_block
    )


def test_no_token_of_a_branch_is_free_on_our_engine(sure, monkeypatch) -> None:
    """Its first block begins behind the branch's token, unless that ends the text."""
    seen = []
    real = EngineBackend.branch

    def branch(self, points, arbiter, **options):
        ends = real(self, points, arbiter, **options)
        seen.extend(zip(points, ends, strict=True))
        return ends

    monkeypatch.setattr(EngineBackend, "branch", branch)
    sure.branch()
    for point, end in seen:
        trace = end.completion.trace
        first = trace[0].position if trace else len(end.completion.token_ids)
        assert first == point.position + 1
    assert len(seen) > 50 and not all(end.completion.trace for _, end in seen)


class ButFor:
    """Rules as another arbiter does, but for the draft at one place."""

    def __init__(self, rule: LearnedArbiter, m: MismatchTrace) -> None:
        self.name, self.needs = "but for", rule.needs
        self._rule, self._m = rule, m

    def rule(self, batch: MismatchBatch) -> Ruling:
        is_there = (batch.positions == self._m.position) & (batch.draft_ids == self._m.draft_id)
        return Ruling(self._rule.rule(batch).keep_draft | is_there)


def test_on_average_the_cost_of_an_override_is_that_of_an_engine_that_goes_on_in_the_block(
    sure, sure_branches, pair
) -> None:
    """Within 0.02 of the lossless cost, where forgetting the correction is off by 0.05."""
    found = {
        tuple(row): (right, cost)
        for row, right, cost in zip(
            sure_branches.features.tolist(),
            sure_branches.delta_reward.tolist(),
            sure_branches.delta_cost.tolist(),
            strict=True,
        )
    }
    decisions = [
        (one, m)
        for one, m in sure.decisions()
        if not m.keep_draft and not {m.draft_id, m.target_id} & pair.eos_token_ids
    ][1::3]
    rule, sampling = arbiter(sure.policy, explore=0.0), SamplingConfig(NUM_TOKENS)
    errors, num_as_right = [], 0
    for one, m in decisions:
        engine = sure.collector._backend._engine(ButFor(rule, m))
        (c,) = engine.generate([one.rollout.completion.prompt_ids], sampling)
        right, cost = found[key(m)]
        num_as_right += right == sure.is_right(one.place, c.token_ids) - one.is_right
        spent = c.stats.num_target_forwards / sure.num_forwards[one.place]
        errors.append(cost - (spent - one.cost))
    assert len(errors) > 15
    assert abs(sum(errors) / len(errors)) < 0.02
    assert num_as_right >= 0.95 * len(errors)


@pytest.fixture(scope="module")
def tossed_branches(tossed) -> list[Branch]:
    """Branches that the engine is told to play."""
    found: list[Branch] = []
    real = Engine.branches

    def spy(engine: Engine, branches: list[Branch], **kwargs: object):
        found.extend(branches)
        return real(engine, branches, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "branches", spy)
        tossed.branch()
    return found


def test_no_place_of_a_text_is_branched_twice(tossed, tossed_branches) -> None:
    branches = tossed_branches
    places = [
        (*b.rollout.completion.prompt_ids, -1, *b.rollout.completion.token_ids[: b.position])
        for b in branches
    ]
    shared = sum(len(one.decisions) for one in tossed.played) - len(tossed.decisions())
    assert shared > 10, "rollouts of a problem begin alike"
    assert len(set(places)) == len(places) == len(tossed.decisions())


def test_a_branch_puts_down_the_token_that_was_ruled_against_and_tosses_coins_of_its_own(
    tossed_branches,
) -> None:
    for b in tossed_branches:
        completion = b.rollout.completion
        (m,) = [m for s in completion.trace for m in s.mismatches
                if m.position == b.position and m.is_reached]  # fmt: skip
        assert {b.token_id, completion.token_ids[b.position]} == {m.draft_id, m.target_id}
        assert b.token_id != completion.token_ids[b.position]
        assert b.origin is (Origin.CORRECTION if m.keep_draft else Origin.OVERRIDE)
        assert b.rollout.config.seed not in (None, 8)


@pytest.mark.parametrize("per_rollout", [0.25, 1.0])
def test_so_many_decisions_are_branched_as_the_config_says(
    per_rollout, pair, task, examples
) -> None:
    it = collector(pair, task, branches_per_rollout=per_rollout)
    session = Session(it, coin(0.0), examples)
    assert len(session.branch()) == round(per_rollout * len(session.played))


def test_doubtful_decisions_are_branched_first(pair, task, examples) -> None:
    """A policy that tosses a fair coin where the gap is small, and none where it is large: there
    are 0.27 / 0.02 as many draws of the one as of the other.
    """
    policy = gap_policy(0.7, sharpness=50)
    with torch.no_grad():
        policy.layers[-1].bias.fill_(0.0)
        policy.layers[-1].weight[0, GAP] = -8.0
    session = Session(collector(pair, task, branches_per_rollout=0.5), policy, examples)

    def share(scores: list[float]) -> float:
        return sum(0.1 < score < 0.9 for score in scores) / len(scores)

    everywhere = share([m.score for _, m in session.decisions()])
    logits = torch.cat([policy(session.branch(seed).features) for seed in range(3)])
    assert everywhere < 0.4 and share(torch.sigmoid(logits).tolist()) > 2 * everywhere


def test_no_branches_are_an_empty_table_of_features(pair, task, examples) -> None:
    it = collector(pair, task, branches_per_rollout=0.0, group_weight=1.0)
    session = Session(it, coin(0.0), examples[:1])
    data = session.branch()
    assert len(data) == 0 and data.features.shape == (0, session.policy.mean.numel())
    assert data.is_harmless.dtype == torch.bool
