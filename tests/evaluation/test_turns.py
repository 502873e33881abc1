"""A run that is interrupted goes on where it stopped, and only with its own configuration."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys

import pytest

from cospec import Engine
from cospec.config import DecodeConfig
from cospec.errors import ConfigError
from cospec.evaluation.arms import make_arms
from cospec.evaluation.evaluate import Evaluation
from cospec.evaluation.turns import Turn, TurnLog, check_unlocked

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
    with TurnLog(path, CONFIG) as log:
        for turn in TURNS[:3]:
            log.append(turn)


def stored(path):
    with TurnLog(path, CONFIG) as log:
        return log.done


def test_the_file_holds_the_configuration_and_each_finished_turn(path):
    interrupted(path)
    head, *turns = map(json.loads, path.read_text().splitlines())
    assert head == {"config": CONFIG}
    assert [Turn(**turn) for turn in turns] == TURNS[:3]
    with TurnLog(path, CONFIG) as log:
        assert log.done == TURNS[:3]
        log.append(TURNS[3])
    log = TurnLog(path, CONFIG)
    assert log.done == TURNS
    log.remove()
    assert not path.exists()


def test_a_line_that_was_cut_off_is_dropped(path):
    interrupted(path)
    with path.open("a") as file:
        file.write('{"chunk": 1, "arm": "dra')
    with TurnLog(path, CONFIG) as log:
        assert log.done == TURNS[:3]
        log.append(TURNS[3])
    assert stored(path) == TURNS


def test_a_line_that_was_cut_inside_a_character_is_dropped(path):
    interrupted(path)
    whole = path.read_bytes()
    line = json.dumps({"chunk": 1, "arm": "draft", "text": "naïve"}, ensure_ascii=False).encode()
    path.write_bytes(whole + line[: line.index(b"\xc3") + 1])
    with TurnLog(path, CONFIG) as log:
        assert log.done == TURNS[:3]
    assert path.read_bytes() == whole


def test_a_second_run_is_refused_while_the_first_one_writes(path):
    with TurnLog(path, CONFIG) as log:
        log.append(TURNS[0])
        before = path.read_bytes()
        with pytest.raises(ConfigError, match="another run is writing to"):
            TurnLog(path, CONFIG)
        with pytest.raises(ConfigError, match="another run is writing to"):
            check_unlocked(path)
        assert path.read_bytes() == before
    with TurnLog(path, CONFIG) as log:
        assert log.done == TURNS[:1]


def test_a_refused_log_is_not_left_locked(path):
    interrupted(path)
    for _ in range(2):
        with pytest.raises(ConfigError, match="another configuration"):
            TurnLog(path, {"k": 5})
    check_unlocked(path)


def test_a_log_that_cannot_be_written_is_refused_with_a_sentence(tmp_path):
    """Found: --json /proc/x.json ended in a FileNotFoundError after the models were loaded."""
    with pytest.raises(ConfigError, match=r"cannot be written .*; name another file"):
        TurnLog(tmp_path / "no folder" / "log", CONFIG)


def test_the_lock_ends_with_a_process_that_is_killed(path):
    program = (
        "import sys, time; from pathlib import Path\n"
        "from cospec.evaluation.turns import TurnLog\n"
        f"log = TurnLog(Path(sys.argv[1]), {CONFIG!r})\n"
        "print('locked', flush=True); time.sleep(300)"
    )
    command = [sys.executable, "-c", program, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(ConfigError, match="another run is writing to"):
            TurnLog(path, CONFIG)
        other.kill()
        other.wait()
    with TurnLog(path, CONFIG) as log:
        assert log.done == []


def test_a_file_that_its_run_deletes_is_not_locked_in_its_place(path, monkeypatch):
    """A run may finish between our opening of its log and our lock: then we start a new file."""
    other, flock = TurnLog(path, CONFIG), fcntl.flock

    def late(file, flags):
        monkeypatch.setattr(fcntl, "flock", flock)
        other.remove()
        flock(file, flags)

    monkeypatch.setattr(fcntl, "flock", late)
    with TurnLog(path, CONFIG) as log:
        log.append(TURNS[0])
    assert stored(path) == TURNS[:1]


def test_a_file_that_was_cut_off_in_its_head_starts_afresh(path):
    path.write_text('{"conf')
    assert stored(path) == []
    assert path.read_text() == json.dumps({"config": CONFIG}) + "\n"


def test_another_configuration_is_refused_by_name_and_nothing_is_lost(path):
    interrupted(path)
    before = path.read_text()
    other = {"k": 4, "pair": {"target": "c", "draft": "b"}, "threads": 1}
    with pytest.raises(ConfigError, match="another configuration") as error:
        TurnLog(path, other)
    assert "pair.target 'a' there and 'c' here; threads None there and 1 here" in str(error.value)
    assert path.read_text() == before


def test_a_log_without_a_turn_has_nothing_to_lose(path):
    """Found: a run killed before its first turn had to be repeated or deleted by hand."""
    TurnLog(path, CONFIG).close()
    with path.open("a") as file:
        file.write('{"chunk": 0, "ar')
    with TurnLog(path, {"k": 5}) as log:
        assert log.done == []
    assert path.read_text() == json.dumps({"config": {"k": 5}}) + "\n"


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

    def counted(self, prompts, sampling, **more):
        calls.append(len(prompts))
        return generate(self, prompts, sampling, **more)

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
