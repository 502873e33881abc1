"""A run that is interrupted goes on where it stopped, and only with its own configuration."""

from __future__ import annotations

import json

import pytest

from cospec import Engine
from cospec.config import DecodeConfig
from cospec.errors import ConfigError
from cospec.evaluation.arms import make_arms
from cospec.evaluation.evaluate import Evaluation
from cospec.evaluation.turns import Turn, TurnLog

CONFIG = {"k": 4, "pair": {"target": "a", "draft": "b"}}
TURNS = [
    Turn(chunk, arm, 0.5, [{"id": f"p{chunk}", "num_tokens": 3, "text": "naïve\n"}])
    for chunk in range(2)
    for arm in ("target", "draft")
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "r.json.part.jsonl"


def interrupted(path):
    log = TurnLog(path, CONFIG)
    for turn in TURNS[:3]:
        log.append(turn)


def test_the_file_holds_the_configuration_and_each_finished_turn(path):
    interrupted(path)
    head, *turns = map(json.loads, path.read_text().splitlines())
    assert head == {"config": CONFIG}
    assert [Turn(**turn) for turn in turns] == TURNS[:3]
    log = TurnLog(path, CONFIG)
    assert log.done == TURNS[:3]
    log.append(TURNS[3])
    assert TurnLog(path, CONFIG).done == TURNS
    log.remove()
    assert not path.exists()


def test_a_line_that_was_cut_off_is_dropped(path):
    interrupted(path)
    with path.open("a") as file:
        file.write('{"chunk": 1, "arm": "dra')
    log = TurnLog(path, CONFIG)
    assert log.done == TURNS[:3]
    log.append(TURNS[3])
    assert TurnLog(path, CONFIG).done == TURNS


def test_a_file_that_was_cut_off_in_its_head_starts_afresh(path):
    path.write_text('{"conf')
    assert TurnLog(path, CONFIG).done == []
    assert path.read_text() == json.dumps({"config": CONFIG}) + "\n"


def test_another_configuration_is_refused_by_name_and_nothing_is_lost(path):
    interrupted(path)
    before = path.read_text()
    other = {"k": 4, "pair": {"target": "c", "draft": "b"}, "threads": 1}
    with pytest.raises(ConfigError, match="another configuration") as error:
        TurnLog(path, other)
    assert "pair.target 'a' there and 'c' here; threads None there and 1 here" in str(error.value)
    assert path.read_text() == before


@pytest.mark.parametrize("text", ["[1]\n", "precious\n", '{"config": {}}\n{"arm": 1}\n'])
def test_a_file_of_something_else_is_refused_and_kept(path, text):
    path.write_text(text)
    with pytest.raises(ConfigError, match="is damaged"):
        TurnLog(path, {})
    assert path.read_text() == text


def test_a_resumed_evaluation_gives_the_same_rows_and_repeats_no_turn(pair, task, monkeypatch):
    from cospec import load_arbiter

    calls = []
    generate = Engine.generate

    def counted(self, prompts, sampling):
        calls.append(len(prompts))
        return generate(self, prompts, sampling)

    monkeypatch.setattr(Engine, "generate", counted)
    spec = "random:rate=0.5"
    arms = make_arms(pair, [(spec, load_arbiter(spec))], DecodeConfig(batch_size=2))
    evaluation = Evaluation(arms, task, task.examples("test"), max_new_tokens=12, chunk_size=3)
    whole = list(evaluation.turns())
    num_warm_up, num_turns = 4, 3 * 4
    assert len(calls) == num_warm_up + num_turns
    calls.clear()
    resumed = list(evaluation.turns(whole[:10]))
    assert len(calls) == 2 + 2, "the two arms that are left, their warm-up and their turn"
    assert resumed[:10] == whole[:10]
    assert [turn.rows for turn in resumed] == [turn.rows for turn in whole]
    calls.clear()
    assert list(evaluation.turns(whole)) == whole
    assert calls == []
