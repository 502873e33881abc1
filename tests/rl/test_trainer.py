"""The training loop: what is played, what is recorded, and when it stops."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from cospec import ModelPair, load_arbiter
from cospec.arbiters.policy import PolicyConfig
from cospec.backends.engine import EngineBackend
from cospec.errors import ConfigError, PromptError, TaskError
from cospec.evaluation.problems import prompt_ids
from cospec.features import SCALAR_NAMES
from cospec.rl.collect import Collector
from cospec.rl.trainer import Trainer
from cospec.rl.types import BranchData
from cospec.rl.updates import known_branches
from cospec.tasks.base import Score
from tests.rl.helpers import StopHereError, stop, timeless, trainer

if TYPE_CHECKING:
    from cospec.results import Json
    from cospec.tasks import Task


def test_at_a_temperature_the_policy_and_lossless_have_the_same_draws_on_the_tune_split(
    pair, task
) -> None:
    policy = PolicyConfig(init_logit=-50.0)
    it = trainer(pair, task, temperature=1.0, seed=3, policy=policy)
    never, base = it.evaluate(), it.collector.baseline(it.tune, {})
    assert never["tune_relative_cost"] == 1.0
    assert (never["tune_wins"], never["tune_losses"]) == (0, 0)
    assert len({num for _, num in base}) > 1, "the test has something to see"


def test_another_seed_is_another_run(whole, pair, task) -> None:
    it = trainer(pair, task, seed=1, num_rounds=1)
    it.run()
    assert timeless(it.state.history) != timeless(whole.state.history[:1])


def test_rounds_take_the_next_problems_over_and_over_and_decode_each_losslessly_once(
    pair, task, monkeypatch
) -> None:
    played, lossless, seeds = [], [], []
    real_play, real_complete = Collector.play, EngineBackend.complete

    def play(it: Collector, arbiter: Any, examples: Any, *rest: Any) -> Any:
        played.append([example.id for example in examples])
        seeds.append(rest[-1])
        return real_play(it, arbiter, examples, *rest)

    def complete(it: EngineBackend, items: Any, arbiter: Any, **options: Any) -> Any:
        if arbiter.name == "lossless":
            lossless.extend(item.prompt for item in items)
        return real_complete(it, items, arbiter, **options)

    monkeypatch.setattr(Collector, "play", play)
    monkeypatch.setattr(EngineBackend, "complete", complete)
    it = trainer(pair, task)
    it.run()
    ids = [example.id for example in it.train]
    assert played == [ids[:3], ids[3:6], [ids[6], *ids[:2]]]
    assert sorted(lossless) == sorted(prompt_ids(pair, task, [*it.train, *it.tune]))
    assert len(set(seeds)) == 3, "each round tosses coins of its own"


def test_the_policy_plays_by_chance_and_is_tuned_by_threshold(pair, task, monkeypatch) -> None:
    seen = []
    real = EngineBackend._engine

    def engine(it: EngineBackend, arbiter: Any) -> Any:
        seen.append(getattr(arbiter, "explore", None))
        return real(it, arbiter)

    monkeypatch.setattr(EngineBackend, "_engine", engine)
    trainer(pair, task, num_rounds=1).run()
    assert seen == [None, 1.0, 1.0, None, 0.0]  # lossless, play, branch, lossless, tune


def test_features_are_normalized_by_the_first_round_and_never_again(whole, pair, task) -> None:
    it = trainer(pair, task, num_rounds=1)
    it.run()
    assert it.state.policy.mean.any() and (it.state.policy.std != 1).any()
    torch.testing.assert_close(whole.state.policy.mean, it.state.policy.mean, rtol=0, atol=0)
    torch.testing.assert_close(whole.state.policy.std, it.state.policy.std, rtol=0, atol=0)


def test_the_metrics_of_a_round_are_those_of_its_rollouts(pair, task, monkeypatch) -> None:
    found = []
    real = Collector.play

    def play(*args: Any) -> Any:
        found.append(real(*args))
        return found[-1]

    monkeypatch.setattr(Collector, "play", play)
    it = trainer(pair, task, num_rounds=1, cost_weight=0.3, prompts_per_round=7, max_new_tokens=20)
    it.run()
    (metrics,), (played,) = it.state.history, found
    rewards = [one.is_right - 0.3 * one.cost for one in played]
    assert metrics["reward"] == pytest.approx(sum(rewards) / 14)
    assert metrics["accuracy"] == sum(one.is_right for one in played) / 14
    assert metrics["relative_cost"] == pytest.approx(sum(one.cost for one in played) / 14)
    assert 0 < metrics["accuracy"] < 1 and metrics["relative_cost"] != 1
    flat = sum(abs(a - b) < 1e-9 for a, b in zip(rewards[::2], rewards[1::2], strict=True))
    assert metrics["frac_reward_zero_std"] == pytest.approx(flat / 7)
    bits = [m.keep_draft for one in played for m in one.decisions]
    assert metrics["override_rate"] == sum(bits) / len(bits)
    assert metrics["num_branches"] == len(it.state.replay[0].features) == 14


@pytest.mark.parametrize(("init_logit", "share"), [(1.0, 1), (0.0, 0)])
def test_the_gain_of_a_round_is_what_the_policy_would_have_won_on_branches_it_has_not_seen(
    pair, task, init_logit, share
) -> None:
    """The policy of the first round keeps everything, or nothing."""
    policy = PolicyConfig(hidden_size=4, init_logit=init_logit)
    it = trainer(pair, task, policy=policy, prompts_per_round=7, max_new_tokens=20)
    gain = it.play_round()["branch_gain"]
    delta_reward = it.state.replay[0].delta_reward
    assert delta_reward.any() and gain == pytest.approx(share * float(delta_reward.sum()) / 7)


def test_a_first_round_without_a_decision_is_refused(pair, task) -> None:
    """A draft that is the target never disagrees."""
    it = trainer(ModelPair(pair.target, pair.target, pair.tokenizer), task)
    with pytest.raises(ConfigError, match="no mismatch was left to the arbiter"):
        it.play_round()


def test_a_later_round_without_a_decision_leaves_the_policy_whole(pair, task) -> None:
    """In short answers a good draft may not disagree."""
    it = trainer(ModelPair(pair.target, pair.target, pair.tokenizer), task)
    it.state.round = 1
    x = torch.randn(4, len(SCALAR_NAMES))
    it.state.replay = [BranchData(x, torch.ones(4), torch.zeros(4), torch.ones(4).bool())]
    metrics = it.play_round()
    assert metrics["round"] == 2 and metrics["num_decisions"] == 0
    json.dumps(metrics, allow_nan=False)
    for weight in it.state.policy.state_dict().values():
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
        found.append(it.state.history[-1][metric])
    assert found[1] > found[0] + 0.02 if rises else found[1] < found[0] / 2


def test_branches_of_older_rounds_count_less_with_age(pair, task) -> None:
    it = trainer(pair, task, replay_decay=0.5, cost_weight=0.25)
    it.run()
    expected = [
        [*row.tolist(), float(right - 0.25 * cost), float(right), float(is_same), weight]
        for parts, weight in zip(it.state.replay, (0.25, 0.5, 1.0), strict=True)
        for row, right, cost, is_same in zip(*parts.columns, strict=True)
    ]
    features, *columns = known_branches(it.state.replay, it.config)
    found = torch.cat([features, *(column[:, None] for column in columns)], dim=1).tolist()
    assert len(expected) == sum(m["num_branches"] for m in it.state.history) > 15
    torch.testing.assert_close(torch.tensor(sorted(found)), torch.tensor(sorted(expected)))
    forgetful = trainer(pair, task, replay_decay=0.0)
    forgetful.state.replay = it.state.replay
    *_, weight = known_branches(forgetful.state.replay, forgetful.config)
    assert set(weight.tolist()) == {0.0, 1.0}
    assert weight.count_nonzero() == it.state.history[-1]["num_branches"]


class Judged:
    """A task with another scorer."""

    def __init__(self, task: Task, score: Any) -> None:
        self._task, self.score = task, score

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)


def scripted(it: Trainer, accuracies: list[float]) -> list[dict[str, torch.Tensor]]:
    """Let the answers of the tune split be right so often, evaluation by evaluation.

    Returns:
        The policy at each evaluation, filled in as they come.
    """
    snapshots: list[dict[str, torch.Tensor]] = []
    evaluate, score = it.evaluate, it.task.score
    tune = {example.id: i for i, example in enumerate(it.tune)}

    def judge(example: Any, text: str) -> Score:
        if example.id not in tune:
            return score(example, text)
        return Score(float(tune[example.id] < accuracies[len(snapshots) - 1] * len(tune)))

    def watched() -> Json:
        snapshots.append({k: v.clone() for k, v in it.state.policy.state_dict().items()})
        return evaluate()

    it.evaluate = watched  # type: ignore[method-assign]
    it.collector._task = Judged(it.task, judge)
    return snapshots


def test_the_policy_that_was_best_on_the_tune_split_is_the_one_returned(
    pair, task, tmp_path
) -> None:
    """The second of four, the first of the two that are as good; also after a restart."""
    it = trainer(pair, task, tmp_path, num_rounds=4, cost_weight=0.0)
    snapshots = scripted(it, [0.5, 1.0, 1.0, 0.0])
    arbiter = it.run()
    assert [m["tune_accuracy"] for m in it.state.history] == [0.5, 1.0, 1.0, 0.0]
    assert [m["is_best"] for m in it.state.history] == [True, True, False, False]
    assert it.state.best["round"] == 2
    found = arbiter.policy.state_dict()
    torch.testing.assert_close(found, snapshots[1], rtol=0, atol=0)
    for other in (0, 2, 3):
        assert not torch.equal(snapshots[other]["layers.0.weight"], found["layers.0.weight"])
    again = trainer(pair, task, tmp_path, num_rounds=4, cost_weight=0.0).run(stop)
    torch.testing.assert_close(again.policy.state_dict(), found, rtol=0, atol=0)
    assert not again.explore and again.threshold == 0.5
    assert again.max_mismatch_rate == arbiter.max_mismatch_rate
    guard = arbiter.prompt_guard
    assert not any(map(guard.is_foreign, prompt_ids(pair, task, [*it.train, *it.tune])))
    assert guard.is_foreign([pair.target.config.vocab_size - 1] * 8)
    assert again.prompt_guard.min_likeness == guard.min_likeness > 0


def test_without_train_problems_the_guard_knows_the_tune_prompts(pair, task) -> None:
    it = trainer(pair, task)
    it.train = []
    guard = it._prompt_guard()
    assert not any(map(guard.is_foreign, prompt_ids(pair, task, it.tune)))


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
        max_new_tokens=5,
    )
    snapshots = scripted(it, accuracies)
    it.run()
    assert (it.state.round, len(snapshots)) == (num_rounds, len(accuracies))
    tuned = [m["round"] for m in it.state.history if "tune_accuracy" in m]
    expected = [r for r in range(1, num_rounds + 1) if r % tune_every == 0 or r == 6]
    assert tuned == expected


def test_dropout_changes_what_is_learnt_and_follows_from_the_seed_alone(pair, task) -> None:
    weights = []
    for dropout in (0.0, 0.3, 0.3):
        torch.rand(1)  # the global generator has no part in it
        it = trainer(pair, task, policy=PolicyConfig(init_logit=0.0, dropout=dropout))
        it.play_round()
        weights.append(it.state.policy.state_dict()["layers.0.weight"])
    assert torch.equal(weights[1], weights[2]) and not torch.equal(weights[0], weights[1])


def test_reinforce_takes_the_baseline_from_the_rewards_that_were_played(pair, task) -> None:
    it = trainer(pair, task, method="reinforce", max_new_tokens=20)
    rewards = [it.play_round()["reward"] for it.state.round in range(2)]
    assert rewards[0] != rewards[1]
    assert it.state.running_reward == pytest.approx(0.9 * rewards[0] + 0.1 * rewards[1])


@pytest.mark.parametrize("features", ["scalar", "hidden"])
def test_an_arbiter_that_was_trained_from_python_is_saved_with_its_record(
    pair, task, tmp_path, features
) -> None:
    """Found: one with hidden features could not be loaded, and others were noted as foreign."""
    it = trainer(pair, task, num_rounds=1, features=features)
    arbiter = it.run()
    assert arbiter.name == "policy:threshold=0.5" and arbiter.trained_k == 3
    arbiter.save(tmp_path / "trained")
    found = load_arbiter(str(tmp_path / "trained"), pair)
    assert found.notes == () and found.label == "trained" and found.trained_k == 3
    assert found.about["best"] == it.state.best and found.about["history"] == it.state.history
    assert found.about["training"]["task"] == {"task": task.name}
    assert found.about["min_prompt_likeness"] == arbiter.prompt_guard.min_likeness
    json.dumps(arbiter.about, allow_nan=False)


def rebuilt(it: Trainer, **changes: Any) -> Trainer:
    """A trainer with the arguments of another one, but for some."""
    names = ("pair", "backend", "task", "config", "train", "tune", "folder", "solved")
    return Trainer(**{name: getattr(it, name) for name in names} | changes)


def test_a_run_is_resumed_by_a_trainer_alike_and_by_no_other(pair, task, tmp_path) -> None:
    """Found: any run in the folder was resumed, with the baselines of other problems."""
    it = trainer(pair, task, tmp_path)
    it.state.round = 1
    it.keep({"round": 1}, lambda _: None)
    assert rebuilt(it).state.round == 1
    unlike = trainer(pair, task, cost_weight=0.5, seed=1)
    other = {
        "cost_weight, seed": {"config": unlike.config},
        "data_train": {"train": it.train[1:]},
        "data_tune": {"tune": [replace(it.tune[0], answer="x")]},
        "data_train, data_tune": {  # found: other tests of a program were resumed with
            name: [replace(one, metadata={"test": "another"}) for one in getattr(it, name)]
            for name in ("train", "tune")
        },
        "data_solutions": {"solved": it.train},
        "fingerprint": {"pair": ModelPair(pair.draft, pair.target, pair.tokenizer)},
        "task": {"task": replace(task, name="another")},
    }
    for names, changes in other.items():
        with pytest.raises(ConfigError, match=rf"other settings \({names}\); make the Trainer"):
            rebuilt(it, **changes)
    state = torch.load(tmp_path / "state.pt")
    del state["made_from"]  # as older versions wrote it
    torch.save(state, tmp_path / "state.pt")
    assert rebuilt(it, tune=it.tune[1:]).state.round == 1


def test_the_folder_of_a_run_is_made_and_may_be_a_string(pair, task, tmp_path) -> None:
    it = trainer(pair, task, str(tmp_path / "a" / "run"))
    it.keep({"round": 1}, lambda _: None)
    assert (tmp_path / "a" / "run" / "state.pt").exists()


def test_a_prompt_that_fills_the_context_is_refused_before_the_first_round(
    pair, task, tmp_path
) -> None:
    """Found: the run ended when it came to that problem, and could not resume without it."""
    it = trainer(pair, task, prompts_per_round=2)  # plays six problems of seven
    long = replace(it.tune[0], id="long", question="stone " * 200)
    for changes in ({"train": [*it.train[:5], long]}, {"tune": [*it.tune, long]}):
        with pytest.raises(PromptError, match=r"the prompt of long has .* leave the problem out"):
            rebuilt(it, folder=tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()
    rebuilt(it, train=[*it.train[:6], long], solved=[long])  # neither of them is played
    it = trainer(pair, task, num_solutions=1, solutions_from="samples")
    with pytest.raises(PromptError, match="the prompt of long has"):
        rebuilt(it, solved=[long])


@pytest.mark.parametrize(
    ("metadata", "message"),
    [({}, "has no worked solution to train on"), ({"solution": 7}, "is 7; it must be a string")],
)
def test_problems_without_a_worked_solution_are_refused_before_any_is_read(
    pair, task, tmp_path, metadata, message
) -> None:
    """Found: the run ended when it came to that problem, after hours of reading others."""
    it = trainer(pair, task, num_solutions=2)
    solved = [
        replace(example, metadata=told)
        for example, told in zip(it.train, [{"solution": "ten hens"}, metadata], strict=False)
    ]
    with pytest.raises(TaskError, match=message):
        rebuilt(it, folder=tmp_path / "run", solved=solved)
    assert not (tmp_path / "run").exists()
    rebuilt(trainer(pair, task, num_solutions=2, solutions_from="samples"), solved=solved)
    rebuilt(trainer(pair, task), solved=solved)  # nothing is read of them


@pytest.mark.parametrize("change", [{"question": "red hens"}, {"answer": "x"}])
def test_two_problems_with_one_id_are_refused(pair, task, change) -> None:
    """Found: the second one had the lossless baseline of the first."""
    it = trainer(pair, task)
    twin = replace(it.train[0], **change)
    rebuilt(it, solved=[twin])  # nothing is kept by the ids of these
    with pytest.raises(TaskError, match=f"differ have the id {twin.id!r}: 'oats' and"):
        rebuilt(it, tune=[twin])


@pytest.mark.parametrize("owner", ["collector", "trainer"])
def test_a_trainer_that_was_interrupted_in_a_round_does_not_run_again(
    pair, task, tmp_path, monkeypatch, owner
) -> None:
    """Found: the branches of its round were there twice, or its metrics were lost."""
    it = trainer(pair, task, tmp_path)
    with monkeypatch.context() as patch:
        found, name = (it.collector, "branch") if owner == "collector" else (it, "evaluate")
        patch.setattr(found, name, lambda *_: stop({}))
        with pytest.raises(StopHereError):
            it.run()
    with pytest.raises(ConfigError, match="in the middle of a round; make a new one"):
        it.run()
    again = rebuilt(it)
    with pytest.raises(StopHereError):
        again.run(stop)
    with pytest.raises(StopHereError):
        again.run(stop)  # between two rounds nothing is lost
    assert [m["round"] for m in again.state.history] == [1, 2] and len(again.state.replay) == 2
