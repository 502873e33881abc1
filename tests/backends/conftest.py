"""The tiny pair and the task of the evaluations, and a Ray cluster on this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.evaluation.conftest import pair, task  # noqa: F401
from tests.rl.conftest import whole  # noqa: F401


@pytest.fixture(scope="module")
def cluster():
    """A cluster on this machine, whose processes find the tests."""
    import ray

    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    ray.init(
        num_cpus=8,
        num_gpus=1,  # said, not there: it is reserved like any other
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100_000_000,
        runtime_env={"env_vars": {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}},
    )
    yield
    ray.shutdown()
