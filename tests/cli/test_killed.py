"""Long commands are killed at random moments; resumed, they end as if they had not been."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from cospec import ModelPair
from cospec.arbiters.learned import LearnedArbiter
from cospec.arbiters.policy import Policy, PolicyConfig
from cospec.features import make_features
from cospec.rl.checkpoint import STATE
from tests.cli import killed
from tests.conftest import disturbed, random_model

if TYPE_CHECKING:
    from pathlib import Path

NUM_MOMENTS = int(os.environ.get("COSPEC_KILLS", "20"))
TIMES = {"seconds", "rollout_s", "started", "costs", "speed", "speed_if_free_stood", "chunks"}
"""Keys of what no two runs share."""


@pytest.fixture(scope="module")
def home(tmp_path_factory, tokenizer) -> Path:
    """A pair and a task as files."""
    folder, target = tmp_path_factory.mktemp("home"), random_model("llama")
    models = {"target": target, "draft": disturbed(target, 0.12)}
    for role, model in models.items():
        model.save_pretrained(folder / role)
        tokenizer.save_pretrained(folder / role)
    pair = ModelPair(models["target"], models["draft"], tokenizer)
    features = make_features("scalar", pair)
    network = Policy(len(features.names), PolicyConfig())
    LearnedArbiter(network, features, label="ours").save(folder / "arbiter")
    words = [
        f"{a} {b} {c}" for a in ("the", "on") for b in ("hen", "ten") for c in "abcdefghijklmnopq"
    ]
    rows = [{"question": text, "answer": "y"} for text in words]
    (folder / "few.json").write_text('{"optimizer": {"num_epochs": 2}}')
    (folder / "letters.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def command(verb: str, home: Path, out: Path) -> list[str]:
    """A command that takes a few seconds, in several stored steps."""
    task = f"jsonl:{home}/letters.jsonl,scorer=regex"
    models = ["--target", str(home / "target"), "--draft", str(home / "draft")]
    result = ["--json", str(out / "r.json")]
    few = ["--num-problems", "9", "--max-new-tokens", "10", *models, *result]
    test, tune = (["--task", f"{task},split={split}", *few] for split in ("test", "tune"))
    two_chunks = ["--num-problems", "64", "--max-new-tokens", "4", "--batch-size", "8"]
    return [verb] + {
        "eval": [
            "--task", f"{task},split=test", *two_chunks, "--arbiter", "gap", *models, *result,
            "--arbiter", "random:rate=0.5",
        ],
        "bench": [
            "--task", task, "--arms", "gap", "--num-tune-problems", "2", "--num-problems", "2",
            "--tune-k", "2", "3", "--repeats", "2", "--max-new-tokens", "10", *models, *result,
        ],
        "audit": [*test, "--problems-per-chunk", "2", "--split", "test", "--max-k", "2",
                  "--dataset", str(out / "d.safetensors")],
        "calibrate": [*tune, "--arbiter", str(out / "arbiter"), "--thresholds", "0.4", "0.6"],
        "trace": [*test, "--arbiter", "random:rate=0.5", "--keep", "4"],
        "train": [
            "--task", task, "--out", str(out / "run"), "--num-rounds", "3",
            "--prompts-per-round", "4", "--num-problems", "12", "--num-tune", "2",
            "--tune-every", "1", "--max-new-tokens", "8", "--config", str(home / "few.json"),
            *models,
        ],
    }[verb]  # fmt: skip


def prepare(home: Path, out: Path) -> Path:
    out.mkdir()
    (out / "arbiter").mkdir()
    for file in (home / "arbiter").iterdir():
        (out / "arbiter" / file.name).write_bytes(file.read_bytes())
    return out


def timeless(value: Any) -> Any:
    """JSON without times, speeds and paths of this run."""
    if isinstance(value, dict):
        kept = {
            k: timeless(v)
            for k, v in value.items()
            if k not in TIMES and not k.startswith(("speedup", "tokens_per_s", "seconds"))
        }
        return {k: v for k, v in kept.items() if k not in ("argv", "config", "provenance")}
    if isinstance(value, list):
        return [timeless(part) for part in value]
    return value


def outcome(verb: str, out: Path) -> dict[str, Any]:
    """Results of a command that must not depend on when it was killed."""
    if verb == "train":
        config = json.loads((out / "run" / "config.json").read_text())
        return {
            "weights": (out / "run" / "model.safetensors").read_bytes(),
            "history": timeless(config["history"]),
            "best": config["best"],
        }
    found = timeless(json.loads((out / "r.json").read_text().replace(str(out), "OUT")))
    del found["num_resumed_turns"]
    for cell in found.get("cells", []):
        for arm in cell["arms"]:
            del arm["repeats"]
    if verb == "audit":
        for words_about_time in ("verdict", "warnings"):
            found["summary"].pop(words_about_time, None)
        found["dataset"] = (out / "d.safetensors").read_bytes()
    if verb == "calibrate":
        found["points"] = json.loads((out / "arbiter" / "config.json").read_text())
        found["points"] = found["points"]["operating_points"]
    return found


def is_finished(verb: str, out: Path) -> bool:
    return (out / ("run/config.json" if verb == "train" else "r.json")).exists()


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["eval", "bench", "audit", "calibrate", "trace", "train"])
def test_a_run_that_is_killed_and_resumed_ends_as_one_that_was_not(verb, home, tmp_path):
    whole = prepare(home, tmp_path / "whole")
    killed.finish(command(verb, home, prepare(home, tmp_path / "warm")))  # a server is started
    seconds = killed.finish(command(verb, home, whole))
    expected, moments, num_killed = outcome(verb, whole), random.Random(verb), 0
    for i in range(NUM_MOMENTS):
        out = prepare(home, tmp_path / str(i))
        argv = command(verb, home, out)
        process = killed.start(argv)
        process.join(moments.uniform(0, 0.9 * seconds))
        num_killed += process.exitcode is None
        process.kill()
        process.join()
        if not is_finished(verb, out):
            killed.finish(argv)
        assert outcome(verb, out) == expected, f"killed at moment {i}"
    assert num_killed > NUM_MOMENTS / 3, "most runs had ended when they were to be killed"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_so_it_is_where_the_driver_of_replicas_is_killed(home, tmp_path):
    def argv(name: str) -> list[str]:
        return [*command("train", home, tmp_path / name), "--num-replicas", "2"]

    def found(name: str) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
        config = json.loads((tmp_path / name / "run" / "config.json").read_text())
        return load_file(tmp_path / name / "run" / "model.safetensors"), config["history"]

    seconds = killed.finish(argv("whole"))
    weights, history = found("whole")
    process = killed.start(argv("cut"))
    folder, deadline = tmp_path / "cut" / "run", time.monotonic() + 10 * seconds
    while not (folder / STATE).exists() and time.monotonic() < deadline:  # of the first round
        process.join(0.01)
    assert process.exitcode is None, "it ended before it was to be killed"
    process.kill()
    process.join()
    assert not is_finished("train", tmp_path / "cut")
    killed.finish(argv("cut"))
    resumed, rounds = found("cut")
    # Who decodes what with whom is a matter of time, and rounding differs with the batch.
    torch.testing.assert_close(resumed, weights, rtol=1e-4, atol=1e-4)
    assert [one["round"] for one in rounds] == [one["round"] for one in history]
    for one, other in zip(rounds, history, strict=True):
        for name in ("accuracy", "override_rate", "tune_accuracy"):
            assert one.get(name) == pytest.approx(other.get(name)), name
