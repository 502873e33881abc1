"""Specs and data folders: what is found, and what is said when nothing is."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cospec.errors import CodeExecutionRefusedError, MissingExtraError, TaskError
from cospec.tasks import Example, Task, load_task, programs
from cospec.tasks.files import FileSource, read_rows

from .conftest import gsm8k_row, write_lines


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gsm8", "unknown task 'gsm8'; did you mean 'gsm8k'"),
        ("", "unknown task ''"),
        ("gsm8k,split=test", "unknown option of gsm8k 'split'"),
        ("svamp,spilt=test", "did you mean 'split'"),
        ("gsm8k,shots=some", "shots is 'some'; it must be a number, such as gsm8k,shots=8"),
        ("gsm8k,shots=2,shot_sampler=near", "did you mean 'nearest'"),
        ("reasoning_gym:gcd,shot_sampler=first", "does not say how many worked examples"),
        ("svamp,split", "write split=VALUE"),
        ("reasoning_gym:gsm_symbolik", "did you mean 'gsm_symbolic'"),
        ("reasoning_gym:composite", "no problems of its own"),
        ("reasoning_gym:game_of_life_halting", "calls every answer right"),
        ("reasoning_gym:coin_flip", "the beginning of the right number right"),
        ("reasoning_gym:puzzle24", "whether an answer uses the given numbers"),
        ("reasoning_gym:gcd,size=5", "unknown option of reasoning_gym:gcd 'size'"),
        ("reasoning_gym:gcd,reasoning=of", "did you mean 'off'"),
        ("reasoning_gym:gcd,templates=1", "gcd has no templates; leave templates out"),
        ("reasoning_gym:gcd,twins=apart", "gcd has no twins; leave twins out"),
        ("reasoning_gym:gsm_symbolic,twins=appart", "did you mean 'apart'"),
        ("reasoning_gym:gsm_symbolic,templates=32", "'32' in the list of templates '32' names no"),
        ("reasoning_gym:gsm_symbolic,templates=1/", "'' in the list of templates '1/' names no"),
        ("reasoning_gym:gsm_symbolic,templates=9-3", r"write numbers and ranges .* of 0-31/33-34/"),
        ("reasoning_gym:gsm_symbolic,without_templates=0-99", "there are none left"),
        ("reasoning_gym:gsm_symbolic,templates=1,without_templates=2", "both given; give one"),
        ("jsonl:nowhere.jsonl", "there is no file 'nowhere.jsonl'"),
    ],
)
def test_a_spec_that_names_nothing_is_refused_with_the_nearest_name(
    spec: str, message: str, data_dir: Path
) -> None:
    with pytest.raises(TaskError, match=message):
        load_task(spec, data_dir=data_dir)


@pytest.mark.parametrize("spec", ["humaneval", "mbpp", "reasoning_gym:countdown"])
def test_a_task_that_runs_generated_code_needs_permission(spec: str, data_dir: Path) -> None:
    with pytest.raises(CodeExecutionRefusedError, match="--allow-code-execution"):
        load_task(spec, data_dir=data_dir)


def test_the_data_folder_is_the_given_one_then_the_environment_then_data(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COSPEC_DATA", raising=False)
    assert load_task("svamp", data_dir=data_dir)
    monkeypatch.setenv("COSPEC_DATA", str(data_dir))
    assert load_task("svamp")
    with pytest.raises(TaskError, match=r"elsewhere.svamp holds no SVAMP.json.*COSPEC_DATA"):
        load_task("svamp", data_dir=tmp_path / "elsewhere")
    monkeypatch.delenv("COSPEC_DATA")
    monkeypatch.chdir(tmp_path)
    assert load_task("svamp")


def test_without_a_folder_the_message_says_where_it_looked_and_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COSPEC_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"data.gsm8k holds no train.jsonl.*openai/gsm8k"):
        load_task("gsm8k")
    with pytest.raises(TaskError, match=r"asdiv holds no ASDiv.xml"):
        load_task("asdiv")


def test_without_a_folder_the_hub_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, config: str, split: str) -> list[dict[str, object]]:
        asked.append((name, config, split))
        return [gsm8k_row(len(asked))]

    monkeypatch.delenv("COSPEC_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert load_task("gsm8k").examples("test")[0].id == "gsm8k/test/0"
    assert asked == [("openai/gsm8k", "main", "train"), ("openai/gsm8k", "main", "test")]


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ConnectionError("no route"), TaskError, "no data .*Error: no route -- set COSPEC_DATA"),
        (RuntimeError("client closed"), TaskError, "openai/gsm8k cannot be fetched: RuntimeError"),
        (MemoryError("full"), MemoryError, "^full"),
    ],
)
def test_a_hub_that_fails_is_told_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type, message: str
) -> None:
    """Found: a traceback where there was neither a data folder nor a network."""

    def load_dataset(*_: object, **__: object) -> None:
        raise error

    monkeypatch.delenv("COSPEC_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(kind, match=message):
        load_task("gsm8k")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("gsm8k/train.jsonl", b'{"question": "a"\n'),
        ("gsm8k/train.jsonl", b"[1]\n"),
        ("gsm8k/train.jsonl", b"\xff\xfe"),
        ("svamp/SVAMP.json", b'{"a": 1}'),
        ("asdiv/ASDiv.xml", b"<Root>"),
    ],
)
def test_a_damaged_file_is_named(file: str, content: bytes, data_dir: Path) -> None:
    (data_dir / file).write_bytes(content)
    with pytest.raises(TaskError, match=Path(file).name):
        load_task(file.partition("/")[0], data_dir=data_dir)


@pytest.mark.parametrize(
    ("file", "row", "message"),
    [
        ("gsm8k/train.jsonl", {"question": "Q?"}, r"row 0 of .*train\.jsonl .*field 'answer'"),
        ("aqua/test.jsonl", {"question": "Q?", "options": []}, r"test\.jsonl .*field 'rationale'"),
        ("mbpp/mbpp.jsonl", {"text": "Add."}, r"row 0 of .*mbpp\.jsonl .*field 'task_id'"),
    ],
)
def test_a_field_that_a_row_lacks_is_named_with_file_and_row(
    file: str, row: dict[str, object], message: str, data_dir: Path
) -> None:
    """Found: a KeyError."""
    write_lines(data_dir / file, [row])
    with pytest.raises(TaskError, match=message):
        named_task(file, data_dir)


def named_task(file: str, data_dir: Path) -> Task:
    """The set of a file, without the permission that it may need."""
    name = file.partition("/")[0]
    return programs.mbpp(data_dir) if name == "mbpp" else load_task(name, data_dir=data_dir)


def test_an_empty_field_of_asdiv_is_named_with_file_and_row(data_dir: Path) -> None:
    """Found: an AttributeError."""
    text = (data_dir / "asdiv/ASDiv.xml").read_text(encoding="utf-8")
    text = text.replace("<Body>There are 2 hens.</Body>", "<Body></Body>")
    (data_dir / "asdiv/ASDiv.xml").write_text(text, encoding="utf-8")
    with pytest.raises(TaskError, match=r"row 2 of .*ASDiv\.xml .*nothing in the field 'Body'"):
        load_task("asdiv", data_dir=data_dir)


@pytest.mark.parametrize("row", [{"question": "a \ud800 b"}, {"options": [{"A": "a \ud800 b"}]}])
def test_half_of_a_character_is_refused_with_file_and_row(
    row: dict[str, object], tmp_path: Path
) -> None:
    """Found: a UnicodeEncodeError when the problem was given a split."""
    path = tmp_path / "mine.jsonl"
    write_lines(path, [{"question": "\U0001f600"}, row])
    with pytest.raises(TaskError, match=r"row 1 of .*mine\.jsonl .*half of a character, '.ud800'"):
        read_rows(path)


def test_importing_the_tasks_loads_no_heavy_package() -> None:
    heavy = ("transformers", "reasoning_gym", "math_verify", "datasets", "sympy")
    code = f"import cospec.tasks, sys; sys.exit(any(m in sys.modules for m in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("seed", [0, 5])
def test_problems_that_begin_alike_come_in_runs_that_do_not_depend_on_their_number(seed):
    pool = [Example(f"x/{i}", "q", "a", {"db": f"{i % 3}"}) for i in range(120)]
    source = FileSource("x", {"test": pool}, lambda example: example.metadata["db"])
    every = source("test", None, seed)
    assert sorted(e.id for e in every) == sorted(e.id for e in pool)
    assert [e.id for e in source("test", 50, seed)] == [e.id for e in every[:50]]
    runs = [len(list(run)) for _, run in itertools.groupby(every, lambda e: e.metadata["db"])]
    assert len(runs) <= 9 < 120 // 8, "each database has three runs at the most: 16, 16 and 8"
    assert every != source("test", None, seed + 1)


def test_the_data_folder_may_be_a_string_and_begin_with_the_home_folder(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found: a TypeError, and a folder named ``~``."""
    monkeypatch.delenv("COSPEC_DATA", raising=False)
    monkeypatch.setenv("HOME", str(data_dir.parent))
    for folder in (str(data_dir), "~/data", Path("~/data")):
        assert load_task("svamp", data_dir=folder)
    monkeypatch.setenv("COSPEC_DATA", "~/data")
    assert load_task("svamp")


def test_an_empty_variable_names_no_data_folder(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found: it was the working directory."""
    monkeypatch.setenv("COSPEC_DATA", "")
    monkeypatch.chdir(data_dir.parent)
    assert load_task("svamp")
