"""Bad days: the machine fails, and a command says what to do and loses nothing."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import pytest
import torch
from transformers import AutoModelForCausalLM

import cospec
from cospec import ModelPair, cli
from cospec.cli.common.troubles import sentence_for
from cospec.errors import CheckpointError
from cospec.evaluation.evaluate import Evaluation
from tests.conftest import random_model

SOURCE = Path(cospec.__file__).parent


@pytest.fixture
def evaluate(tiny, problems, tmp_path):
    """Runs an evaluation of two chunks into a file, which is returned."""

    def run(path=None):
        path = path or tmp_path / "r.json"
        task = f"jsonl:{problems},scorer=numeric,split=test"
        tiny(
            "eval", "--task", task, "--num-problems", 6, "--max-new-tokens", 4, "--json", path,
            "--arbiter", "gap",
        )  # fmt: skip
        return path

    return run


def test_a_reader_that_has_seen_enough_ends_the_command_in_silence():
    """Each command ends a process of its own, whose imports are those of the one it is forked of.

    The second one is ended by the parser.
    """
    program = (
        "import os, sys\n"
        "from cospec.cli import main\n"
        "for arguments in ['bench', '--list-arms'], ['generate', '--help']:\n"
        "    if (child := os.fork()) == 0:\n"
        "        sys.argv[1:] = arguments\n"
        "        main()\n"
        "        sys.exit()\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=sys.stderr)\n"
    )
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (run.returncode, run.stderr) == (0, "1\n1\n")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told_and_what_is_stored_is_resumed(evaluate, tmp_path, monkeypatch, code):
    sync, calls = os.fsync, []

    def full_later(file):
        calls.append(file)
        if len(calls) > 3:  # the head of the log, and two turns
            raise OSError(code, os.strerror(code))
        sync(file)

    monkeypatch.setattr(os, "fsync", full_later)
    with pytest.raises(SystemExit, match=r"no space is left .* the same command resumes"):
        evaluate()
    monkeypatch.setattr(os, "fsync", sync)
    assert not (tmp_path / "r.json").exists()
    document = json.loads(evaluate().read_text())
    assert document["num_resumed_turns"] >= 2
    assert len(document["rows"]) == 4 * 6


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_loaded(
    evaluate, tiny, monkeypatch, tmp_path
):
    monkeypatch.setattr(os, "access", lambda *_: False)  # who runs as root may write anywhere
    with pytest.raises(SystemExit, match=f"nothing can be written to {tmp_path}; name a file in"):
        evaluate()
    assert tiny.asked_for == []


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("unable to mmap 8192 bytes from file <x>: Cannot allocate memory (12)"),
        RuntimeError("std::bad_alloc"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_too_little_memory_suggests_a_smaller_batch(evaluate, monkeypatch, error):
    def fails(*_):
        raise error

    monkeypatch.setattr(Evaluation, "_job", fails)
    with pytest.raises(SystemExit, match=r"out of memory: pass a smaller .* need another"):
        evaluate()


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOSPC, "full")])
def test_each_verb_says_what_of_it_is_kept(error):
    """Found: all said that the same command resumes with --json, which most of them do not."""
    verbs = ("audit", "bench", "calibrate", "demo", "eval")
    assert all("kept with --json FILE, and the" in sentence_for(error, verb) for verb in verbs)
    assert "rounds are kept in the folder --out, and the same" in sentence_for(error, "train")
    for verb in cli.COMMANDS.keys() - {*verbs, "train", "reproduce"}:
        assert not re.search(r"kept|resume|--json", sentence_for(error, verb)), verb


@pytest.mark.parametrize("code", [errno.EEXIST, errno.ENOTDIR, errno.EISDIR])
def test_a_file_in_the_way_of_an_output_is_named(code):
    """Found: a traceback, after the training of --from-log or the figures of --plots."""
    error = OSError(code, os.strerror(code), "out/x")
    assert sentence_for(error) == f"out/x: {os.strerror(code)}; name another file or folder."


def test_memory_that_runs_out_where_nothing_is_resumed_promises_nothing(monkeypatch):
    def fails(*_):
        raise MemoryError

    monkeypatch.setattr(cli.Info, "run", fails)
    monkeypatch.setattr(sys, "argv", ["cospec", "info"])
    with pytest.raises(SystemExit, match=r"out of memory: .* tells what they take\.$"):
        cli.main()


def test_a_failure_of_ours_keeps_its_traceback(evaluate, monkeypatch):
    def fails(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(Evaluation, "_job", fails)
    with pytest.raises(RuntimeError, match="a bug"):
        evaluate()
    assert sentence_for(OSError(errno.EBADF, "Bad file descriptor")) is None


def test_no_duration_is_measured_by_the_wall_clock():
    """A clock that is set back would make a run take negative time."""
    found = [
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        if re.search(r"\btime\.time\(|datetime\.now\(", path.read_text())
    ]
    assert set(found) <= {"results.py", "cli/common/progress.py"}, (
        "when it started, and when it will end"
    )


def test_a_clock_that_is_set_back_changes_no_duration(evaluate, monkeypatch):
    hours = itertools.count()
    monkeypatch.setattr(time, "time", lambda: 2e9 - 3600 * next(hours))
    document = json.loads(evaluate().read_text())
    assert document["provenance"]["seconds"] >= 0
    assert all(chunk["seconds"] > 0 for chunk in document["chunks"])


def test_half_a_result_file_is_told_with_what_to_do(evaluate, tiny, refusal, tmp_path):
    whole = evaluate()
    half = tmp_path / "half.json"
    half.write_text(whole.read_text()[:5000])
    for command in (("compare", half, whole), ("report", half, "--out", tmp_path / "r.html")):
        told = refusal(tiny, *command)
        assert str(half) in told and "again" in told


def test_without_a_connection_a_hub_id_is_named_with_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("transformers.utils.hub.is_offline_mode", lambda: True)
    with pytest.raises(CheckpointError, match=r"(?s)cannot load nobody/none.*check the hub id"):
        ModelPair.from_pretrained("nobody/none", "nobody/none", cache_dir=str(tmp_path))


def test_memory_that_runs_out_while_a_checkpoint_is_loaded_is_no_damage(
    monkeypatch, tmp_path, tokenizer
):
    random_model("llama").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    def fails(*_, **__):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fails)
    with pytest.raises(OSError, match="Cannot allocate memory") as caught:
        ModelPair.from_pretrained(tmp_path, tmp_path)
    assert sentence_for(caught.value, "eval").startswith("out of memory")


def test_a_damaged_checkpoint_of_the_cache_is_named_with_the_folder_to_delete(
    monkeypatch, tmp_path, tokenizer
):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--someone--model"
    snapshot = folder / "snapshots" / ("a" * 40)
    random_model("llama").save_pretrained(snapshot)
    tokenizer.save_pretrained(snapshot)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a" * 40)
    weights = snapshot / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=f"delete {folder}, and it is downloaded again"):
        ModelPair.from_pretrained("someone/model", "someone/model", cache_dir=str(tmp_path))


def test_a_damaged_checkpoint_is_named_with_what_to_do(tmp_path, tokenizer):
    random_model("llama").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"cannot load .*restore the checkpoint"):
        ModelPair.from_pretrained(tmp_path, tmp_path)


def test_the_page_names_tests_that_are_there():
    root = Path(__file__).parents[2]
    page = (root.parent / "docs" / "bad_days.md").read_text()
    named = set(re.findall(r"`([\w/]+/test_\w+\.py)`", page)) | {
        name for part in re.findall(r"\(`([^)]*)`\)", page) for name in part.split("`, `")
    }
    assert named and all((root / name).is_file() for name in named)
