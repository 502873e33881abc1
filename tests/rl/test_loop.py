"""The training loop: it goes on as if nothing had happened, stops in time, and learns."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from cospec import ModelPair
from cospec.arbiters.policy import Policy, PolicyConfig
from cospec.engine import Engine
from cospec.errors import ConfigError, CospecError
from cospec.evaluation.audit.dataset import read_dataset, write_dataset
from cospec.features import SCALAR_NAMES
from cospec.rl.config import TrainConfig
from cospec.rl.loop import Trainer
from cospec.rl.rollouts import Player
from cospec.rl.solutions import solution_decisions
from cospec.rl.updates import known_branches
from cospec.rl.warm import learn_from_audit
from cospec.tasks import load_task
from cospec.tasks.base import Score
from cospec.types import Origin
from tests.conftest import VOCAB, TableModel

if TYPE_CHECKING:
    from cospec.results import Json
    from cospec.tasks import Example, Task

ROOT = Path(__file__).parents[2]
TINY = dict(
    num_rounds=3,
    prompts_per_round=3,
    group_size=2,
    group_weight=0.2,
    branches_per_rollout=1.0,
    num_epochs=4,
    learning_rate=0.05,
    policy=PolicyConfig(hidden_size=4, init_logit=0.0),
    num_speculative_tokens=3,
    batch_size=8,
    max_new_tokens=8,
    tune_every=1,
    num_tune=2,
)


def trainer(pair: ModelPair, task: Task, folder: Path | None = None, **changes: Any) -> Trainer:
    examples = task.examples("test")
    return Trainer(pair, task, TrainConfig(**TINY | changes), examples[:7], examples[7:], folder)


class StopHereError(Exception):
    """What a user's Ctrl-C is to the loop."""


def stop(_: Json) -> None:
    raise StopHereError


def timeless(history: list[Json]) -> list[Json]:
    return [{k: v for k, v in m.items() if k not in ("seconds", "rollout_s")} for m in history]


def assert_same_state(one: Trainer, other: Trainer) -> None:
    assert (one.round, one.best, one.baselines) == (other.round, other.best, other.baselines)
    assert timeless(one.history) == timeless(other.history)
    weights = [[t.policy.state_dict(), t.start.state_dict(), t.best_policy] for t in (one, other)]
    torch.testing.assert_close(*weights, rtol=0, atol=0)
    assert len(one.replay) == len(other.replay)
    assert one.running_reward == other.running_reward
    for a, b in zip(one.replay, other.replay, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="module")
def whole(pair, task) -> Trainer:
    """A run that nothing interrupted."""
    it = trainer(pair, task)
    it.run()
    return it


# --- going on ----------------------------------------------------------------------------------


def test_a_run_learns_something_that_can_be_lost(whole) -> None:
    assert whole.round == len(whole.history) == len(whole.replay) == 3
    moved = whole.best_policy["layers.0.weight"] - whole.start.layers[0].weight
    assert moved.abs().max() > 0.05
    assert [m["round"] for m in whole.history] == [1, 2, 3]
    json.dumps(whole.history, allow_nan=False)


def test_a_run_interrupted_after_each_round_ends_as_one_that_was_not(
    whole, pair, task, tmp_path
) -> None:
    for num_done in (1, 2, 3):
        it = trainer(pair, task, tmp_path)
        assert it.round == num_done - 1
        with pytest.raises(StopHereError):
            it.run(stop)
        assert it.round == num_done
    last = trainer(pair, task, tmp_path)
    arbiter = last.run(stop)  # nothing is left to play, and so nothing to report
    assert_same_state(last, whole)
    assert arbiter.policy is last.policy


def test_at_a_temperature_the_policy_and_lossless_have_the_same_draws_on_the_tune_split(
    pair, task
) -> None:
    policy = PolicyConfig(init_logit=-50.0)
    it = trainer(pair, task, temperature=1.0, seed=3, policy=policy)
    never, base = it.evaluate(), it.baseline(it.tune)
    assert never["tune_relative_cost"] == 1.0
    assert (never["tune_wins"], never["tune_losses"]) == (0, 0)
    assert len({num for _, num in base}) > 1, "the test has something to see"


# --- a start from an audit ---------------------------------------------------------------------


def audit_file(folder: Path, names: tuple[str, ...] = SCALAR_NAMES) -> Path:
    """Forty mismatches at which the draft is right if, and only if, the target doubts itself."""
    features = torch.randn(40, len(names), generator=torch.Generator().manual_seed(0))
    is_unsure = (features[:, 0] > 0).tolist()
    mismatches = [
        {"position": i, "draft_id": 1, "target_id": 2, "features": row.tolist()}
        | {"draft_correct": unsure, "target_correct": not unsure}
        for i, (row, unsure) in enumerate(zip(features, is_unsure, strict=True))
    ]
    write_dataset(folder / "audit.safetensors", [{"id": "a", "mismatches": mismatches}], names, {})
    return folder / "audit.safetensors"


@pytest.mark.parametrize("method", ["rl", "gold"])
def test_what_an_audit_tells_is_learnt_before_the_first_round(pair, task, tmp_path, method) -> None:
    path = audit_file(tmp_path)
    it = trainer(pair, task, warm_start=path, method=method, num_epochs=60, num_rounds=1)
    learn_from_audit(it, path)
    features = read_dataset(path, SCALAR_NAMES)["features"]
    keep = it.policy(features) > 0
    assert ((features[:, 0] > 0) == keep).float().mean() > 0.9
    mean = it.policy.mean.clone()
    it.run()
    assert len(it.replay) == 2
    assert torch.equal(it.policy.mean, mean)


def test_a_warm_run_interrupted_after_a_round_ends_as_one_that_was_not(
    pair, task, tmp_path
) -> None:
    path = audit_file(tmp_path)
    whole = trainer(pair, task, warm_start=path)
    whole.run()
    for _ in range(2):
        with pytest.raises(StopHereError):
            trainer(pair, task, tmp_path, warm_start=path).run(stop)
    last = trainer(pair, task, tmp_path, warm_start=path)
    last.run()
    assert_same_state(last, whole)


def solved(task: Task) -> list[Example]:
    texts = ["ten hens and an ant", "the end is near the stone", "oats or red ants"]
    found = zip(task.examples("test"), texts, strict=False)
    return [replace(example, metadata={"solution": text}) for example, text in found]


def solving(pair: ModelPair, task: Task, folder: Path | None = None, **changes: Any) -> Trainer:
    settings = dict(num_solutions=3, num_solution_epochs=5, num_rounds=2, kl_weight=0.1) | changes
    it = trainer(pair, task, folder, **settings)
    it.solved = solved(task)
    return it


def test_what_solutions_teach_is_where_the_rounds_start(pair, task) -> None:
    it = solving(pair, task)
    it.run()
    assert [m["round"] for m in it.history] == [0, 1, 2]
    assert it.history[0]["num_solution_decisions"] > 0
    assert {"loss", "tune_accuracy", "is_best"} <= set(it.history[0])
    assert torch.equal(it.policy.mean, it.start.mean)
    assert len(it.replay) == 2
    only = solving(pair, task, num_rounds=0)
    only.run()
    assert len(only.history) == 1
    weights = [t.start.state_dict() for t in (it, only)]
    torch.testing.assert_close(*weights, rtol=0, atol=0)
    torch.testing.assert_close(only.best_policy, only.start.state_dict(), rtol=0, atol=0)


def test_behind_solutions_a_correction_is_all_that_rounds_learn(pair, task) -> None:
    shape = PolicyConfig(hidden_size=4, init_logit=0.0, dropout=0.3, correction=True)
    it = solving(pair, task, policy=shape, branches_per_rollout=9.0)
    it.run()
    ahead = SCALAR_NAMES.index("lookahead_run")
    assert torch.isinf(only_solved(pair, task, shape).std[ahead])
    assert torch.isfinite(it.policy.std[ahead])
    learnt = {"correction.weight", "correction.bias"}
    before = it.start.state_dict()
    for name, weights in it.policy.state_dict().items():
        assert torch.equal(weights, before[name]) == (name not in learnt)
    assert before["correction.weight"].count_nonzero() == 0
    solved_alone = only_solved(pair, task, shape).state_dict()
    for name in ("layers.0.bias", "layers.2.weight", "layers.2.bias"):
        assert torch.equal(before[name], solved_alone[name])


def only_solved(pair: ModelPair, task: Task, shape: PolicyConfig) -> Policy:
    it = solving(pair, task, policy=shape, num_rounds=0)
    it.run()
    return it.policy


def test_a_correction_without_solutions_is_refused() -> None:
    with pytest.raises(ConfigError, match="correction is on and num_solutions is 0"):
        TrainConfig(policy=PolicyConfig(correction=True))


@pytest.mark.parametrize("corrects", [False, True])
def test_a_run_from_solutions_interrupted_anywhere_ends_as_one_that_was_not(
    pair, task, tmp_path, monkeypatch, corrects
) -> None:
    monkeypatch.setattr("cospec.rl.warm._SLICE", 1)
    shape = PolicyConfig(hidden_size=4, init_logit=0.0, correction=corrects)
    solve = partial(solving, pair, task, policy=shape)
    whole = solve()
    whole.run()
    read, calls = solution_decisions, []

    def once(*args: Any) -> Any:
        calls.append(args)
        return stop({}) if len(calls) == 2 else read(*args)

    with monkeypatch.context() as patch:
        patch.setattr("cospec.rl.warm.solution_decisions", once)
        with pytest.raises(StopHereError):
            solve(folder=tmp_path).run()
        patch.setattr("cospec.rl.warm.imitate", lambda *_: stop({}))
        with pytest.raises(StopHereError):
            solve(folder=tmp_path).run()
    assert len(calls) == 4, "the first was not read again"
    assert [path.name for path in tmp_path.iterdir()] == ["solutions.safetensors"]
    with monkeypatch.context() as patch:
        patch.setattr("cospec.rl.warm.solution_decisions", lambda *_: stop({}))  # not read again
        for _ in range(2):
            with pytest.raises(StopHereError):
                solve(folder=tmp_path).run(stop)
    last = solve(folder=tmp_path)
    last.run()
    assert_same_state(last, whole)


def test_solutions_that_settle_nothing_are_refused(pair, task) -> None:
    it = solving(pair, task)
    it.solved = [replace(example, metadata={"solution": "x" * 999}) for example in it.solved]
    with pytest.raises(ConfigError, match="settle no mismatch"):
        it.run()


def test_what_was_read_of_solutions_is_shared_by_runs_alike_and_by_no_others(
    pair, task, tmp_path
) -> None:
    path = tmp_path / "read.safetensors"
    one = solving(pair, task, solutions=path, num_rounds=0)
    one.run()
    other = solving(pair, task, solutions=path, num_rounds=0, seed=1)
    other.solved = []  # nothing is left to read
    other.run()
    assert torch.equal(one.policy.mean, other.policy.mean)
    with pytest.raises(ConfigError, match="of 3 solutions, and num_solutions is 2; name another"):
        solving(pair, task, solutions=path, num_solutions=2).run()
    with pytest.raises(ConfigError, match="solutions with another features; name"):
        solving(pair, task, solutions=path, features="hidden").run()
    with pytest.raises(ConfigError, match="solutions with another temperature; name"):
        solving(pair, task, solutions=path, temperature=1.0).run()
    path.write_text("no")
    with pytest.raises(ConfigError, match="is not what was read of solutions"):
        solving(pair, task, solutions=path).run()


def test_a_file_of_few_solutions_is_gone_on_with_for_more(
    pair, task, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("cospec.rl.warm._SLICE", 1)
    path, whole = tmp_path / "read.safetensors", tmp_path / "whole.safetensors"
    few = solving(pair, task, solutions=path, num_solutions=2, num_rounds=0)
    few.solved = few.solved[:2]
    few.run()
    more, all_at_once = (solving(pair, task, solutions=p, num_rounds=0) for p in (path, whole))
    more.run()
    all_at_once.run()
    numbers = [t.history[0]["num_solution_decisions"] for t in (few, more, all_at_once)]
    assert 0 < numbers[0] < numbers[1] == numbers[2]
    assert_same_state(more, all_at_once)


def test_what_solutions_show_at_a_temperature_does_not_depend_on_how_many_are_read_at_once(
    pair, task, monkeypatch
) -> None:
    def seen(**changes: Any) -> tuple[int, torch.Tensor]:
        it = solving(pair, task, num_rounds=0, **changes)
        it.run()
        return it.history[0]["num_solution_decisions"], it.policy.mean

    greedy, at_once = seen(), seen(temperature=1.0)
    monkeypatch.setattr("cospec.rl.warm._SLICE", 1)
    one_by_one = seen(temperature=1.0)
    assert one_by_one[0] == at_once[0]
    torch.testing.assert_close(one_by_one[1], at_once[1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(at_once[1], greedy[1])


def test_an_audit_that_cannot_be_learnt_from_is_refused(pair, task, tmp_path) -> None:
    with pytest.raises(ConfigError, match="methods rl and gold, and the method is autojudge"):
        trainer(pair, task, warm_start=tmp_path / "x", method="autojudge")
    with pytest.raises(ConfigError, match="not a data set of cospec audit"):
        trainer(pair, task, warm_start=tmp_path / "x").run()
    (tmp_path / "y").write_text("no")
    with pytest.raises(ConfigError, match="not a data set of cospec audit"):
        trainer(pair, task, warm_start=tmp_path / "y").run()
    path = audit_file(tmp_path, SCALAR_NAMES[:-1])
    with pytest.raises(ConfigError, match=r"must hold the 33 features .* holds 32 others"):
        trainer(pair, task, warm_start=path).run()


# --- going on ----------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["branch", "update", "evaluate", "save"])
def test_a_round_that_is_cut_short_is_played_again(
    whole, pair, task, tmp_path, monkeypatch, moment
) -> None:
    """In the second round, whose file of the first round stands until its own is whole."""
    it = trainer(pair, task, tmp_path)
    with pytest.raises(StopHereError):
        it.run(stop)
    state = (tmp_path / "state.pt").read_bytes()
    owner = it.player if moment == "branch" else it
    with monkeypatch.context() as patch:
        if moment == "save":
            patch.setattr(torch, "save", save_half)
        else:
            patch.setattr(owner, moment, lambda *_: stop({}))
        with pytest.raises(StopHereError):
            it.run()
    assert (tmp_path / "state.pt").read_bytes() == state
    again = trainer(pair, task, tmp_path)
    assert again.round == 1
    again.run()
    assert_same_state(again, whole)


def save_half(state: object, path: Path) -> None:
    import io

    buffer = io.BytesIO()
    torch.serialization.save(state, buffer)
    Path(path).write_bytes(buffer.getvalue()[: buffer.tell() // 2])
    raise StopHereError


KILLED = """
import os, signal, sys
from pathlib import Path
from transformers import PreTrainedTokenizerFast
from cospec import ModelPair
from cospec.rl.rollouts import Player
from cospec.rl.solutions import solution_decisions
from cospec.rl.updates import known_branches
from cospec.rl.warm import learn_from_audit
from cospec.tasks import load_task
from tests.conftest import family_pair
from tests.rl.test_loop import trainer

tokenizer, task, folder = sys.argv[1:]
models = family_pair("llama")
pair = ModelPair(
    models.target, models.draft, PreTrainedTokenizerFast.from_pretrained(tokenizer)
)
real, num_calls = Player.branch, 0

def branch(*args):
    global num_calls
    num_calls += 1
    if num_calls == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args)

Player.branch = branch
trainer(pair, load_task(task), Path(folder)).run()
"""


def test_a_run_that_was_killed_goes_on_to_the_same_arbiter(whole, pair, task, tmp_path) -> None:
    """In another process: nothing of the first one's memory is at hand."""
    pair.tokenizer.save_pretrained(tmp_path / "tokenizer")
    folder = tmp_path / "run"
    folder.mkdir()
    arguments = [str(tmp_path / "tokenizer"), task.name, str(folder)]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert killed.returncode == -9, killed.stderr
    it = trainer(pair, task, folder)
    assert it.round == 1 and timeless(it.history) == timeless(whole.history[:1])
    it.run()
    assert_same_state(it, whole)


@pytest.mark.parametrize("method", ["gold", "autojudge", "r2r", "reinforce"])
def test_a_control_interrupted_after_each_round_ends_as_one_that_was_not(
    pair, task, tmp_path, method
) -> None:
    """The running baseline of reinforce is part of the state."""
    whole = trainer(pair, task, method=method)
    whole.run()
    for _ in range(3):
        with pytest.raises(StopHereError):
            trainer(pair, task, tmp_path, method=method).run(stop)
    last = trainer(pair, task, tmp_path, method=method)
    last.run(stop)
    assert_same_state(last, whole)
    assert (last.running_reward is not None) == (method == "reinforce")


def test_another_seed_is_another_run(whole, pair, task) -> None:
    it = trainer(pair, task, seed=1, num_rounds=1)
    it.run()
    assert timeless(it.history) != timeless(whole.history[:1])


# --- what is played ----------------------------------------------------------------------------


def test_rounds_take_the_next_problems_over_and_over_and_decode_each_losslessly_once(
    pair, task, monkeypatch
) -> None:
    played, lossless, seeds = [], [], []
    real_play, real_lossless = Player.play, Player.lossless

    def play(it: Player, arbiter: Any, examples: Any, *rest: Any) -> Any:
        played.append([example.id for example in examples])
        seeds.append(rest[-1])
        return real_play(it, arbiter, examples, *rest)

    def baseline(it: Player, examples: Any) -> Any:
        lossless.extend(example.id for example in examples)
        return real_lossless(it, examples)

    monkeypatch.setattr(Player, "play", play)
    monkeypatch.setattr(Player, "lossless", baseline)
    it = trainer(pair, task)
    it.run()
    ids = [example.id for example in it.train]
    assert played == [ids[:3], ids[3:6], [ids[6], *ids[:2]]]
    assert sorted(lossless) == sorted(example.id for example in [*it.train, *it.tune])
    assert len(set(seeds)) == 3, "each round tosses coins of its own"


def test_the_policy_plays_by_chance_and_is_tuned_by_threshold(pair, task, monkeypatch) -> None:
    seen = []
    real = Player.engine

    def engine(it: Player, arbiter: Any) -> Any:
        seen.append(getattr(arbiter, "is_stochastic", None))
        return real(it, arbiter)

    monkeypatch.setattr(Player, "engine", engine)
    trainer(pair, task, num_rounds=1).run()
    assert seen == [None, True, True, None, False]  # lossless, play, branch, lossless, tune


def test_features_are_normalised_by_the_first_round_and_never_again(whole, pair, task) -> None:
    it = trainer(pair, task, num_rounds=1)
    it.run()
    assert it.policy.mean.any() and (it.policy.std != 1).any()
    torch.testing.assert_close(whole.policy.mean, it.policy.mean, rtol=0, atol=0)
    torch.testing.assert_close(whole.policy.std, it.policy.std, rtol=0, atol=0)


def test_the_metrics_of_a_round_are_those_of_its_rollouts(pair, task, monkeypatch) -> None:
    found = []
    real = Player.play

    def play(*args: Any) -> Any:
        found.append(real(*args))
        return found[-1]

    monkeypatch.setattr(Player, "play", play)
    it = trainer(pair, task, num_rounds=1, cost_weight=0.3, prompts_per_round=7, max_new_tokens=20)
    it.run()
    (metrics,), (played,) = it.history, found
    rewards = [one.is_right - 0.3 * one.cost for one in played]
    assert metrics["reward"] == pytest.approx(sum(rewards) / 14)
    assert metrics["accuracy"] == sum(one.is_right for one in played) / 14
    assert metrics["relative_cost"] == pytest.approx(sum(one.cost for one in played) / 14)
    assert 0 < metrics["accuracy"] < 1 and metrics["relative_cost"] != 1
    flat = sum(abs(a - b) < 1e-9 for a, b in zip(rewards[::2], rewards[1::2], strict=True))
    assert metrics["frac_reward_zero_std"] == pytest.approx(flat / 7)
    bits = [m.keep_draft for one in played for m in one.decisions]
    assert metrics["override_rate"] == sum(bits) / len(bits)
    assert metrics["num_branches"] == len(it.replay[0][0]) == 14


@pytest.mark.parametrize(("init_logit", "share"), [(1.0, 1), (0.0, 0)])
def test_the_gain_of_a_round_is_what_the_policy_would_have_won_on_branches_it_has_not_seen(
    pair, task, init_logit, share
) -> None:
    """The policy of the first round keeps everything, or nothing."""
    policy = PolicyConfig(hidden_size=4, init_logit=init_logit)
    it = trainer(pair, task, policy=policy, prompts_per_round=7, max_new_tokens=20)
    gain = it.play_round()["branch_gain"]
    delta_right = it.replay[0][1]
    assert delta_right.any() and gain == pytest.approx(share * float(delta_right.sum()) / 7)


@pytest.mark.parametrize("round_number", [0, 1])
def test_a_round_without_a_decision_is_refused_or_leaves_the_policy_whole(
    pair, task, round_number
) -> None:
    """A draft that is the target never disagrees; in short answers a good one may not either."""
    it = trainer(ModelPair(pair.target, pair.target, pair.tokenizer), task)
    it.round = round_number
    seen = torch.randn(4, len(SCALAR_NAMES)), torch.ones(4), torch.zeros(4), torch.ones(4).bool()
    it.replay = [seen] * round_number
    with contextlib.suppress(CospecError):
        json.dumps(it.play_round(), allow_nan=False)
    for weight in it.policy.state_dict().values():
        assert weight.isfinite().all()


@pytest.mark.parametrize(
    ("name", "metric", "rises"), [("entropy_bonus", "entropy", True), ("kl_weight", "kl", False)]
)
def test_the_policy_is_held_by_the_entropy_bonus_and_by_the_price_of_leaving_the_start(
    pair, task, name, metric, rises
) -> None:
    found = []
    for weight in (0.0, 10.0):
        it = trainer(pair, task, num_rounds=1, num_epochs=20, **{name: weight})
        it.run()
        found.append(it.history[-1][metric])
    assert found[1] > found[0] + 0.02 if rises else found[1] < found[0] / 2


def test_branches_of_older_rounds_count_less_with_age(pair, task) -> None:
    it = trainer(pair, task, replay_decay=0.5, cost_weight=0.25)
    it.run()
    expected = [
        [*row.tolist(), float(right - 0.25 * cost), float(is_same), weight]
        for parts, weight in zip(it.replay, (0.25, 0.5, 1.0), strict=True)
        for row, right, cost, is_same in zip(*parts, strict=True)
    ]
    features, *columns = known_branches(it.replay, it.config)
    found = torch.cat([features, *(column[:, None] for column in columns)], dim=1).tolist()
    assert len(expected) == sum(m["num_branches"] for m in it.history) > 15
    torch.testing.assert_close(torch.tensor(sorted(found)), torch.tensor(sorted(expected)))
    forgetful = trainer(pair, task, replay_decay=0.0)
    forgetful.replay = it.replay
    *_, weight = known_branches(forgetful.replay, forgetful.config)
    assert set(weight.tolist()) == {0.0, 1.0}
    assert weight.count_nonzero() == it.history[-1]["num_branches"]


# --- stopping ----------------------------------------------------------------------------------


def scripted(it: Trainer, accuracies: list[float]) -> list[dict[str, torch.Tensor]]:
    """Let the answers of the tune split be right so often, evaluation by evaluation.

    Returns:
        The policy at each evaluation, filled in as they come.
    """
    snapshots: list[dict[str, torch.Tensor]] = []
    evaluate, score = it.evaluate, it.player.score
    tune = {example.id: i for i, example in enumerate(it.tune)}

    def judge(example: Any, completion: Any) -> Score:
        if example.id not in tune:
            return score(example, completion)
        return Score(float(tune[example.id] < accuracies[len(snapshots) - 1] * len(tune)))

    def watched() -> Json:
        snapshots.append({k: v.clone() for k, v in it.policy.state_dict().items()})
        return evaluate()

    it.evaluate, it.player.score = watched, judge  # type: ignore[method-assign]
    return snapshots


def test_the_policy_that_was_best_on_the_tune_split_is_the_one_returned(
    pair, task, tmp_path
) -> None:
    """The second of four, the first of the two that are as good; also after a restart."""
    it = trainer(pair, task, tmp_path, num_rounds=4, cost_weight=0.0)
    snapshots = scripted(it, [0.5, 1.0, 1.0, 0.0])
    arbiter = it.run()
    assert [m["tune_accuracy"] for m in it.history] == [0.5, 1.0, 1.0, 0.0]
    assert [m["is_best"] for m in it.history] == [True, True, False, False]
    assert it.best["round"] == 2
    found = arbiter.policy.state_dict()
    torch.testing.assert_close(found, snapshots[1], rtol=0, atol=0)
    for other in (0, 2, 3):
        assert not torch.equal(snapshots[other]["layers.0.weight"], found["layers.0.weight"])
    again = trainer(pair, task, tmp_path, num_rounds=4, cost_weight=0.0).run(stop)
    torch.testing.assert_close(again.policy.state_dict(), found, rtol=0, atol=0)
    assert not again.is_stochastic and again.threshold == 0.5
    assert again.max_mismatch_rate == arbiter.max_mismatch_rate


@pytest.mark.parametrize(
    ("tune_every", "patience", "accuracies", "num_rounds"),
    [
        (1, 1, [0.5, 0.5], 2),  # as good is no better
        (1, 2, [0.5, 0.0, 1.0, 0.5, 0.5], 5),  # a better one starts the count again
        (2, 1, [0.5, 0.0], 4),  # patience is in evaluations
        (4, 1, [0.5, 0.5], 6),  # the last round is tuned in any case
    ],
)
def test_training_stops_after_so_many_evaluations_without_a_better_one(
    pair, task, tune_every, patience, accuracies, num_rounds
) -> None:
    it = trainer(
        pair,
        task,
        num_rounds=6,
        cost_weight=0.0,
        tune_every=tune_every,
        patience=patience,
        prompts_per_round=2,
    )
    snapshots = scripted(it, accuracies)
    it.run()
    assert (it.round, len(snapshots)) == (num_rounds, len(accuracies))
    tuned = [m["round"] for m in it.history if "tune_accuracy" in m]
    expected = [r for r in range(1, num_rounds + 1) if r % tune_every == 0 or r == 6]
    assert tuned == expected


def test_dropout_changes_what_is_learnt_and_follows_from_the_seed_alone(pair, task) -> None:
    weights = []
    for dropout in (0.0, 0.3, 0.3):
        torch.rand(1)  # the global generator has no part in it
        it = trainer(pair, task, policy=PolicyConfig(init_logit=0.0, dropout=dropout))
        it.play_round()
        weights.append(it.policy.state_dict()["layers.0.weight"])
    assert torch.equal(weights[1], weights[2]) and not torch.equal(weights[0], weights[1])


# --- settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_rounds": 0}, "num_rounds is 0; it must be at least 1"),
        ({"prompts_per_round": 0}, "prompts_per_round is 0"),
        ({"group_size": 0}, "group_size is 0"),
        ({"num_epochs": -1}, "num_epochs is -1"),
        ({"num_speculative_tokens": 0}, "num_speculative_tokens is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"tune_every": 0}, "tune_every is 0"),
        ({"num_tune": 0}, "num_tune is 0"),
        ({"patience": 0}, "patience is 0"),
        ({"branches_per_rollout": -1.0}, "branches_per_rollout is -1.0; it must be at least 0"),
        ({"cost_weight": -0.1}, "cost_weight is -0.1"),
        ({"group_weight": -1.0}, "group_weight is -1.0"),
        ({"entropy_bonus": -1e-3}, "entropy_bonus is -0.001"),
        ({"kl_weight": -1.0}, "kl_weight is -1.0"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"replay_decay": 1.0}, r"replay_decay is 1.0; it must be in \[0, 1\)"),
        ({"replay_decay": -0.1}, "replay_decay is -0.1"),
        ({"clip": 1.0}, r"clip is 1.0; it must be in \[0, 1\)"),
        ({"clip": math.nan}, "clip is nan"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be positive"),
        ({"group_weight": 0.1}, "a group of one has no advantage; raise it to 2"),
        ({"branches_per_rollout": 0.0, "group_weight": 0.0}, "nothing to learn"),
        ({"branches_per_rollout": 0.0, "method": "gold"}, "gold learns from branches"),
        ({"branches_per_rollout": 0.0, "method": "autojudge"}, "autojudge learns from branches"),
        ({"branches_per_rollout": 0.0, "method": "r2r"}, "r2r learns from branches"),
        (
            {"method": "reinforc"},
            r"unknown method 'reinforc'; did you mean 'reinforce'\? Allowed: autojudge, gold, r2r,",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"learning_rate": math.nan},
        {"cost_weight": math.nan},
        {"entropy_bonus": math.inf},
        {"max_new_tokens": 0},
        {"max_new_tokens": -3},
    ],
    ids=str,
)
def test_settings_that_are_no_numbers_or_no_lengths_are_refused_too(values) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        TrainConfig(**values)


def test_groups_of_one_are_allowed_where_they_are_not_used() -> None:
    config = TrainConfig(group_size=1, group_weight=0.0, policy=PolicyConfig(kind="linear"))
    TrainConfig(method="reinforce", branches_per_rollout=0.0)
    assert config.to_dict()["policy"]["kind"] == "linear"
    assert TrainConfig(**config.to_dict() | {"policy": config.policy}) == config


# --- learning ----------------------------------------------------------------------------------
#
# A pair that is a table. The target alone writes a b c a b c ...; after an a the draft wants a y,
# and after a b an x; both models know how to go on behind either.

A, B, C, X, Y = (6 + ord(letter) - ord("a") for letter in "abcxy")
NEXT = {A: (B, Y), B: (C, X), C: (A, A), X: (C, C), Y: (B, B)}
"""What the target and the draft think most probable behind a letter."""


def table_pair(tokenizer: Any, wishes: dict[int, tuple[int, int]]) -> ModelPair:
    target, draft = torch.full((2, VOCAB, VOCAB), 1e-4)
    target[:, A] = draft[:, A] = 1.0
    for letter, (ours, theirs) in wishes.items():
        for rows in (target, draft):
            rows[letter] = 1e-4
        target[letter, theirs] = 0.2 if theirs == Y else 0.05
        target[letter, ours] = draft[letter, theirs] = 0.7
    models = [TableModel(rows / rows.sum(dim=1, keepdim=True)) for rows in (target, draft)]
    return ModelPair(*models, tokenizer)


@pytest.fixture(scope="module")
def table(tokenizer) -> ModelPair:
    return table_pair(tokenizer, NEXT)


def letters(folder: Path, *answers: str) -> Task:
    """An answer is right if it matches the pattern; the problems take the patterns in turn."""
    path = folder / "letters.jsonl"
    patterns = itertools.cycle(answers)
    rows = [{"question": "the " * (i + 1), "answer": next(patterns)} for i in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_task(f"jsonl:{path},scorer=regex,split=test")


def learner(table: ModelPair, task: Task, **changes: Any) -> Trainer:
    settings = dict(
        num_rounds=6,
        prompts_per_round=8,
        group_size=4,
        group_weight=0.2,
        branches_per_rollout=2.0,
        cost_weight=0.0,
        num_epochs=40,
        learning_rate=1e-2,
        policy=PolicyConfig(hidden_size=8),
        max_new_tokens=9,
        tune_every=6,
    )
    examples = task.examples("test")
    config = TrainConfig(**settings | changes)
    return Trainer(table, task, config, examples[:8], examples[8:])


@pytest.mark.parametrize(
    "credit",
    [
        pytest.param({}, id="both"),
        pytest.param({"group_size": 1, "group_weight": 0.0}, id="branches"),
        pytest.param(
            {"branches_per_rollout": 0.0, "group_weight": 1.0, "group_size": 8},
            id="groups",
        ),
    ],
)
def test_the_arbiter_learns_which_of_the_drafts_tokens_the_answer_needs(
    table, tmp_path, credit
) -> None:
    """Right is an answer with a y, which only the draft proposes, and without its x."""
    it = learner(table, letters(tmp_path, "^[^x]*y[^x]*$"), **credit)
    it.run()
    first, last = it.history[0], it.history[-1]
    assert first["accuracy_target"] == 0 and first["accuracy"] < 0.45
    assert last["accuracy"] > 0.8 and last["reward"] > first["reward"] + 0.4
    assert last["tune_accuracy"] == 1 and last["tune_wins"] == 4 and last["tune_losses"] == 0


def test_where_overrides_spoil_every_answer_they_are_unlearnt(table, tmp_path) -> None:
    task = letters(tmp_path, "^[^xy]*$")
    it = learner(table, task, num_rounds=3, policy=PolicyConfig(hidden_size=8, init_logit=0.0))
    it.run()
    rates = [m["override_rate"] for m in it.history]
    assert rates[0] > 0.35 and rates[-1] < 0.1
    assert it.history[-1]["tune_accuracy"] == 1


def test_where_no_reward_differs_the_policy_stays_as_it_was(table, tmp_path) -> None:
    it = learner(table, letters(tmp_path, "a"), num_rounds=3, tune_every=3)
    it.run()
    assert all(m["branches_that_differ"] == 0 for m in it.history)
    assert all(m["frac_reward_zero_std"] == 1 for m in it.history)
    assert max(m["override_rate"] for m in it.history) < 0.25


def test_where_every_answer_is_right_a_price_of_time_teaches_to_override(table, tmp_path) -> None:
    it = learner(table, letters(tmp_path, "a"), num_rounds=4, tune_every=4, cost_weight=1.0)
    it.run()
    first, last = it.history[0], it.history[-1]
    assert first["accuracy"] == last["accuracy"] == 1
    assert first["override_rate"] < 0.25 and last["override_rate"] > 0.75
    assert last["relative_cost"] < first["relative_cost"] - 0.2


# --- controls ----------------------------------------------------------------------------------

Y_WINS, X_SPOILS, BOTH_SPOIL = "^[^x]*y[^x]*$", "^[^x]*$", "^[^xy]*$"


@pytest.mark.parametrize("method", ["gold", "autojudge"])
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
    play, branches = Player.play, Engine.branches

    def watched_play(*args: Any) -> Any:
        new = play(*args)
        played.extend(new)
        return new

    def watched_branches(engine: Engine, starts: Any) -> Any:
        ends = branches(engine, starts)
        left.extend(zip(starts, ends, strict=True))
        return ends

    monkeypatch.setattr(Player, "play", watched_play)
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
    _, delta_right, _, same = it.replay[0]
    assert delta_right.tolist() == [delta[token] for token in tokens]
    assert same.tolist() == [is_same[token] for token in tokens]


@pytest.mark.parametrize(
    ("method", "patterns"), [("gold", [Y_WINS, X_SPOILS]), ("autojudge", [X_SPOILS])]
)
def test_a_control_learns_what_its_labels_say(table, tmp_path, method, patterns) -> None:
    """To keep each y, which wins an answer (or leaves it as it is), and no x, which loses one."""
    it = learner(table, letters(tmp_path, *patterns), method=method)
    for it.round in range(3):
        metrics = it.play_round()
        features, delta_right, *_ = it.replay[-1]
        is_y = features[:, SCALAR_NAMES.index("log_p_draft")] > math.log(0.1)
        assert metrics["override_rate"] == 0 and metrics["accuracy"] == metrics["accuracy_target"]
    with torch.no_grad():
        assert torch.equal(it.policy(features) > 0, is_y) and is_y.any() and not is_y.all()
    assert metrics["branch_gain"] == float(delta_right[is_y].sum()) / 8
    assert (metrics["branch_gain"] > 0) == (method == "gold")


def test_autojudge_learns_from_answers_that_stay_where_no_reward_differs(table, tmp_path) -> None:
    """Found: without a difference in reward there was no update at all."""
    changes = dict(method="autojudge", num_rounds=3, tune_every=3)
    it = learner(table, letters(tmp_path, "a"), **changes)
    arbiter = it.run()
    assert all(m["branches_that_differ"] == 0 for m in it.history)
    prompts, settings = it.player.prompts(it.tune, 0)
    for completion in it.player.engine(arbiter).generate(prompts, settings):
        assert {X, Y} <= {*completion.token_ids}


COMMA, LINE = 34, 35
"""What the tokenizer has for a comma and for the end of a line."""


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
    for it.round in range(2):
        it.play_round()
    features, _, _, is_harmless = it.replay[-1]
    is_comma = features[:, SCALAR_NAMES.index("draft_punctuation")] == 1
    assert is_comma.any() and not is_comma.all()
    if method == "r2r":
        assert torch.equal(is_harmless, is_comma)
    with torch.no_grad():
        is_kept = it.policy(features) > 0
    assert torch.equal(is_kept, is_comma | (X in kept))


@pytest.mark.parametrize("spec", ["scalar", "hidden"])
def test_r2r_decides_by_what_the_draft_alone_tells(pair, task, spec) -> None:
    """As a router does, which is asked before the target has read anything."""
    it = trainer(pair, task, method="r2r", features=spec)
    it.play_round()
    features, *_ = it.replay[-1]
    names = it.arbiter.features.names
    of_draft = {"log_q_draft", "entropy_q", "margin_q"}
    seen = [i for i, name in enumerate(names) if name in of_draft or name.startswith("draft_")]
    shift = torch.full((len(names),), 3.0)
    shift[seen] = 0.0
    with torch.no_grad():
        logits = it.policy(features)
        assert torch.equal(it.policy(features + shift), logits)
        moved = [it.policy(features + torch.eye(len(names))[i]) != logits for i in seen]
    assert any(m.any() for m in moved)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_autojudge_with_states_decides_by_those_behind_the_token_alone(pair, task, kind) -> None:
    it = trainer(pair, task, method="autojudge", features="hidden", policy=PolicyConfig(kind=kind))
    it.play_round()
    features, *_ = it.replay[-1]
    names = it.arbiter.features.names
    judged = ("target_hidden_after_", "draft_hidden_")
    is_seen = torch.tensor([name.startswith(judged) for name in names])
    assert 0 < is_seen.sum() < len(names)
    with torch.no_grad():
        logits = it.policy(features)
        assert torch.equal(it.policy(torch.where(is_seen, features, features + 3)), logits)
        assert (it.policy(torch.where(is_seen, features + 3, features)) != logits).any()


def test_reinforce_learns_without_a_branch(table, tmp_path) -> None:
    it = learner(
        table, letters(tmp_path, Y_WINS), method="reinforce", group_size=8, group_weight=0.0
    )
    it.run()
    first, last = it.history[0], it.history[-1]
    assert all(m["num_branches"] == m["branch_gain"] == 0 for m in it.history)
    assert all(len(part) == 0 for parts in it.replay for part in parts)
    assert last["reward"] > first["reward"] + 0.4 and last["tune_accuracy"] == 1


def test_the_baseline_of_reinforce_runs_behind_the_rewards_of_the_rounds(pair, task) -> None:
    """By hand: the mean of the first round, then 0.9 of it and 0.1 of the next one's."""
    it = trainer(pair, task, method="reinforce")
    assert it._advantages(torch.tensor([[1.0, 0.0], [0.5, 0.5]])).tolist() == [0.5, -0.5, 0, 0]
    assert it.running_reward == 0.5
    assert it._advantages(torch.tensor([[1.0, 1.0]])).tolist() == [0.5, 0.5]
    assert it.running_reward == pytest.approx(0.55)


def test_reinforce_takes_the_baseline_from_the_rewards_that_were_played(pair, task) -> None:
    it = trainer(pair, task, method="reinforce", max_new_tokens=20)
    rewards = [it.play_round()["reward"] for it.round in range(2)]
    assert rewards[0] != rewards[1]
    assert it.running_reward == pytest.approx(0.9 * rewards[0] + 0.1 * rewards[1])


def test_rewards_that_are_all_the_same_teach_reinforce_exactly_nothing(pair, task) -> None:
    """Found: their mean may miss them by a rounding error, of which Adam makes whole steps."""
    rewards = (torch.arange(1, 200) * 0.05 - 5)[:, None, None].expand(-1, 7, 1)
    assert (rewards - rewards.mean(dim=1, keepdim=True)).any(), "this test says nothing"
    it = trainer(pair, task, method="reinforce")
    for same in rewards:
        it.running_reward = None
        assert not it._advantages(same).any() and not it._advantages(same).any()
    assert it._advantages(same + 1e-4).all()


@pytest.mark.parametrize("group_weight", [0.0, 1.0])
def test_rewards_that_do_not_count_move_nothing(table, tmp_path, group_weight) -> None:
    """Found: with advantages of weight 0 the optimiser followed the entropy bonus alone."""
    changes = dict(branches_per_rollout=1e-9, group_weight=group_weight)
    policy = PolicyConfig(hidden_size=8, init_logit=-1.0)
    it = learner(table, letters(tmp_path, Y_WINS), policy=policy, **changes)
    assert it.play_round()["frac_reward_zero_std"] < 1
    assert len(it.replay[0][0]) == 0
    moved = it.policy.layers[-1].weight - it.start.layers[-1].weight
    assert bool(moved.any()) == bool(group_weight)


def test_branches_that_have_aged_away_move_nothing(table, tmp_path) -> None:
    """Found: they let the optimiser follow the entropy bonus alone."""
    it = learner(table, letters(tmp_path, "a"), group_size=1, group_weight=0.0, replay_decay=0.0)
    seen = torch.randn(4, len(SCALAR_NAMES)), torch.ones(4), torch.zeros(4), torch.ones(4).bool()
    it.replay = [seen]
    it.play_round()
    assert len(it.replay) == 2 and not it.replay[1][1].any()
    assert not (it.policy.layers[-1].weight - it.start.layers[-1].weight).any()
