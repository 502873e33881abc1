"""Counts on their way from the process that judges to the one that answers for them."""

from __future__ import annotations

import errno
import gc
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cospec.errors import ConfigError
from cospec.vllm_plugin.metrics import (
    COUNTS,
    HELP,
    CountsFile,
    HostQueue,
    StepCounts,
    counts_path,
    read_counts,
)
from tests.vllm_plugin.conftest import in_forks


def config(tmp_path, instance_id: str = "ab1", index: int = 0) -> SimpleNamespace:
    return SimpleNamespace(
        instance_id=instance_id,
        parallel_config=SimpleNamespace(data_parallel_index=index),
        additional_config={"cospec": {"arbiter": "gap", "counts_dir": str(tmp_path)}},
    )


def counts(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers)


def test_every_count_has_a_help_text():
    assert set(HELP) == set(COUNTS)


def test_steps_add_up_with_and_without_a_file(tmp_path):
    for step_counts in (StepCounts(), StepCounts(CountsFile(tmp_path / "x.counts"))):
        step_counts.add(counts(3, 1, 2, 0))
        step_counts.add(counts(1, 0, 1, 1), ["a", "b"], torch.tensor([0, 0]))
        assert list(step_counts.drain().values()) == [4, 1, 3, 1]
    assert list(step_counts.file.totals().values()) == [4, 1, 3, 1]


def test_a_step_is_counted_as_it_was_when_handed_over():
    queue, seen = HostQueue(), []
    tensor = counts(1, 2)
    queue.put([tensor], seen.extend)
    tensor.zero_()  # buffers are used again for the next step
    queue.flush()
    assert seen[0].tolist() == [1, 2]


def test_steps_are_dropped_where_too_many_wait_for_the_host(caplog):
    """Found: their pinned memory grew without end where a disk was slower than the steps."""
    queue, on_gpu = HostQueue(max_pending=2), SimpleNamespace(type="cuda")
    queue._num_put = 2
    for _ in range(3):
        queue.put([SimpleNamespace(device=on_gpu)], None)
    assert queue.num_dropped == 3 and caplog.text.count("CoSpec drops") == 1


def test_a_full_folder_costs_the_counters_and_not_the_engine(tmp_path, monkeypatch, caplog):
    """A hole in a mapped file on a full disk once killed the worker with a bus error."""

    def no_space(fd, start, size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", no_space)
    with pytest.raises(OSError, match="No space"):
        CountsFile(tmp_path / "x.counts")
    step_counts = StepCounts.for_engine(config(tmp_path))
    step_counts.add(counts(3, 1, 2, 0), ["a"], torch.tensor([1]))
    assert step_counts.file is None
    assert list(step_counts.drain().values()) == [3, 1, 2, 0]
    assert "counts nothing" in caplog.text and "No space" in caplog.text


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a folder of another user")
def test_a_temporary_folder_of_another_user_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / f"cospec-{os.getuid()}"
    folder.mkdir()
    os.chown(folder, 12345, 12345)
    with pytest.raises(PermissionError, match="another user"):
        CountsFile(folder / "x.counts")


def test_each_count_is_taken_once_whoever_takes(tmp_path):
    path = tmp_path / "x.counts"
    writer, readers = CountsFile(path), [CountsFile(path), CountsFile(path)]
    writer.add(counts(5, 2, 3, 0))
    assert readers[0].take()["num_overrides"] == 2
    assert readers[1].take()["num_overrides"] == 0
    writer.add(counts(1, 1, 1, 0))
    assert readers[1].take() == dict(zip(COUNTS, [1, 1, 1, 0], strict=True))
    assert readers[0].totals()["num_strict_accepts"] == 6


def test_counts_cross_processes(tmp_path):
    path = tmp_path / "x.counts"
    reader = CountsFile(path)
    in_forks(lambda: CountsFile(path).add(counts(7, 2, 4, 1), {"cmpl-1": 2}))
    assert list(reader.take().values()) == [7, 2, 4, 1]
    assert reader.overrides("cmpl-1") == 2
    assert reader.overrides("cmpl-2") is None


def test_overrides_of_a_request_add_up_and_old_requests_make_room(tmp_path, monkeypatch):
    monkeypatch.setattr(CountsFile, "NUM_SLOTS", 3)
    file = CountsFile(tmp_path / "x.counts")
    nothing = counts(0, 0, 0, 0)
    file.add(nothing, {"a": 1, "b": 0, "c": 4})
    file.add(nothing, {"a": 2})
    file.add(nothing, {"d": 5})  # the place of b, which was quiet for longest
    assert [file.overrides(name) for name in "abcd"] == [3, None, 4, 5]
    file.add(nothing, {"b": 1})
    assert [file.overrides(name) for name in "abcd"] == [3, 1, None, 5]


def test_a_removed_file_still_counts_for_those_who_have_it_open(tmp_path):
    path = tmp_path / "x.counts"
    writer, reader = CountsFile(path), CountsFile(path)
    reader.remove()
    reader.remove()
    writer.add(counts(1, 0, 0, 0))
    assert reader.take()["num_strict_accepts"] == 1
    assert not path.exists()


def test_worker_and_server_derive_the_same_file(tmp_path):
    worker = counts_path(config(tmp_path, "ab1_dp3", index=3))
    assert worker == counts_path(config(tmp_path), engine_index=3)
    assert worker.parent == tmp_path
    assert worker != counts_path(config(tmp_path))
    StepCounts.for_engine(config(tmp_path)).add(counts(1, 2, 3, 4))
    assert list(read_counts(config(tmp_path)).values()) == [1, 2, 3, 4]


def test_reading_counts_leaves_no_file_open_and_makes_none(tmp_path):
    """Found: each call kept one open, and a missing file was made and read as zeros."""
    with pytest.raises(ConfigError, match="there are no counts at"):
        read_counts(config(tmp_path))
    assert not [*tmp_path.iterdir()]
    StepCounts.for_engine(config(tmp_path)).add(counts(1, 2, 3, 4))
    open_files = Path("/proc/self/fd")
    gc.collect()
    before = len([*open_files.iterdir()])
    for _ in range(5):
        read_counts(config(tmp_path))
    gc.collect()
    assert len([*open_files.iterdir()]) == before


def test_a_link_in_place_of_the_file_is_not_followed(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "x.counts").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError):
        CountsFile(tmp_path / "x.counts")
    assert (tmp_path / "victim").read_text() == "precious"


@pytest.mark.gpu
def test_on_a_gpu_counts_arrive_in_order_without_being_asked_for():
    queue, seen = HostQueue(), []
    for i in range(20):
        queue.put([torch.full((4,), i, device="cuda")], seen.extend)
    queue.flush()
    assert [each[0].item() for each in seen] == list(range(20))
