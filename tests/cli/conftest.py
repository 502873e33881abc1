"""Commands as a user starts them, on a tiny pair that is there already."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest

from cospec import Engine, ModelPair, cli
from cospec.cli.common.options import PairOptions
from cospec.evaluation import evaluate
from tests.conftest import disturbed, random_model


@pytest.fixture(scope="session")
def shallow_pair(tokenizer) -> ModelPair:
    """One layer each, as depth is nothing that a command knows of, and half of the time."""
    target = random_model("llama", num_hidden_layers=1)
    return ModelPair(target, disturbed(target, 0.12), tokenizer, ("the draft has no name",))


@pytest.fixture
def tiny(monkeypatch, shallow_pair):
    """Runs a command; every pair that it asks for is the tiny one. Has the pairs asked for."""
    pair = replace(shallow_pair)
    asked_for = []

    def load(options: PairOptions) -> ModelPair:
        asked_for.append(options)
        return pair

    def run(*arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", ["cospec", *map(str, arguments)])
        cli.main()

    monkeypatch.setattr(PairOptions, "load", load)
    for name in ("_NUM_WARM_UP_PROMPTS", "_NUM_WARM_UP_TOKENS"):
        monkeypatch.setattr(evaluate, name, 1)  # what is not timed needs no more
    run.asked_for, run.pair = asked_for, pair
    return run


@pytest.fixture
def problems(tmp_path):
    """Problems with numbers for answers, which random models never find."""
    path = tmp_path / "problems.jsonl"
    rows = [{"id": f"p/{i}", "question": "the [b]hen" + "s" * i, "answer": i} for i in range(6)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def refusal(capsys):
    """Runs what must be refused, and gives the message: exit 1 with it, or 2 from the parser."""

    def refusal(run, *arguments: object) -> str:
        with pytest.raises(SystemExit) as stop:
            run(*arguments)
        boxed = " ".join(capsys.readouterr().err.replace("│", " ").split())
        return boxed if stop.value.code == 2 else str(stop.value)

    return refusal


def stop_after(monkeypatch, num_calls: int) -> None:
    """Interrupt the generation after so many."""
    generate, calls = Engine.generate, []

    def interrupted(self, prompts, sampling, **more):
        calls.append(1)
        if len(calls) > num_calls:
            raise KeyboardInterrupt
        return generate(self, prompts, sampling, **more)

    monkeypatch.setattr(Engine, "generate", interrupted)
