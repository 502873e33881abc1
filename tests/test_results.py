"""Result files: what is written is what was meant, a row a line."""

from __future__ import annotations

import json

from cospec.results import write_json


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
