"""Rollouts that travel keep every decision and its features."""

from __future__ import annotations

import pickle

import torch

from cospec import SamplingConfig
from cospec.arbiters import AlwaysTarget
from cospec.backends.base import Item
from cospec.backends.packing import pack, unpack
from tests.backends.tiny import tiny_backend
from tests.conftest import some_prompts
from tests.rl.conftest import arbiter, coin


def test_packed_rollouts_come_back_as_they_were_and_take_fewer_bytes() -> None:
    sampling = SamplingConfig(max_new_tokens=16, seed=3)
    items = [Item(prompt, sampling, i) for i, prompt in enumerate(some_prompts(4))]
    backend = tiny_backend()
    rollouts = backend.complete(items, arbiter(coin(0.0)), keep_handles=True)
    rollouts += backend.complete(items[:1], AlwaysTarget())  # it tells no features
    sent = pickle.dumps(pack(rollouts))
    got = unpack(pickle.loads(sent))
    assert [one.completion for one in got] == [one.completion for one in rollouts]
    for one, other in zip(rollouts, got, strict=True):
        assert other.handle is None
        for m, n in zip(one.completion.reached, other.completion.reached, strict=True):
            assert torch.equal(m.features, n.features)
    assert len(sent) * 2 < len(pickle.dumps([one.completion for one in rollouts]))
    assert sum(len(one.completion.reached) for one in got) > 5
