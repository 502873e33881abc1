"""``cospec train --from-log``: what the new arbiter says of itself."""

from __future__ import annotations

import json

import pytest

from cospec.arbiters.learned import LearnedArbiter
from cospec.features import SCALAR_NAMES
from cospec.tasks.trained_on import FILE
from tests.rl.conftest import arbiter, coin


def log_of(folder, name):
    """A log of 40 decisions, of which those for the draft were rewarded."""
    log, rewards = folder / f"{name}.log", folder / f"{name}.rewards"
    features = [0.0] * len(SCALAR_NAMES)
    head = {"cospec_decisions": 1, "arbiter": "policy", "features": list(SCALAR_NAMES)}
    decision = {"probability": 0.5, "features": features, "note": "a\u2028b"}
    rows = [{"request_id": f"r{i}", "keep_draft": i % 2 == 0, **decision} for i in range(40)]
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in [head, *rows])
    log.write_text("".join(lines), encoding="utf-8")
    lines = (json.dumps({"request_id": f"r{i}", "reward": float(i % 2 == 0)}) for i in range(40))
    rewards.write_text("\n".join(lines), encoding="utf-8")
    return log, rewards


@pytest.fixture
def served(tmp_path):
    """An arbiter with measured claims, and hashes of the questions that it was trained on."""
    folder = tmp_path / "served"
    about = {
        "name": "served",
        "operating_points": {"guarantee": {"threshold": 0.9, "p_value": 0.01}},
        "best": {"round": 1, "tune_accuracy": 0.7},
        "history": [{"round": 1, "tune_accuracy": 0.7}],
    }
    it = arbiter(coin(0.0))
    LearnedArbiter(it.policy, it.features, about=about).save(folder)
    (folder / FILE).write_bytes(b"hashes")
    return folder


def test_what_was_measured_of_the_served_arbiter_is_not_said_of_the_new_one(tiny, served, tmp_path):
    log, rewards = log_of(tmp_path, "log")
    out = tmp_path / "out"
    tiny("train", "--from-log", log, "--rewards", rewards, "--arbiter", served, "--out", out)
    config = json.loads((out / "config.json").read_text())
    assert config["operating_points"] == {"default": {"threshold": 0.5}}
    assert not {"best", "history"} & config.keys()
    assert config["further_training"]["num_decisions_used"] == 40
    assert (out / FILE).read_bytes() == b"hashes"
    assert LearnedArbiter.load(out).label == "out"


@pytest.mark.parametrize(
    "option", [("--task", "gsm8k"), ("--wandb-project", "mine"), ("--dry-run",)]
)
def test_an_option_that_a_log_has_no_use_for_is_refused_by_name(
    tiny, served, tmp_path, refusal, option
):
    """Found: it was ignored, so that a dry run trained and wrote an arbiter."""
    log, rewards = log_of(tmp_path, "log")
    out = tmp_path / "out"
    command = ["train", "--from-log", log, "--rewards", rewards, "--arbiter", served, "--out", out]
    said = refusal(tiny, *command, *option)
    assert f"{option[0]} is {[*option, True][1]}, which is not for training from a log" in said
    assert not out.exists()


def test_a_config_file_of_rollouts_is_taken_and_what_a_log_has_no_use_for_is_not_recorded(
    tiny, served, tmp_path
):
    """Found: all weights of the objective were recorded as if they had been used."""
    log, rewards = log_of(tmp_path, "log")
    file, out = tmp_path / "settings.json", tmp_path / "out"
    weights = {"cost_weight": 0.3, "clip": 0.1, "kl_weight": 0.1}
    file.write_text(json.dumps({"objective": weights, "rollouts": {"group_size": 2}}))
    command = ["train", "--from-log", log, "--rewards", rewards, "--arbiter", served, "--out", out]
    tiny(*command, "--config", file)
    told = json.loads((out / "config.json").read_text())["further_training"]
    assert told["objective"] == {"entropy_bonus": 0.05, "kl_weight": 0.1}


@pytest.mark.parametrize("option", [("--rewards", "r.jsonl"), ("--arbiter", "served")])
def test_an_option_of_a_log_is_refused_without_one(tiny, tmp_path, refusal, option):
    """Found: it was ignored, and an arbiter was trained by rollouts from nothing."""
    out = tmp_path / "out"
    said = refusal(tiny, "train", "--task", "gsm8k", "--out", out, *option)
    assert f"{option[0]} is {option[1]}, which is for training from a log; pass the log" in said
    assert not out.exists() and tiny.asked_for == []


def test_an_arbiter_in_the_working_folder_has_the_name_of_that(tiny, served, tmp_path, monkeypatch):
    """Found: its name was empty."""
    log, rewards = log_of(tmp_path, "log")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    tiny("train", "--from-log", log, "--rewards", rewards, "--arbiter", served, "--out", ".")
    assert json.loads((tmp_path / "here" / "config.json").read_text())["name"] == "here"


def test_the_bundled_arbiter_is_named_as_it_was_served(tiny, tmp_path, refusal):
    """Found: it needed a pair, which training from a log refused."""
    log, rewards = log_of(tmp_path, "log")
    command = ["train", "--from-log", log, "--rewards", rewards, "--out", tmp_path / "out"]
    bundled = ["--arbiter", "bundled", "--pair", "bundled:specialist"]
    assert "features" in refusal(tiny, *command, *bundled), "the log is of another arbiter"
