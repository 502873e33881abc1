"""Arbiters and tasks that another package registers by entry point."""

from __future__ import annotations

import textwrap

import pytest

from cospec import load_arbiter
from cospec.errors import ArbiterError, ConfigError, TaskError
from cospec.tasks import load_task
from cospec.types import Arbiter

MODULE = """
    from dataclasses import dataclass, field

    from cospec.arbiters.rules import LogProbGap
    from cospec.tasks import Example, Score, Task


    @dataclass(frozen=True)
    class Patient(LogProbGap):
        kind = "patient"
        patience: int = 3


    @dataclass(frozen=True)
    class Coin(LogProbGap):
        kind = "coin"
        rate: float = field(kw_only=True)


    def named(path):
        return counting()


    def counting(step="1"):
        def source(split, num_problems, seed):
            numbers = range(0, 10 * int(step), int(step))
            return [Example(f"n{n}", f"After {n}?", str(n + 1)) for n in numbers][:num_problems]

        def score(example, text):
            return Score(float(text == example.answer))

        return Task("counting", source, score)


    def text():
        return "neither an arbiter nor a task"


    NUMBER = 7
"""
ENTRY_POINTS = """
    [cospec.arbiters]
    patient = outsider:Patient
    coin = outsider:Coin
    lossless = outsider:Patient
    broken = outsider:missing
    absent = no_such_module:Arbiter
    number = outsider:NUMBER
    text = outsider:text

    [cospec.tasks]
    counting = outsider:counting
    named = outsider:named
    gsm8k = outsider:counting
    broken = outsider:missing
    text = outsider:text
"""


def install(folder, module, entry_points, name="outsider"):
    """Put a distribution on a folder of ``sys.path``, as pip would."""
    (folder / f"{name}.py").write_text(textwrap.dedent(module))
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(textwrap.dedent(entry_points))


@pytest.fixture(autouse=True)
def outsider(tmp_path, monkeypatch):
    install(tmp_path, MODULE, ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "outsider", raising=False)


def test_a_registered_arbiter_is_loaded_by_its_name_and_settings():
    arbiter = load_arbiter("patient:max_gap=2,patience=5")
    assert isinstance(arbiter, Arbiter)
    assert arbiter.name == "patient:max_gap=2,patience=5"
    assert isinstance(arbiter.patience, int)
    assert load_arbiter("patient").patience == 3
    assert load_arbiter("coin:rate=0.5").rate == 0.5


def test_a_name_of_the_project_cannot_be_taken_over():
    assert load_arbiter("lossless").name == "lossless"


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("patien", ArbiterError, "did you mean 'patient'"),
        ("patient:patienc=2", ArbiterError, "did you mean 'patience'"),
        ("patient:patience=x", ArbiterError, r"it must be a number \(int\)"),
        ("coin", ArbiterError, "setting 'rate' of arbiter coin is missing.*coin:rate=VALUE"),
        ("coin:rate=abc", ArbiterError, r"a number \(float\), as in coin:rate=1"),
        ("patient:max_gap=inf", ConfigError, "max_gap is inf; it must be a finite number"),
        ("broken", ArbiterError, r"outsider: outsider:missing\) cannot be imported"),
        ("absent", ArbiterError, "No module named 'no_such_module'"),
        ("number", ArbiterError, "is 7; it must be a class or function"),
        ("text", ArbiterError, "arbiter text is a str; an arbiter has `name`, `needs`"),
    ],
)
def test_a_registered_arbiter_that_cannot_be_used_is_refused(spec, error, message):
    with pytest.raises(error, match=message):
        load_arbiter(spec)


def test_a_registered_task_is_loaded_with_its_options():
    examples = load_task("counting,step=2").examples("test", 3)
    assert [example.answer for example in examples] == ["1", "3", "5"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("countin", "did you mean 'counting'"),
        ("counting,stepp=2", "did you mean 'step'"),
        ("named", "option 'path' of named is missing.*named,path=VALUE"),
        ("broken", "cannot be imported"),
        ("text", "task text is a str; what is registered in cospec.tasks must"),
        ("gsm8k,step=2", "unknown option of gsm8k 'step'"),
    ],
)
def test_a_registered_task_that_cannot_be_used_is_refused(spec, message):
    with pytest.raises(TaskError, match=message):
        load_task(spec)


def test_a_name_that_two_packages_register_is_refused(tmp_path):
    install(tmp_path, "", "[cospec.arbiters]\npatient = second:Patient", name="second")
    with pytest.raises(ArbiterError, match=r"more than once, by outsider: .*, second: "):
        load_arbiter("patient")
