"""Result files: what is written is what was meant, a row a line."""

from __future__ import annotations

import gzip
import json

import pytest

from cospec.errors import ConfigError
from cospec.results import check_writable, read_document, write_json


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
