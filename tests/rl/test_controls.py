"""Methods that follow the target: what they play, learn from and see."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

from cospec.arbiters.policy import PolicyConfig
from cospec.engine import Engine
from cospec.features import SCALAR_NAMES
from cospec.rl.collect import Collector
from cospec.types import Origin
from tests.rl.helpers import (
    BOTH_SPOIL,
    NEXT,
    X_SPOILS,
    Y_WINS,
    A,
    B,
    C,
    X,
    Y,
    learner,
    letters,
    table_pair,
    trainer,
)

if TYPE_CHECKING:
    from cospec import ModelPair


@pytest.mark.parametrize("method", ["one_step", "gold", "autojudge"])
@pytest.mark.parametrize(
    ("pattern", "delta", "is_same"),
    [
        (Y_WINS, {X: 0, Y: 1}, {X: True, Y: False}),  # of a wrong text nothing is read off
        (X_SPOILS, {X: -1, Y: 0}, {X: False, Y: True}),  # two right texts are one answer
        (BOTH_SPOIL, {X: -1, Y: -1}, {X: False, Y: False}),
    ],
)
def test_a_control_learns_from_branches_that_leave_the_targets_own_path(
    table, tmp_path, monkeypatch, method, pattern, delta, is_same
) -> None:
    """And that go on as the target does: one token of a branch is the draft's."""
    played, left = [], []
    play, branches = Collector.play, Engine.branches

    def watched_play(*args: Any) -> Any:
        new = play(*args)
        played.extend(new)
        return new

    def watched_branches(engine: Engine, starts: Any, **options: Any) -> Any:
        ends = branches(engine, starts, **options)
        left.extend(zip(starts, ends, strict=True))
        return ends

    monkeypatch.setattr(Collector, "play", watched_play)
    monkeypatch.setattr(Engine, "branches", watched_branches)
    it = learner(table, letters(tmp_path, pattern), method=method, branches_per_rollout=9.0)
    it.play_round()
    path = [A, B, C] * 3
    assert all(one.rollout.completion.token_ids == path for one in played)
    assert all(Origin.OVERRIDE not in one.rollout.completion.origins for one in played)
    for start, end in left:
        expected = [*path[: start.position], start.token_id]
        while len(expected) < 9:
            expected.append(NEXT[expected[-1]][0])
        assert end.completion.token_ids == expected
        assert end.completion.origins.count(Origin.OVERRIDE) == 1
    tokens = [start.token_id for start, _ in left]
    assert set(tokens) == {X, Y} and len(tokens) == 8 * 6
    _, delta_reward, _, same = it.state.replay[0].columns
    assert delta_reward.tolist() == [delta[token] for token in tokens]
    assert same.tolist() == [is_same[token] for token in tokens]


@pytest.mark.parametrize(
    ("method", "patterns"),
    [
        ("one_step", [Y_WINS, X_SPOILS]),
        ("gold", [Y_WINS, X_SPOILS]),
        ("autojudge", [X_SPOILS]),
    ],
)
def test_a_control_learns_what_its_labels_say(table, tmp_path, method, patterns) -> None:
    """To keep each y, which wins an answer (or leaves it as it is), and no x, which loses one."""
    it = learner(table, letters(tmp_path, *patterns), method=method)
    for it.state.round in range(3):
        metrics = it.play_round()
        features, delta_reward, *_ = it.state.replay[-1].columns
        is_y = features[:, SCALAR_NAMES.index("log_p_draft")] > math.log(0.1)
        assert metrics["override_rate"] == 0 and metrics["accuracy"] == metrics["accuracy_target"]
    with torch.no_grad():
        assert torch.equal(it.state.policy(features) > 0, is_y) and is_y.any() and not is_y.all()
    assert metrics["branch_gain"] == float(delta_reward[is_y].sum()) / 8
    assert (metrics["branch_gain"] > 0) == (method != "autojudge")


def test_autojudge_learns_from_answers_that_stay_where_no_reward_differs(table, tmp_path) -> None:
    """Found: without a difference in reward there was no update at all."""
    changes = dict(method="autojudge", num_rounds=3, tune_every=3)
    it = learner(table, letters(tmp_path, "a"), **changes)
    arbiter = it.run()
    assert all(m["branches_that_differ"] == 0 for m in it.state.history)
    for completion, _ in it.collector.complete(arbiter, it.tune):
        assert {X, Y} <= {*completion.token_ids}


COMMA, LINE = 34, 35
"""Token ids of a comma and of the end of a line."""


@pytest.fixture(scope="module")
def sentences(tokenizer) -> ModelPair:
    """The target writes lines "ab"; the draft wants "a,b", which says the same, and "abx"."""
    wishes = {A: (B, COMMA), B: (LINE, X), LINE: (A, A), X: (LINE, LINE), COMMA: (B, B)}
    return table_pair(tokenizer, wishes)


@pytest.mark.parametrize(
    ("answer", "method", "kept"),
    [
        ("a", "r2r", {COMMA}),
        ("a", "autojudge", {COMMA, X}),
        ("ab\n", "r2r", {COMMA}),  # no answer has to change for that
    ],
)
def test_r2r_keeps_what_leaves_the_sentence_as_it_is_whatever_the_answer(
    sentences, tmp_path, answer, method, kept
) -> None:
    it = learner(sentences, letters(tmp_path, answer), method=method, branches_per_rollout=9.0)
    for it.state.round in range(2):
        it.play_round()
    features, _, _, is_harmless = it.state.replay[-1].columns
    is_comma = features[:, SCALAR_NAMES.index("draft_punctuation")] == 1
    assert is_comma.any() and not is_comma.all()
    if method == "r2r":
        assert torch.equal(is_harmless, is_comma)
    with torch.no_grad():
        is_kept = it.state.policy(features) > 0
    assert torch.equal(is_kept, is_comma | (X in kept))


@pytest.mark.parametrize("spec", ["scalar", "hidden"])
def test_r2r_decides_by_what_the_draft_alone_tells(pair, task, spec) -> None:
    """As a router does, which is asked before the target has read anything."""
    it = trainer(pair, task, method="r2r", features=spec)
    it.play_round()
    features, *_ = it.state.replay[-1].columns
    names = it.arbiter.features.names
    of_draft = {"log_q_draft", "entropy_q", "margin_q"}
    seen = [i for i, name in enumerate(names) if name in of_draft or name.startswith("draft_")]
    shift = torch.full((len(names),), 3.0)
    shift[seen] = 0.0
    with torch.no_grad():
        logits = it.state.policy(features)
        assert torch.equal(it.state.policy(features + shift), logits)
        moved = [it.state.policy(features + torch.eye(len(names))[i]) != logits for i in seen]
    assert any(m.any() for m in moved)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_autojudge_with_states_decides_by_those_behind_the_token_alone(pair, task, kind) -> None:
    it = trainer(pair, task, method="autojudge", features="hidden", policy=PolicyConfig(kind=kind))
    it.play_round()
    features, *_ = it.state.replay[-1].columns
    names = it.arbiter.features.names
    judged = ("target_hidden_after_", "draft_hidden_")
    is_seen = torch.tensor([name.startswith(judged) for name in names])
    assert 0 < is_seen.sum() < len(names)
    with torch.no_grad():
        logits = it.state.policy(features)
        assert torch.equal(it.state.policy(torch.where(is_seen, features, features + 3)), logits)
        assert (it.state.policy(torch.where(is_seen, features + 3, features)) != logits).any()
