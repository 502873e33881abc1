"""A run that was interrupted or killed ends as one that was not."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import cospec.rl.trainer
from cospec.arbiters.policy import PolicyConfig
from cospec.rl import warmstart
from cospec.rl.solutions import solution_decisions
from tests.rl.helpers import (
    StopHereError,
    assert_same_state,
    audit_file,
    solving,
    stop,
    timeless,
    trainer,
)


def test_a_run_learns_something_that_can_be_lost(whole) -> None:
    assert whole.state.round == len(whole.state.history) == len(whole.state.replay) == 3
    moved = whole.state.best_policy["layers.0.weight"] - whole.state.start.layers[0].weight
    assert moved.abs().max() > 0.05
    assert [m["round"] for m in whole.state.history] == [1, 2, 3]
    json.dumps(whole.state.history, allow_nan=False)


def test_a_run_interrupted_after_each_round_ends_as_one_that_was_not(
    whole, pair, task, tmp_path
) -> None:
    for num_done in (1, 2, 3):
        it = trainer(pair, task, tmp_path)
        assert it.state.round == num_done - 1
        with pytest.raises(StopHereError):
            it.run(stop)
        assert it.state.round == num_done
    last = trainer(pair, task, tmp_path)
    arbiter = last.run(stop)  # nothing is left to play, and so nothing to report
    assert_same_state(last, whole)
    assert arbiter.policy is last.state.policy


@pytest.fixture(scope="module")
def first_state(pair, task, tmp_path_factory) -> bytes:
    """State that a run keeps after its first round."""
    folder = tmp_path_factory.mktemp("first")
    with pytest.raises(StopHereError):
        trainer(pair, task, folder).run(stop)
    return (folder / "state.pt").read_bytes()


@pytest.mark.parametrize("moment", ["branch", "update", "evaluate", "save"])
def test_a_round_that_is_cut_short_is_played_again(
    whole, first_state, pair, task, tmp_path, monkeypatch, moment
) -> None:
    """In the second round, whose file of the first round stands until its own is whole."""
    (tmp_path / "state.pt").write_bytes(first_state)
    it = trainer(pair, task, tmp_path)
    assert it.state.round == 1
    owner = {"branch": it.collector, "evaluate": it}.get(moment, cospec.rl.trainer)
    with monkeypatch.context() as patch:
        if moment == "save":
            patch.setattr(torch, "save", save_half)
        else:
            patch.setattr(owner, moment, lambda *_: stop({}))
        with pytest.raises(StopHereError):
            it.run()
    assert (tmp_path / "state.pt").read_bytes() == first_state
    again = trainer(pair, task, tmp_path)
    assert again.state.round == 1
    again.run()
    assert_same_state(again, whole)


def save_half(state: object, file: Any) -> None:
    buffer = io.BytesIO()
    torch.serialization.save(state, buffer)
    file.write(buffer.getvalue()[: buffer.tell() // 2])
    raise StopHereError


ROOT = Path(__file__).parents[2]


KILLED = """
import os, signal, sys
from pathlib import Path
from transformers import PreTrainedTokenizerFast
from cospec import ModelPair
from cospec.rl.collect import Collector
from cospec.tasks import load_task
from tests.conftest import family_pair
from tests.rl.helpers import trainer

tokenizer, task, folder = sys.argv[1:]
models = family_pair("llama")
pair = ModelPair(
    models.target, models.draft, PreTrainedTokenizerFast.from_pretrained(tokenizer)
)
real, num_calls = Collector.branch, 0

def branch(*args):
    global num_calls
    num_calls += 1
    if num_calls == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args)

Collector.branch = branch
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
        timeout=300,
    )
    assert killed.returncode == -9, killed.stderr
    it = trainer(pair, task, folder)
    assert it.state.round == 1 and timeless(it.state.history) == timeless(whole.state.history[:1])
    it.run()
    assert_same_state(it, whole)


@pytest.mark.parametrize("method", ["r2r", "reinforce"])
def test_a_control_interrupted_after_each_round_ends_as_one_that_was_not(
    pair, task, tmp_path, method
) -> None:
    """The running baseline of reinforce is part of the state."""
    train = partial(trainer, pair, task, method=method, num_rounds=2)
    whole = train()
    whole.run()
    for _ in range(2):
        with pytest.raises(StopHereError):
            train(folder=tmp_path).run(stop)
    last = train(folder=tmp_path)
    last.run(stop)
    assert_same_state(last, whole)
    assert (last.state.running_reward is not None) == (method == "reinforce")


def test_a_warm_run_interrupted_after_a_round_ends_as_one_that_was_not(
    pair, task, tmp_path
) -> None:
    path = audit_file(tmp_path)
    train = partial(trainer, pair, task, warm_start=path, num_rounds=2)
    whole = train()
    whole.run()
    with pytest.raises(StopHereError):
        train(folder=tmp_path).run(stop)
    last = train(folder=tmp_path)
    last.run()
    assert_same_state(last, whole)


@pytest.mark.parametrize("corrects", [False, True])
def test_a_run_from_solutions_interrupted_anywhere_ends_as_one_that_was_not(
    pair, task, tmp_path, monkeypatch, corrects
) -> None:
    monkeypatch.setattr(warmstart, "_SLICE", 1)
    monkeypatch.setattr(warmstart, "_WRITE_EVERY", 0.0)
    shape = PolicyConfig(hidden_size=4, init_logit=0.0, correction=corrects)
    solve = partial(solving, pair, task, policy=shape)
    whole = solve()
    whole.run()
    read, calls = solution_decisions, []

    def once(*args: Any) -> Any:
        calls.append(args)
        return stop({}) if len(calls) == 2 else read(*args)

    with monkeypatch.context() as patch:
        patch.setattr("cospec.rl.warmstart.solution_decisions", once)
        with pytest.raises(StopHereError):
            solve(folder=tmp_path).run()
        patch.setattr("cospec.rl.warmstart.imitate", lambda *_: stop({}))
        with pytest.raises(StopHereError):
            solve(folder=tmp_path).run()
    assert len(calls) == 4, "the first was not read again"
    assert [path.name for path in tmp_path.iterdir()] == ["solutions.safetensors"]
    with monkeypatch.context() as patch:
        patch.setattr(
            "cospec.rl.warmstart.solution_decisions", lambda *_: stop({})
        )  # not read again
        for _ in range(2):
            with pytest.raises(StopHereError):
                solve(folder=tmp_path).run(stop)
    last = solve(folder=tmp_path)
    last.run()
    assert_same_state(last, whole)
