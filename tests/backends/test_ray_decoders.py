"""Evaluations on replicas: the rows of one process, a chunk on one replica, whoever dies."""

from __future__ import annotations

import importlib.util
import os
import signal
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import pytest

from cospec import load_arbiter
from cospec.backends.jobs import play_here
from cospec.config import DecodeConfig
from cospec.errors import BackendError
from cospec.evaluation.arms import EngineDecoders, make_arms
from cospec.evaluation.evaluate import Evaluation, default_chunk_size

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.usefixtures("cluster"),
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
    pytest.mark.filterwarnings("ignore"),
]
SPECS = ["random:rate=0.5", "always_draft"]


@dataclass
class Fails:
    """A decoder that fails on its second call, by an error or by SIGKILL: always, or once."""

    inner: object
    how: str
    once: Path | None
    num_calls: int = 0

    def __getattr__(self, name):
        return getattr(self.__dict__["inner"], name)

    def generate(self, prompts, sampling, **more):
        self.num_calls += 1
        if self.num_calls > 1 and not (self.once is not None and self.once.exists()):
            if self.once is not None:
                self.once.write_text("it has failed")
            if self.how == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("there is something wrong with this one")
        return self.inner.generate(prompts, sampling, **more)


@dataclass(frozen=True)
class FailingDecoders(EngineDecoders):
    how: str = "raises"
    once: Path | None = None

    def ruled(self, arbiter, config):
        made = super().ruled(arbiter, config)
        return Fails(made, self.how, self.once) if arbiter.name == "always_draft" else made


def remote(pair, factory=EngineDecoders, **settings):
    from cospec.backends.ray_decoders import RayDecoders

    return RayDecoders(pair, partial(factory, pair, **settings), 2)


def evaluation(pair, task, decoders, player):
    arms = make_arms(
        pair,
        [(spec, load_arbiter(spec)) for spec in SPECS],
        DecodeConfig(3, batch_size=2),
        decoders,
    )
    examples = task.examples("test")
    return Evaluation(
        arms, task, examples, max_new_tokens=16, chunk_size=2, temperature=1.0, play=player
    )


def rows(turns):
    """Decoded rows, in the order of one process."""
    return [turn.rows for turn in sorted(turns, key=lambda turn: (turn.chunk, turn.arm))]


@pytest.fixture(scope="module")
def here(pair, task):
    it = evaluation(pair, task, None, play_here)
    return it, list(it.turns())


def test_two_replicas_decode_what_one_process_does_also_after_an_interruption(pair, task, here):
    ours, turns = here
    decoders = remote(pair)
    theirs = evaluation(pair, task, decoders, decoders.play)
    assert theirs.config() == ours.config()
    assert rows(theirs.turns()) == rows(turns)
    resumed = [replace(turn, seconds=0.5) for turn in turns[:7]]
    again = list(theirs.turns(resumed))
    assert again[:7] == resumed and rows(again) == rows(turns)
    arm = theirs.arms[-1]
    assert (
        arm.engine.generate(ours.prompts[:2], ours.samplings[:2])[0].text
        == rows(turns)[0][0]["text"]
    ), "always_draft sorts first"
    decoders.close()


def test_a_chunk_is_played_on_one_replica_and_every_replica_is_warmed_up(pair, task, monkeypatch):
    from cospec.backends.ray_decoders import _Playing

    sent, real = [], _Playing._send
    note = lambda self, job, n: sent.append((job.group, n)) or real(self, job, n)  # noqa: E731
    monkeypatch.setattr(_Playing, "_send", note)
    decoders = remote(pair)
    it = evaluation(pair, task, decoders, decoders.play)
    list(it.turns())
    decoders.close()
    by_chunk = [{n for group, n in sent if group == chunk} for chunk in range(len(it.chunks))]
    assert all(len(replicas) == 1 for replicas in by_chunk) and set().union(*by_chunk) == {0, 1}
    warmed = [n for group, n in sent if group == -1]
    assert sorted(warmed) == [0] * len(it.arms) + [1] * len(it.arms)


@pytest.mark.parametrize("how", ["dies", "raises"])
def test_what_a_killed_replica_had_in_hand_is_done_again(how, pair, task, here, tmp_path):
    once = tmp_path / "once"
    decoders = remote(pair, FailingDecoders, how=how, once=once)
    it = evaluation(pair, task, decoders, decoders.play)
    assert rows(it.turns()) == rows(here[1])
    assert once.exists(), "a replica has failed"
    decoders.close()


@pytest.mark.parametrize("how", ["dies", "raises"])
def test_an_arm_that_always_fails_is_named_after_three_tries(how, pair, task):
    decoders = remote(pair, FailingDecoders, how=how)
    it = evaluation(pair, task, decoders, decoders.play)
    with pytest.raises(BackendError, match="always_draft failed 3 times on one chunk of problems"):
        list(it.turns())
    decoders.close()


def test_each_of_many_engines_gets_a_chunk():
    assert default_chunk_size(1000, 16) == 64
    assert default_chunk_size(1000, 16, num_engines=40) == 25
    assert default_chunk_size(100, 16, num_engines=40) == 16, "no less than a batch"
