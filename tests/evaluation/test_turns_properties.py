"""The log of a run, cut at any byte: what it holds is never lost, changed or counted twice."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cospec.errors import ConfigError
from cospec.evaluation.turns import Turn, TurnLog

CONFIG = {"k": 4, "about": {"pair": "naïve"}}
texts = st.text(max_size=6) | st.sampled_from(["\n", "ü\u2028", "\ud800", '"}', "\x1b[2J"])
rows = st.lists(st.fixed_dictionaries({"id": texts, "num_tokens": st.integers(0, 9)}), max_size=2)
logs = st.lists(
    st.builds(Turn, st.integers(0, 2), st.sampled_from(["a", "ü"]), st.floats(0, 9), rows),
    max_size=4,
    unique_by=lambda turn: (turn.chunk, turn.arm),
)


@settings(max_examples=50, deadline=None)
@given(logs, st.data())
def test_a_log_that_is_cut_anywhere_resumes_with_its_whole_turns(turns, data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        with TurnLog(path, CONFIG) as log:
            for turn in turns:
                log.append(turn)
        whole = path.read_bytes()
        cut = data.draw(st.integers(0, len(whole)))
        path.write_bytes(whole[:cut])
        num_whole = max(0, whole[:cut].count(b"\n") - 1)  # the first line is the configuration
        with TurnLog(path, CONFIG) as log:
            assert log.done == turns[:num_whole]
            for turn in turns[num_whole:]:
                log.append(turn)
        assert path.read_bytes() == whole


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=30) | st.just(b'{"config": {}}'), max_size=4))
def test_a_file_of_anything_is_refused_or_resumed_and_never_raises_else(lines):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        path.write_bytes(b"\n".join([*lines, b""]))
        before = path.read_bytes()
        try:
            with TurnLog(path, CONFIG) as log:
                assert log.done == []
        except ConfigError:
            assert path.read_bytes() == before
        else:
            assert path.read_bytes() == (json.dumps({"config": CONFIG}) + "\n").encode()


def test_a_line_that_nests_too_deeply_is_damage(tmp_path):
    path = tmp_path / "log"
    path.write_text('{"config": {}}\n' + "[" * 100_000 + "\n")
    with pytest.raises(ConfigError, match="is damaged"):
        TurnLog(path, {})
