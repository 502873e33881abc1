"""`cospec generate` where its files matter more than what it shows."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import sys

import pytest

from cospec import Engine, ModelPair, cli
from cospec.cli.common.options import PairOptions
from cospec.errors import ConfigError, CospecError


class Closed(io.StringIO):
    """A pipe that nobody reads."""

    def flush(self):
        raise BrokenPipeError


@pytest.fixture
def generate(monkeypatch, llama_pair, tokenizer):
    """Runs the command on a tiny pair."""
    pair = ModelPair(llama_pair.target, llama_pair.draft, tokenizer)
    monkeypatch.setattr(PairOptions, "load", lambda *_, **__: pair)

    def run(*arguments):
        cli.parse(["generate", "--max-new-tokens", "20", *map(str, arguments)]).run()

    return run


def test_a_reader_that_has_seen_enough_loses_no_file(generate, tmp_path, monkeypatch):
    """Found: rich ended the command at its first block, and nothing was written."""
    result, trace = tmp_path / "r.json", tmp_path / "t.jsonl"
    monkeypatch.setattr(sys, "stdout", Closed())
    generate("--prompt", "the and", "--json", result, "--trace", trace)
    assert json.loads(result.read_text())["totals"]["num_tokens"] == 20
    assert len(trace.read_text().splitlines()) == 1


def test_without_a_file_nothing_is_decoded_for_a_reader_that_has_seen_enough(
    generate, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "stdout", Closed())
    generate("--prompt", "the and")
    assert "prompts" not in capsys.readouterr().err


def test_a_line_break_in_a_stop_string_is_written_as_in_a_template(generate, monkeypatch, capsys):
    """Found: it was a backslash and an n, which no text has."""
    seen = []

    def stream(engine, prompts, sampling):
        seen.append(sampling.stop)
        raise CospecError("enough")

    monkeypatch.setattr(Engine, "stream", stream)
    with pytest.raises(CospecError, match="enough"):
        generate("--prompt", "a", "--stop", r"\n", "\n\n", r"Q:\n", r"\\nabla")
    assert seen == [("\n", "\n\n", "Q:\n", r"\nabla")]


def test_a_number_of_prompts_of_no_file_is_refused(generate):
    """Found: it was ignored."""
    with pytest.raises(ConfigError, match="num_prompts is 2, and there is no file"):
        generate(
            "--prompt", "a", "--prompt", "b", "--prompt", "c", "--config", '{"num_prompts": 2}'
        )


def test_a_field_of_no_jsonl_file_is_refused(generate, tmp_path):
    """Found: it was ignored."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a\n")
    for file in ([], ["--file", prompts]):
        with pytest.raises(ConfigError, match=r"field is 'text', and there is no \.jsonl file"):
            generate("--prompt", "a", "--config", '{"field": "text"}', *file)


def test_a_file_system_without_locks_is_named(generate, tmp_path, monkeypatch):
    """Found: an OSError from inside."""

    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(ConfigError, match=r"cannot be locked .*write to a folder on another one"):
        generate("--prompt", "a", "--json", tmp_path / "r.json")


@pytest.mark.parametrize("prompt", [None, True, ["a"], {"text": "a"}])
def test_a_prompt_that_is_no_text_is_refused_with_its_line(generate, tmp_path, prompt):
    """Found: the text "None" was completed."""
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": "a"}) + "\n" + json.dumps({"prompt": prompt}) + "\n")
    with pytest.raises(ConfigError, match="line 2 has no field 'prompt' with a text"):
        generate("--file", path)
