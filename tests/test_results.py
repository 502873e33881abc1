"""Result files: what is written is what was meant, a row a line."""

from __future__ import annotations

import errno
import gzip
import json
import os

import pytest
import torch
from experiments.tables import blocks, rows

from cospec.errors import ConfigError
from cospec.results import check_writable, read_document, write_json, write_tensors


def test_a_document_is_read_back_and_has_a_row_a_line(tmp_path):
    rows = [
        {"id": f"p/{i}", "text": 'a "quoted"\nline, ü', "n": None, "each": [1, 2]} for i in range(3)
    ]
    document = {
        "schema": 1, "empty": {}, "rows": rows, "none": [], "nested": {"a": {"b": [1.5, True]}},
        "cells": [{"arms": [{"x": {"y": [[1, 2], [3]]}}], "rows": rows}],
    }  # fmt: skip
    path = tmp_path / "r.json"
    write_json(path, document)
    text = path.read_text()
    assert json.loads(text) == document
    lines = [line.strip().rstrip(",") for line in text.splitlines()]
    for row in rows:
        assert lines.count(json.dumps(row, ensure_ascii=False)) == 2
    assert text.endswith("}\n")


def test_a_compressed_document_is_read_as_it_is(tmp_path):
    document = {"schema": 1, "rows": [{"text": "ü"}]}
    path = tmp_path / "r.json.gz"
    path.write_bytes(gzip.compress(json.dumps(document).encode()))
    assert read_document(path) == document
    path.write_bytes(b"no gzip")
    with pytest.raises(ConfigError, match="cannot be read as a result file"):
        read_document(path)


def test_a_document_whose_name_asks_for_it_is_compressed_and_the_same_each_time(
    tmp_path, monkeypatch
):
    """Found: it was plain, and no command could read it."""
    document = {"schema": 1, "rows": [{"text": "ü"}]}
    path, written = tmp_path / "r.json.gz", []
    for now in (1e9, 2e9):
        monkeypatch.setattr("time.time", lambda now=now: now)
        write_json(path, document)
        written.append(path.read_bytes())
    assert read_document(path) == document
    assert written[0] == written[1] and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (gzip.compress(b'{"schema": 1}' * 99)[:-20], "cut short or damaged"),
        (gzip.compress(b"x" * 99)[:12] + b"\xff" * 30, "cut short or damaged"),
        (gzip.compress(b"[" * 100_000), "nested too deeply"),
        (gzip.compress(b"\xff"), "can't decode"),
    ],
    ids=["cut", "damaged", "deep", "no text"],
)
def test_a_damaged_document_is_refused_with_its_damage(tmp_path, data, reason):
    """Found: EOFError, zlib.error and RecursionError from inside."""
    path = tmp_path / "r.json.gz"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=rf"cannot be read as a result file: .*{reason}"):
        read_document(path)


def test_half_of_a_character_in_a_row_does_not_lose_the_result(tmp_path):
    """Found: a UnicodeEncodeError after all the work."""
    document = {"schema": 1, "rows": [{"id": "a \ud800 b"}]}
    write_json(tmp_path / "r.json", document)
    assert read_document(tmp_path / "r.json") == document


def test_a_folder_is_no_file_to_replace(tmp_path):
    with pytest.raises(ConfigError, match="is a folder; name a file"):
        check_writable(tmp_path, overwrite=True)


def test_a_byte_order_mark_is_no_part_of_a_document(tmp_path):
    """Found: a file that a Windows editor saved was no JSON."""
    path = tmp_path / "r.json"
    path.write_text('{"schema": 1}', encoding="utf-8-sig")
    assert read_document(path) == {"schema": 1}


def test_a_published_speed_of_repeats_is_the_median_of_their_ratios(monkeypatch):
    """Found: a ratio of mean seconds, beside a spread of which ddof was 0; and of one turn."""
    chunks = [
        {"arm": arm, "chunk": 0, "repeat": i, "seconds": seconds, "num_tokens": 10}
        for arm, times in {"target": (1.0, 4.0, 9.0), "lossless": (1.0, 2.0, 1.0)}.items()
        for i, seconds in enumerate(times)
    ]
    entry = {"num_problems": 1, "num_overrides": 0, "kind": "exact"}
    found = [{"name": name, **entry} for name in ("target", "lossless")]
    found.append({"name": "oracle", **entry, "kind": "ceiling", "num_tokens": 10})
    made = [
        {"arm": arm["name"], "correct": "1", "num_target_forwards": n}
        for arm, n in zip(found, (10, 4, 2), strict=True)
    ]
    cell = {"arms": found, "rows": made, "chunks": chunks, "batch_size": 1}
    monkeypatch.setattr(rows, "read", lambda _: cell)
    monkeypatch.setattr(blocks, "parts", lambda _: [cell])
    of = rows.arms("it")
    assert of["lossless"].over(of["target"]) == 2.0, "of 1, 2 and 9; the means give 3.5"
    assert of["oracle"].over(of["target"]) == 4.0, "half the forwards of lossless"
    assert of["oracle"].num_turns == 3
    assert "| lossless | 2.00x ± 4.36 |" in blocks.speeds("it"), "by n - 1"
    del chunks[4:], chunks[1:3]
    once = rows.arms("it")
    assert once["lossless"].num_turns == 1
    shown = blocks.comparison("it")
    assert "| - | - |" in shown and shown.endswith("which tells no speed-up.")
    chunks += chunks
    assert "one turn" not in blocks.comparison("it")


def test_tensors_are_written_for_other_users_and_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    """Found: safetensors wrote files that their owner alone could read."""
    path, plain = tmp_path / "x.safetensors", tmp_path / "plain"
    plain.write_text("")
    write_tensors(path, {"x": torch.arange(3)}, {"of": "three"})
    assert path.stat().st_mode == plain.stat().st_mode
    before = path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_tensors(path, {"x": torch.arange(4)})
    assert path.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [plain, path]
