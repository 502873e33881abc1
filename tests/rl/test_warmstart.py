"""Training before the first round: on an audit's branches, and on worked solutions."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from cospec.arbiters.policy import Policy, PolicyConfig
from cospec.errors import ConfigError
from cospec.evaluation.audit.dataset import (
    describe_decoding,
    read_dataset,
    read_origin,
    read_tensors,
    write_dataset,
)
from cospec.features import SCALAR_NAMES
from cospec.results import write_tensors
from cospec.rl import warmstart
from cospec.rl.card import write_card
from cospec.rl.methods import METHODS
from tests.rl.helpers import assert_same_state, audit_file, solving, stop, trainer

if TYPE_CHECKING:
    from pathlib import Path

    from cospec import ModelPair
    from cospec.tasks import Task


@pytest.mark.parametrize("method", ["rl", "gold"])
def test_what_an_audit_tells_is_learnt_before_the_first_round(pair, task, tmp_path, method) -> None:
    path = audit_file(tmp_path)
    it = trainer(pair, task, warm_start=path, method=method, num_epochs=60, num_rounds=1)
    assert it.warm_up() == {"num_branches": len(it.state.replay[0])}
    features = read_dataset(path, SCALAR_NAMES)["features"]
    keep = it.state.policy(features) > 0
    assert ((features[:, 0] > 0) == keep).float().mean() > 0.9
    mean = it.state.policy.mean.clone()
    it.run()
    assert len(it.state.replay) == 2
    assert torch.equal(it.state.policy.mean, mean)


@pytest.mark.parametrize("method", ["rl", "one_step", "gold", "policy_iteration"])
def test_an_audit_alone_makes_an_arbiter_and_its_card(pair, task, tmp_path, method) -> None:
    path = audit_file(tmp_path)
    it = trainer(pair, task, warm_start=path, method=method, num_rounds=0)
    it.run()
    (only,) = it.state.history
    assert only["round"] == 0 and only["is_best"]
    about = {
        "name": "audited",
        "pair": {"pair": "p", "fingerprint": "f"},
        "training": {"train": it.config.to_dict(), "task": {"task": "t"}},
        "provenance": {"git": "g"},
        "best": it.state.best,
        "history": it.state.history,
    }
    assert "Trained on the branches of an audit with CoSpec.\n" in write_card(about)


def test_an_audit_of_another_pair_or_of_test_problems_is_refused(tmp_path) -> None:
    path, hashes = tmp_path / "audit.safetensors", {"questions": ["00" * 5], "twins": []}
    about = {"fingerprint": "ours", "split": "train", "trained_on": json.dumps(hashes)}
    write_dataset(path, [], SCALAR_NAMES, about)
    assert read_origin(path, "ours") == hashes
    with pytest.raises(ConfigError, match="is of another pair"):
        read_origin(path, "theirs")
    write_dataset(path, [], SCALAR_NAMES, about | {"split": "test"})
    with pytest.raises(ConfigError, match="is of test problems"):
        read_origin(path, "ours")


@pytest.mark.parametrize(
    ("about", "message"),
    [({"fingerprint": "x"}, "is of another pair"), ({"split": "test"}, "is of test problems")],
)
def test_a_trainer_refuses_such_an_audit_before_anything_is_played(
    pair, task, tmp_path, about, message
) -> None:
    """Found: from Python it was trained on; only the command line looked."""
    audit = audit_file(tmp_path, **about)
    with pytest.raises(ConfigError, match=message):
        trainer(pair, task, tmp_path / "run", warm_start=audit)
    assert not (tmp_path / "run").exists()
    trainer(pair, task, warm_start=audit_file(tmp_path, fingerprint=pair.fingerprint))


def test_an_audit_that_was_decoded_otherwise_than_the_rollouts_is_noted(
    pair, task, tmp_path
) -> None:
    """Found: its data set did not say, and its mismatches were taken for those of the rounds."""
    config = trainer(pair, task).config.rollouts
    alike, other = (
        describe_decoding(one) for one in (config, replace(config, temperature=0.7, batch_size=2))
    )
    assert alike == {
        "num_speculative_tokens": "3", "temperature": "0.0", "end_blocks_at_stop": "false",
        "adaptive": "false", "draft_confidence_threshold": "0.0", "max_corrections": "null",
        "drafter": '"model"', "cascade": "false", "adaptive_cost": "null",
        "prompt_lookup_max": "4", "prompt_lookup_min": "2",
    }  # fmt: skip
    for about in ({}, alike, alike | {"temperature": "0"}):
        assert trainer(pair, task, warm_start=audit_file(tmp_path, **about)).notes == ()
    other |= {"num_speculative_tokens": "6"}
    (note,) = trainer(pair, task, warm_start=audit_file(tmp_path, **other)).notes
    assert "with num_speculative_tokens 6 (here 3) and temperature 0.7 (here 0.0): its" in note
    (note,) = trainer(
        pair, task, warm_start=audit_file(tmp_path, **alike), end_blocks_at_stop=True
    ).notes
    assert "with end_blocks_at_stop false (here true): its" in note


def test_an_audit_that_cannot_be_learnt_from_is_refused(pair, task, tmp_path) -> None:
    with pytest.raises(ConfigError, match="policy_iteration, one_correction, gold, and"):
        trainer(pair, task, warm_start=tmp_path / "x", method="autojudge")
    with pytest.raises(ConfigError, match="not a data set of cospec audit"):
        trainer(pair, task, warm_start=tmp_path / "x").run()
    (tmp_path / "y").write_text("no")
    with pytest.raises(ConfigError, match="not a data set of cospec audit"):
        trainer(pair, task, warm_start=tmp_path / "y").run()
    path = audit_file(tmp_path, SCALAR_NAMES[:-1])
    with pytest.raises(ConfigError, match=r"must hold the 37 features .* holds 36 others"):
        trainer(pair, task, warm_start=path).run()


@pytest.mark.parametrize("method", ["rl", "policy_iteration"])
@pytest.mark.parametrize("value", [None, float("nan")])
def test_an_audit_without_a_usable_mismatch_is_refused(pair, task, tmp_path, method, value) -> None:
    """Found: the policy was never normalized, and nothing said so."""
    path, size = tmp_path / "few.safetensors", len(SCALAR_NAMES)
    mismatch = {"position": 0, "draft_id": 1, "target_id": 2, "features": [value] * size}
    mismatch |= {"draft_correct": True, "target_correct": False}
    mismatches = [] if value is None else [mismatch]
    write_dataset(path, [{"id": "a", "mismatches": mismatches}], SCALAR_NAMES, {})
    with pytest.raises(ConfigError, match=r"few\.safetensors has no mismatches to train on"):
        trainer(pair, task, warm_start=path, method=method, num_rounds=1).run()


def test_what_solutions_teach_is_where_the_rounds_start(pair, task) -> None:
    it = solving(pair, task)
    it.run()
    assert [m["round"] for m in it.state.history] == [0, 1, 2]
    assert it.state.history[0]["num_solution_decisions"] > 0
    assert {"loss", "tune_accuracy", "is_best"} <= set(it.state.history[0])
    assert torch.equal(it.state.policy.mean, it.state.start.mean)
    assert len(it.state.replay) == 2
    only = solving(pair, task, num_rounds=0)
    only.run()
    assert len(only.state.history) == 1
    weights = [t.state.start.state_dict() for t in (it, only)]
    torch.testing.assert_close(*weights, rtol=0, atol=0)
    torch.testing.assert_close(
        only.state.best_policy, only.state.start.state_dict(), rtol=0, atol=0
    )


@pytest.mark.parametrize("correction", [False, True])
@pytest.mark.parametrize("method", ["gold", "autojudge", "r2r", "reinforce"])
def test_every_method_with_a_network_learns_from_solutions_by_what_it_may_see(
    pair, task, method, correction
) -> None:
    shape = PolicyConfig(hidden_size=4, init_logit=0.0, correction=correction)
    it = solving(pair, task, method=method, features="hidden", policy=shape)
    it.run()
    assert it.state.history[0]["num_solution_decisions"] > 0
    assert it.state.round == 2
    seen = METHODS[method].features(it.arbiter.features)
    if seen is not None:
        assert 0 < seen.sum() < len(seen)
        assert torch.isinf(it.state.policy.std[~seen]).all()
    assert torch.isfinite(it.state.policy.std).any()


def test_behind_solutions_a_correction_is_all_that_rounds_learn(pair, task) -> None:
    shape = PolicyConfig(hidden_size=4, init_logit=0.0, dropout=0.3, correction=True)
    it = solving(pair, task, policy=shape, branches_per_rollout=9.0)
    it.run()
    ahead = SCALAR_NAMES.index("lookahead_run")
    assert torch.isinf(only_solved(pair, task, shape).std[ahead])
    assert torch.isfinite(it.state.policy.std[ahead])
    learned = {"correction.weight", "correction.bias"}
    before = it.state.start.state_dict()
    for name, weights in it.state.policy.state_dict().items():
        assert torch.equal(weights, before[name]) == (name not in learned)
    assert before["correction.weight"].count_nonzero() == 0
    solved_alone = only_solved(pair, task, shape).state_dict()
    for name in ("layers.0.bias", "layers.2.weight", "layers.2.bias"):
        assert torch.equal(before[name], solved_alone[name])


def only_solved(pair: ModelPair, task: Task, shape: PolicyConfig) -> Policy:
    it = solving(pair, task, policy=shape, num_rounds=0)
    it.run()
    return it.state.policy


def test_solutions_that_settle_nothing_are_refused(pair, task) -> None:
    it = solving(pair, task)
    it.solved = [replace(example, metadata={"solution": "x" * 999}) for example in it.solved]
    with pytest.raises(ConfigError, match="no training examples"):
        it.run()


def test_what_was_read_of_solutions_is_shared_by_runs_alike_and_by_no_others(
    pair, task, tmp_path, monkeypatch
) -> None:
    path = tmp_path / "read.safetensors"
    one = solving(pair, task, solutions=path, num_rounds=0)
    one.run()
    other = solving(pair, task, solutions=path, num_rounds=0, seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(warmstart, "solution_decisions", lambda *_: stop({}))
        told: list[int] = []
        other.on_read = told.append
        other.run()  # nothing is left to read
    assert sum(told) == 3 == warmstart.num_cached(path), "what was read before counts as done"
    assert torch.equal(one.state.policy.mean, other.state.policy.mean)
    with pytest.raises(ConfigError, match="of 3 solutions, and num_solutions is 2; delete it"):
        solving(pair, task, solutions=path, num_solutions=2).run()
    with pytest.raises(ConfigError, match="solutions with another features; delete it"):
        solving(pair, task, solutions=path, features="hidden").run()
    with pytest.raises(ConfigError, match="solutions with another temperature; delete it"):
        solving(pair, task, solutions=path, temperature=1.0).run()
    with pytest.raises(ConfigError, match="solutions with another forks; delete it"):
        solving(pair, task, solutions=path, play_forks=True).run()
    path.write_text("no")
    assert warmstart.num_cached(path) == 0
    with pytest.raises(ConfigError, match="is not what was read of solutions"):
        solving(pair, task, solutions=path).run()


def test_a_file_of_few_solutions_is_gone_on_with_for_more(
    pair, task, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(warmstart, "_SLICE", 1)
    monkeypatch.setattr(warmstart, "_WRITE_EVERY", 0.0)
    path, whole = tmp_path / "read.safetensors", tmp_path / "whole.safetensors"
    few = solving(pair, task, solutions=path, num_solutions=2, num_rounds=0)
    few.solved = few.solved[:2]
    few.run()
    more, all_at_once = (solving(pair, task, solutions=p, num_rounds=0) for p in (path, whole))
    more.run()
    all_at_once.run()
    numbers = [t.state.history[0]["num_solution_decisions"] for t in (few, more, all_at_once)]
    assert 0 < numbers[0] < numbers[1] == numbers[2]
    assert_same_state(more, all_at_once)


def test_what_solutions_show_at_a_temperature_does_not_depend_on_how_many_are_read_at_once(
    pair, task, monkeypatch
) -> None:
    def seen(**changes: Any) -> tuple[int, torch.Tensor]:
        it = solving(pair, task, num_rounds=0, **changes)
        it.run()
        return it.state.history[0]["num_solution_decisions"], it.state.policy.mean

    greedy, at_once = seen(), seen(temperature=1.0)
    monkeypatch.setattr(warmstart, "_SLICE", 1)
    monkeypatch.setattr(warmstart, "_WRITE_EVERY", 0.0)
    one_by_one = seen(temperature=1.0)
    assert one_by_one[0] == at_once[0]
    torch.testing.assert_close(one_by_one[1], at_once[1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(at_once[1], greedy[1])


def test_a_cache_of_the_solutions_of_other_problems_is_refused(pair, task, tmp_path) -> None:
    """Found: its number of problems was all that was compared."""
    path = tmp_path / "not" / "there" / "read.safetensors"
    one = solving(pair, task, solutions=str(path), num_rounds=0)
    one.run()
    other = solving(pair, task, solutions=path, num_rounds=0)
    other.solved = [*other.solved[:2], replace(other.solved[2], metadata={"solution": "ten ants"})]
    with pytest.raises(ConfigError, match="the solutions of 3 other problems; delete it"):
        other.run()
    tensors, about = read_tensors(path, "a cache")
    del about["problems"]  # as older versions wrote it
    write_tensors(path, tensors, about)
    other = solving(pair, task, solutions=path, num_rounds=0)
    other.run()
    assert torch.equal(one.state.policy.mean, other.state.policy.mean)


def sampled(folder: Path, **more: Any) -> Path:
    """Mismatches alike, of two problems: the draft is right at one and wrong at three."""
    made = {"position": 0, "draft_id": 1, "target_id": 2, "features": [0.0] * len(SCALAR_NAMES)}
    kept, lost = ({"draft_correct": b, "target_correct": not b} for b in (True, False))
    records = [
        {"id": "a", "mismatches": [made | kept]} | more,
        {"id": "b", "num_mismatches": 3, "mismatches": [made | lost] * 3},
    ]
    write_dataset(folder / "sampled.safetensors", records, SCALAR_NAMES, {})
    return folder / "sampled.safetensors"


def test_a_branch_that_stands_for_others_counts_as_often(pair, task, tmp_path) -> None:
    """Found: the weights of a sampled audit were in its summary alone."""
    path = sampled(tmp_path, num_mismatches=9)
    assert read_dataset(path, SCALAR_NAMES)["weight"].tolist() == [9, 1, 1, 1]
    for method in ("rl", "gold", "policy_iteration"):
        it = trainer(pair, task, warm_start=path, method=method, num_epochs=60, num_rounds=0)
        it.warm_up()
        assert it.state.policy(torch.zeros(1, len(SCALAR_NAMES))) > 0
        (branches,) = it.state.replay
        assert branches.delta_reward.tolist() == pytest.approx([3.0, *[-1 / 3] * 3])


def test_an_older_data_set_has_no_weights(tmp_path) -> None:
    path = sampled(tmp_path)
    tensors, about = read_tensors(path, "a data set")
    assert tensors.pop("weight").tolist() == [1.0] * 4, "all were played"
    write_tensors(path, tensors, about)
    assert read_dataset(path, SCALAR_NAMES)["weight"].tolist() == [1.0] * 4
