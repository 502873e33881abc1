"""From a server that explores to an arbiter that its log has trained further."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from cospec.arbiters import load_arbiter
from cospec.arbiters.learned import LearnedArbiter
from cospec.arbiters.policy import Policy, PolicyConfig
from cospec.features import make_features
from cospec.tasks.extract import final_number
from cospec.tasks.jsonl import jsonl
from tests.vllm_plugin import serving
from tests.vllm_plugin.conftest import HOME
from tests.vllm_plugin.serving import MODEL

MISSING = [name for name in ("vllm", "openai") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"{MISSING} are not installed"),
]
NUM_PROBLEMS, NUM_ANSWERS = 40, 3


def test_what_a_server_logs_trains_its_arbiter_further(pair, tmp_path) -> None:
    """A coin is served, and who asks wants the target's own answers: the next one keeps less."""
    coin, log, rewards = (tmp_path / name for name in ("coin", "log.jsonl", "rewards.jsonl"))
    features = make_features("scalar", pair)
    policy = Policy(len(features.names), PolicyConfig(kind="linear", init_logit=0.0))
    LearnedArbiter(policy, features, label="coin").save(coin)
    options = ["--explore", "1", "--decisions", str(log)]
    server = serving.start(tmp_path, *options, arbiter=str(coin))
    task = jsonl(str(HOME / "problems.jsonl"), {"scorer": "numeric", "split": "test"})
    prompts = [f"Question: {e.question}\nAnswer:" for e in task.examples("test", NUM_PROBLEMS)]

    def ask(prompt: str, switch: str):
        return server.client().completions.create(
            model=MODEL,
            prompt=prompt,
            max_tokens=120,
            temperature=0,
            extra_body={"vllm_xargs": {"cospec": switch}},
        )

    with ThreadPoolExecutor(8) as pool:
        own = list(pool.map(ask, prompts, ["off"] * len(prompts)))
        asked = [i for i in range(len(prompts)) for _ in range(NUM_ANSWERS)]
        given = list(pool.map(ask, [prompts[i] for i in asked], ["on"] * len(asked)))
    server.close_clients()
    server.stop()
    lines = [
        {
            "request_id": answer.id,
            "group": str(i),
            "reward": float(
                final_number(answer.choices[0].text) == final_number(own[i].choices[0].text)
            ),
        }
        for i, answer in zip(asked, given, strict=True)
    ]
    rewards.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert 0 < sum(line["reward"] for line in lines) < len(lines)
    command = [sys.executable, "-c", "from cospec.cli import main; main()", "train"]
    command += ["--from-log", str(log), "--rewards", str(rewards), "--arbiter", str(coin)]
    subprocess.run([*command, "--out", str(tmp_path / "further")], check=True, env=os.environ)
    trained = load_arbiter(str(tmp_path / "further"), pair)
    about = json.loads((tmp_path / "further" / "config.json").read_text())
    assert about["further_training"]["num_decisions_used"] > 100
    head, *rows = map(json.loads, log.read_text().splitlines())
    assert head["features"] == list(features.names)
    seen = torch.tensor([row["features"] for row in rows if row["probability"]])
    assert all(row["probability"] in (0.0, 0.5) for row in rows)
    chance = torch.sigmoid(trained.policy(seen))
    assert chance.mean() < 0.3 and chance.max() > 2 * chance.min(), "it tells decisions apart"
