"""State and settings of a run on disk, and what is said of damaged ones."""

from __future__ import annotations

import os

import pytest
import torch

from cospec.arbiters.policy import Policy, PolicyConfig
from cospec.errors import CheckpointError, ConfigError
from cospec.rl.checkpoint import TrainState, check_run, open_run
from cospec.rl.config import TrainConfig
from cospec.rl.types import Baseline, BranchData

SETTINGS = {"train": TrainConfig().to_dict(), "task": {"task": "gsm8k"}}


def state(seed: int = 0) -> TrainState:
    return TrainState(*(Policy(3, PolicyConfig(hidden_size=4), seed) for _ in range(2)))


@pytest.fixture
def folder(tmp_path):
    """A run whose state is in the file."""
    it = state()
    it.round, it.history, it.running_reward = 2, [{"round": 1, "reward": 0.5}], 0.25
    it.baselines = {"a": Baseline(True, 3)}
    it.replay = [BranchData(torch.ones(2, 3), torch.ones(2), torch.zeros(2), torch.ones(2) > 0)]
    it.keep_best(0.75, None)
    it.save(tmp_path)
    return tmp_path


def test_a_state_is_read_as_it_was_written(folder) -> None:
    ours, theirs = state(seed=1), state()
    ours.restore(folder)
    assert (ours.round, ours.running_reward, ours.best["tune_reward"]) == (2, 0.25, 0.75)
    assert ours.history == [{"round": 1, "reward": 0.5}] and ours.baselines["a"].num_forwards == 3
    assert len(ours.replay) == 1 and ours.replay[0].is_harmless.all()
    torch.testing.assert_close(ours.policy.state_dict(), theirs.policy.state_dict())
    assert [path.name for path in folder.iterdir()] == ["state.pt"], "no part is left"


def test_a_state_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", lambda _: synced.append((tmp_path / "state.pt").exists()))
    state().save(tmp_path)
    assert synced == [False] and (tmp_path / "state.pt").exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_state_that_was_cut_short_is_refused_by_name(folder, share) -> None:
    path = folder / "state.pt"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match=r"state.pt cannot be resumed from.*another folder"):
        state().restore(folder)


@pytest.mark.parametrize(
    "contents", [[], {"round": 1}, {"policy": 3, "start": 4, "replay": [], "baselines": {}}]
)
def test_a_state_of_something_else_is_refused_by_name(folder, contents) -> None:
    torch.save(contents, folder / "state.pt")
    with pytest.raises(CheckpointError, match=r"state.pt cannot be resumed from"):
        state().restore(folder)


def test_a_run_resumes_with_its_own_settings_only(tmp_path) -> None:
    folder = tmp_path / "run"
    other = {"train": TrainConfig(seed=1).to_dict(), "task": {"task": "svamp"}}
    open_run(folder, other)
    open_run(folder, SETTINGS)  # no round was finished
    (folder / "state.pt").touch()
    open_run(folder, SETTINGS)
    with pytest.raises(ConfigError, match=r"with other settings \(seed, task\)"):
        open_run(folder, other)
    (folder / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds a finished arbiter"):
        open_run(folder, SETTINGS)


@pytest.mark.parametrize("text", ["", '{"train": {"see', "[]", "3", "\udcff"])
def test_settings_that_are_damaged_are_refused_by_name(tmp_path, text) -> None:
    (tmp_path / "run.json").write_bytes(text.encode(errors="surrogateescape"))
    (tmp_path / "state.pt").touch()
    with pytest.raises(CheckpointError, match=r"run.json is damaged"):
        open_run(tmp_path, SETTINGS)


def test_a_readme_of_something_else_is_not_replaced(tmp_path) -> None:
    """Found: training into a project's folder lost its README."""
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(ConfigError, match=r"README\.md of something else"):
        check_run(tmp_path, {})
