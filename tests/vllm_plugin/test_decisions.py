"""The log of decisions: whole lines, up to the limit, and never at the server's cost."""

from __future__ import annotations

import functools
import json
import os
import stat

import pytest
import torch

from cospec.errors import ConfigError
from cospec.vllm_plugin.decisions import DecisionLog
from cospec.vllm_plugin.settings import DecisionLogSettings
from tests.vllm_plugin.conftest import in_forks


def add(log: DecisionLog, *request_ids: str, reached: list[bool] | None = None) -> None:
    num = len(request_ids)
    log.add(
        request_ids,
        torch.tensor(reached or [True] * num),
        positions=torch.arange(num),
        block_positions=torch.zeros(num, dtype=torch.long),
        draft_ids=torch.arange(num) + 10,
        target_ids=torch.arange(num) + 20,
        keep_draft=torch.tensor([True] * num),
        score=torch.full((num,), 0.123456789),
        features=torch.tensor([[1.0, float("nan")]] * num),
    )


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_half_a_line_of_a_killed_process_spoils_no_other(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text('{"request_id": "r0", "posi')
    log = DecisionLog(DecisionLogSettings(str(path)), "gap:max_gap=1")
    add(log, "r1")
    log.close()
    torn, head, row = path.read_text().splitlines()
    assert torn == '{"request_id": "r0", "posi'
    assert "cospec_decisions" in json.loads(head) and json.loads(row)["request_id"] == "r1"


def test_reached_decisions_are_written_after_a_head_line(tmp_path):
    path = tmp_path / "d.jsonl"
    path.touch(0o644)  # was there, open to others
    log = DecisionLog(DecisionLogSettings(str(path)), "gap:max_gap=1", ["f", "g"])
    add(log, "r1", "r1", "r2", reached=[True, False, True])
    log.close()
    head, *rows = lines(path)
    assert head == {"cospec_decisions": 1, "arbiter": "gap:max_gap=1", "features": ["f", "g"]}
    assert [row["request_id"] for row in rows] == ["r1", "r2"]
    assert rows[1] == {
        "request_id": "r2",
        "position": 2,
        "block_position": 0,
        "draft_id": 12,
        "target_id": 22,
        "keep_draft": True,
        "score": 0.123457,
        "features": [1.0, None],
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (log.num_written, log.num_dropped) == (2, 0)


def test_a_second_log_goes_on_behind_the_first(tmp_path):
    path = tmp_path / "d.jsonl"
    for request_id in ("a", "b"):
        log = DecisionLog(DecisionLogSettings(str(path)), "gap")
        add(log, request_id)
        log.close()
    assert [row.get("request_id") for row in lines(path)] == [None, "a", None, "b"]


def test_the_file_never_grows_over_its_limit_and_ends_with_a_whole_line(tmp_path, monkeypatch):
    """Found: a full log cost as much as before, each step."""
    path = tmp_path / "d.jsonl"
    log = DecisionLog(DecisionLogSettings(str(path), max_bytes=700), "gap")
    for i in range(50):
        add(log, f"r{i}")
    assert path.stat().st_size <= 700
    assert len(lines(path)) == 1 + log.num_written
    assert log.num_dropped == 1, "later steps are not looked at"
    assert log.num_written > 2
    monkeypatch.setattr(log, "_queue", None)
    add(log, "late")


def test_a_share_of_the_requests_is_written_each_whole(tmp_path):
    path = tmp_path / "d.jsonl"
    log = DecisionLog(DecisionLogSettings(str(path), sampling_rate=0.3), "gap")
    for _ in range(2):
        add(log, *(f"r{i}" for i in range(500)))
    log.close()
    written = [row["request_id"] for row in lines(path)[1:]]
    assert len(written) == 2 * len(set(written))
    assert 100 < len(set(written)) < 200


def test_only_rows_that_are_written_come_to_the_host(tmp_path, monkeypatch):
    path = tmp_path / "d.jsonl"
    log = DecisionLog(DecisionLogSettings(str(path)), "gap")
    monkeypatch.setattr(log, "wants", lambda request_id: request_id != "b")
    lengths, put = set(), log._queue.put

    def watched(tensors, use):
        lengths.update(map(len, tensors))
        put(tensors, use)

    monkeypatch.setattr(log._queue, "put", watched)
    add(log, "b", "a", "a", reached=[True, False, True])
    log.close()
    assert lengths == {1}
    assert [(row["request_id"], row["position"]) for row in lines(path)[1:]] == [("a", 2)]


def test_a_file_that_cannot_be_opened_is_refused_at_the_start(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot be written to .*nowhere"):
        DecisionLog(DecisionLogSettings(str(tmp_path / "nowhere" / "d.jsonl")), "gap")


def test_a_full_disk_ends_the_log_and_nothing_else(tmp_path, monkeypatch, caplog):
    path = tmp_path / "d.jsonl"
    log = DecisionLog(DecisionLogSettings(str(path)), "gap")
    add(log, "a")
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:5]))
    add(log, "b")
    monkeypatch.undo()
    add(log, "c")
    log.close()
    assert [row.get("request_id") for row in lines(path)] == [None, "a"]
    assert log.num_dropped == 1
    assert "writes no more decisions" in caplog.text


def test_several_processes_may_share_a_file(tmp_path):
    path = tmp_path / "d.jsonl"

    def write(name):
        log = DecisionLog(DecisionLogSettings(str(path), max_bytes=60_000), "gap")
        for i in range(200):
            add(log, *[f"{name}-{i}"] * 3)
        log.close()

    in_forks(functools.partial(write, "a"), functools.partial(write, "b"))
    found = lines(path)
    assert sum("cospec_decisions" in line for line in found) == 2, "one of each"
    assert path.stat().st_size <= 60_000
    assert {line["request_id"][0] for line in found if "request_id" in line} <= {"a", "b"}
