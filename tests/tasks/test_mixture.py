"""Several tasks as one."""

from __future__ import annotations

import pickle
from itertools import islice
from typing import TYPE_CHECKING, Any

import pytest

from cospec.errors import TaskError
from cospec.tasks import load_task
from cospec.tasks.mixture import _Parts

from .conftest import write_lines

if TYPE_CHECKING:
    from pathlib import Path

SPEC = "mix:gsm8k@2+svamp+reasoning_gym:gcd@1"


def test_a_mixture_takes_its_parts_in_turns_as_often_as_they_weigh(data_dir: Path) -> None:
    task = load_task(SPEC, data_dir=data_dir)
    assert task.name == "mix:gsm8k@2+svamp@1+reasoning_gym:gcd@1"
    examples = task.examples("train", 10, seed=3)
    names = [task.part_of(example).name for example in examples]
    assert names == [*["gsm8k", "gsm8k", "svamp", "reasoning_gym:gcd"] * 2, "gsm8k", "gsm8k"]
    assert examples[:5] == task.examples("train", 5, seed=3), "a larger number only adds"
    assert [e.id for e in examples[:2]] == [
        e.id for e in load_task("gsm8k", data_dir=data_dir).examples("train", 2, seed=3)
    ]


def test_each_example_is_asked_and_scored_as_in_its_own_task(
    data_dir: Path, plain_tokenizer: Any
) -> None:
    task = load_task(SPEC, data_dir=data_dir)
    for example in task.examples("train", 4):
        own = load_task(task.part_of(example).name, data_dir=data_dir)
        assert task.prompt(example, plain_tokenizer) == own.prompt(example, plain_tokenizer)
        assert task.score(example, f"#### {example.answer}").correct
        assert not task.score(example, "#### -7").correct


def test_all_problems_are_those_of_every_part(data_dir: Path) -> None:
    parts = [load_task(spec, data_dir=data_dir).examples("tune") for spec in ("gsm8k", "svamp")]
    found = load_task("mix:gsm8k@3+svamp@1", data_dir=data_dir).examples("tune")
    assert [e.id for e in found] == [e.id for examples in parts for e in examples]
    with pytest.raises(TaskError, match="say how many"):
        load_task(SPEC, data_dir=data_dir).examples("tune")


def test_a_weight_costs_no_memory() -> None:
    """Found: a list as long as the weights, 13 GB of it."""
    parts = _Parts({}, {"a": 1, "b": 10**30})
    assert list(islice(parts.turns(), 4)) == ["a", "b", "b", "b"]
    assert list(islice(_Parts({}, {"a": 2, "b": 1}).turns(), 5)) == ["a", "a", "b", "a", "a"]


def test_a_mixture_can_be_sent_to_other_processes(data_dir: Path) -> None:
    task = pickle.loads(pickle.dumps(load_task(SPEC, data_dir=data_dir)))
    assert len(task.examples("train", 4)) == 4


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mix:", "unknown task ''"),
        ("mix:gsm8k+svam@2", "did you mean 'svamp'"),
        ("mix:gsm8k@2+gsm8k@1", "names each task once"),
        ("mix:gsm8k@0+svamp", "a weight of 1 or more"),
        ("mix:gsm8k@two+svamp", "unknown task 'gsm8k@two'"),
        ("mix:mix:gsm8k@1+svamp@1", "a part of a mixture cannot be a mixture"),
        ("mix:svamp@1+mix:gsm8k@1", "a part of a mixture cannot be a mixture"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(spec: str, message: str, data_dir: Path) -> None:
    with pytest.raises(TaskError, match=message):
        load_task(spec, data_dir=data_dir)


def test_two_problems_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_lines(tmp_path / folder / "same.jsonl", [{"question": folder, "answer": "1"}])
    spec = "+".join(f"jsonl:{tmp_path / folder}/same.jsonl,split=test" for folder in ("a", "b"))
    with pytest.raises(TaskError, match="'same/0' is a problem of two parts"):
        load_task(f"mix:{spec}").examples("test")


def test_groups_of_one_name_in_two_parts_are_two(tmp_path: Path) -> None:
    """Found: unrelated databases were one unit of the tests over groups."""
    for name in ("a", "b"):
        rows = [{"question": f"{name} {i}?", "answer": "3", "group": "shop"} for i in range(4)]
        write_lines(tmp_path / f"{name}.jsonl", rows)
    parts = [f"jsonl:{tmp_path / name}.jsonl,split=test@1" for name in ("a", "b")]
    groups = {example.group for example in load_task("mix:" + "+".join(parts)).examples("test")}
    assert len(groups) == 2 and all(group.endswith(": shop") for group in groups)
