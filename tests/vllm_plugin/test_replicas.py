"""vLLM inside Ray replicas: the texts of one process, and no engine outlives its replica."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
import torch

from cospec import SamplingConfig
from cospec.arbiters import load_arbiter
from cospec.backends.base import Item
from cospec.cli.common.backends import BackendOptions
from cospec.config import DecodeConfig
from cospec.models.source import PairSource
from tests.vllm_plugin.aligned import AlignedBackend
from tests.vllm_plugin.conftest import LEARNED, encoded_problems
from tests.vllm_plugin.rolling import compare, points
from tests.vllm_plugin.serving import ENVIRONMENT, descendants, still_alive

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
    pytest.mark.filterwarnings("ignore"),
]


def behind_replicas() -> list[set[int]]:
    """The processes of each replica: the actor, and vLLM's below it."""
    actors = [
        pid
        for pid in descendants(os.getpid())
        if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::Replica")
    ]
    return [descendants(pid) for pid in actors]


def test_replicas_write_what_our_engine_does_and_leave_no_process(pair, monkeypatch) -> None:
    import ray

    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)  # before Ray starts: its workers inherit it
    monkeypatch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING", raising=False)  # engines of their own
    config = DecodeConfig(num_speculative_tokens=6, batch_size=4)
    options = BackendOptions(backend="vllm", num_replicas=2)
    many = options.open(PairSource(pair="bundled:specialist"), pair, config, "scalar")
    one = AlignedBackend(pair, config)
    arbiter = load_arbiter(LEARNED, pair)
    sampling = SamplingConfig(max_new_tokens=100)
    items = [Item(p, sampling, i) for i, p in enumerate(encoded_problems(pair.tokenizer, 12))]
    try:
        ours, theirs = (b.complete(items, arbiter, keep_handles=True) for b in (one, many))
        assert compare(ours, theirs)["different"] == []
        replicas = behind_replicas()
        assert len(replicas) == 2 and all(len(pids) > 1 for pids in replicas)
        ray.kill(many.replicas[0])
        ends = [b.branch(points(done, 5), arbiter) for b, done in ((one, ours), (many, theirs))]
        assert len(ends[0]) > 5 and compare(*ends)["different"] == []
        gone = [pids for pids in replicas if not still_alive(pids, 10)]
        assert len(gone) == 1, "the engine of the replica that died has ended with it"
        replicas = behind_replicas()
    finally:
        many.close()
        ray.shutdown()
    assert len(replicas) == 2 and not still_alive(set.union(*replicas), 30)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="two GPUs are needed")
def test_a_replica_spreads_its_target_over_two_gpus(pair) -> None:
    """Not run so far: no machine with two GPUs was at hand."""
    config = DecodeConfig(num_speculative_tokens=6, batch_size=4)
    options = BackendOptions(backend="vllm", num_replicas=1, tensor_parallel_size=2)
    many = options.open(PairSource(pair="bundled:specialist"), pair, config, "scalar")
    arbiter, sampling = load_arbiter(LEARNED, pair), SamplingConfig(max_new_tokens=100)
    items = [Item(p, sampling, i) for i, p in enumerate(encoded_problems(pair.tokenizer, 4))]
    try:
        theirs = many.complete(items, arbiter)
    finally:
        many.close()
    ours = AlignedBackend(pair, config).complete(items, arbiter)
    assert compare(ours, theirs)["different"] == []
