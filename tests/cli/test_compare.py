"""``cospec compare`` and ``cospec reproduce`` on files that eval and bench wrote."""

from __future__ import annotations

import gzip
import json

import pytest
from experiments.slim import slim

from cospec.cli import reproduce
from cospec.cli.reproduce import _check_code
from cospec.errors import ConfigError
from cospec.report.read import acceptance_rates


@pytest.fixture
def evaluate(tiny, problems):
    def run(path, *arguments: object) -> None:
        tiny(
            "eval", "--pair", "bundled:tiny", "--task",
            f"jsonl:{problems},scorer=numeric,split=test", "--max-new-tokens", 4,
            "--batch-size", 2, "--arbiter", "gap", "--json", path, *arguments,
        )  # fmt: skip

    return run


_MADE: list[str] = []
"""The two results, made once, with ``FOLDER`` for the folder of the test that made them."""


@pytest.fixture
def results(evaluate, tmp_path):
    paths = tmp_path / "a.json", tmp_path / "b.json"
    if not _MADE:
        for path in paths:
            evaluate(path)
        _MADE.extend(path.read_text().replace(str(tmp_path), "FOLDER") for path in paths)
    for path, text in zip(paths, _MADE, strict=True):
        path.write_text(text.replace("FOLDER", str(tmp_path)))
    return paths


def change(path, edit):
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def test_two_runs_of_one_command_are_alike(results, tiny, capsys):
    capsys.readouterr()
    tiny("compare", *results, "--fail-if-worse")
    out = capsys.readouterr().out
    assert "batch 2, temperature 0" in out
    lines = [line.split() for line in out.splitlines()]
    for name in ("target", "draft", "lossless", "gap:max_gap=1"):
        (line,) = (line for line in lines if line and line[0] == name)
        assert line[1] == "6"
        assert line[4] == "0/0"


def test_a_worse_run_fails_if_asked_to(results, tiny, capsys):
    a, b = results
    change(a, lambda d: [row.update(correct=True) for row in d["rows"]])
    tiny("compare", a, b, "--alpha", 0.9)
    assert "worse in B: target (batch 2, temperature 0)" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        tiny("compare", a, b, "--alpha", 0.9, "--fail-if-worse")
    assert stop.value.code == 1
    tiny("compare", b, a, "--alpha", 0.9, "--fail-if-worse")


def test_unlike_runs_are_refused_and_can_be_accepted(results, tiny):
    a, b = results
    change(b, lambda d: d["provenance"].update(threads=7))
    with pytest.raises(SystemExit, match=r"threads: 1 and 7"):
        tiny("compare", a, b)
    tiny("compare", a, b, "--allow", "threads")


def test_settings_that_differ_are_shown(evaluate, results, tiny, capsys):
    a, _ = results
    c = a.with_name("c.json")
    evaluate(c, "-k", 2)
    tiny("compare", a, c)
    assert "lossless (k 4 then 2)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "cannot be read as a result file"),
        ("[]", "no result file of this version"),
        ('{"schema": 2}', "schema 2, wanted 1"),
        ('{"schema": 1, "command": "audit", "config": {}}', "a result of 'audit'"),
    ],
)
def test_a_file_that_is_no_result_is_refused(tiny, tmp_path, text, sentence):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(SystemExit, match=sentence):
        tiny("compare", path, path)
    with pytest.raises(SystemExit, match="cannot be read"):
        tiny("compare", tmp_path / "none.json", path)


def test_a_bad_level_is_refused(results, tiny):
    with pytest.raises(SystemExit, match="alpha is 2"):
        tiny("compare", *results, "--alpha", 2)


def test_a_result_is_reproduced_into_a_new_file(results, tiny, capsys, monkeypatch, tmp_path):
    a, _ = results
    before = a.read_text()
    monkeypatch.chdir(tmp_path)
    tiny("reproduce", a)
    captured = capsys.readouterr()
    assert "running: cospec eval --pair bundled:tiny" in captured.err
    assert "all 24 texts are identical" in captured.out
    assert a.read_text() == before
    again = json.loads((tmp_path / "a.again.json").read_text())
    assert again["argv"][-2:] == ["--json", "a.again.json"]
    assert again["rows"] == json.loads(before)["rows"]
    with gzip.open("a.json.gz", "wb") as file:
        file.write(a.read_bytes())
    with pytest.raises(SystemExit, match=r"a\.again\.json exists; name another file"):
        tiny("reproduce", "a.json.gz")


def test_text_of_a_strangers_file_cannot_move_the_cursor(results, tiny, capfd, tmp_path):
    """Found: the line that tells what is run could be written over."""
    a, b = results
    for path in (a, b):
        change(path, lambda d: d["config"]["evaluation"].update(task="\x1b[2Ktask"))
    change(a, lambda d: [row.update(correct=True) for row in d["rows"]])
    tiny("compare", a, b, "--alpha", 0.9)
    out = capfd.readouterr().out
    assert r"\x1b[2Ktask, batch 2" in out and "\x1b" not in out
    change(a, lambda d: d["argv"].append("\x1b[2Kword"))
    with pytest.raises(SystemExit):
        tiny("reproduce", a, "--out", tmp_path / "out.json")
    (line,) = (each for each in capfd.readouterr().err.split("\n") if "running:" in each)
    assert line.startswith("running: cospec eval") and r"\x1b[2Kword" in line


@pytest.mark.parametrize(
    "more",
    [
        ["--allow-pickle"],
        ["--allow_code_execution"],
        ['--vllm-options={"trust_remote_code": true}'],
        ["--ray-address", "ray://elsewhere:10001"],
        ["--config", "any_option.json"],
        ["--task", "jsonl:x.jsonl,scorer=evil:run"],
    ],
)
def test_a_command_that_can_run_code_is_run_for_those_who_trust_it(results, tiny, tmp_path, more):
    a, _ = results
    change(a, lambda d: d["argv"].extend(more))
    with pytest.raises(SystemExit, match=r"it can run any code; read it, and pass --trust"):
        tiny("reproduce", a, "--out", tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


OTHER_PART = "reasoning_gym:gsm_symbolic,templates=3/7@2"


@pytest.mark.parametrize("option", ["--task {}", "--task={}"])
@pytest.mark.parametrize(
    ("part", "is_refused"),
    [
        ("jsonl:a.jsonl,scorer=evil:run", True),
        ("jsonl:a.jsonl,scorer=evil.more:run@3", True),
        ("jsonl:a.jsonl,split=test,scorer=evil:run,question=q", True),
        ("jsonl:a.jsonl,scorer=numeric", False),
        ("jsonl:a.jsonl,scorer=numeric@3", False),
        ("jsonl:c:d.jsonl,scorer=regex,answer=a:b@3", False),
    ],
)
def test_a_scorer_of_ones_own_is_found_in_any_part_of_a_mixture(option, part, is_refused):
    """Found: where another part had a colon, built-in scorers were refused as well."""
    for task in (part, f"mix:{part}+{OTHER_PART}", f"mix:{OTHER_PART}+{part}"):
        argv = ["cospec", "eval", *option.format(task).split()]
        if is_refused:
            with pytest.raises(ConfigError, match="it can run any code; read it"):
                _check_code(argv)
        else:
            _check_code(argv)


def test_a_command_that_would_write_a_file_of_its_own_is_refused(results, tiny, tmp_path):
    """Found: the completion script of a stranger's result replaced any file."""
    a, _ = results
    victim = tmp_path / "victim"
    victim.write_text("mine")
    change(a, lambda d: d["argv"].extend(["--tyro-write-completion", "bash", str(victim)]))
    with pytest.raises(SystemExit, match="which writes a file of its choice"):
        tiny("reproduce", a, "--out", tmp_path / "out.json", "--no-trust")
    assert victim.read_text() == "mine"


def test_a_damaged_result_is_named(results, tiny):
    a, b = results
    change(b, lambda d: d["config"]["evaluation"].pop("num_problems"))
    with pytest.raises(SystemExit, match=r"is damaged or of another version \(KeyError"):
        tiny("compare", a, b)


def test_a_command_that_is_trusted_runs(results, tiny, tmp_path, capsys):
    a, _ = results
    change(a, lambda d: d["argv"].append("--allow-pickle"))
    tiny("reproduce", a, "--out", tmp_path / "out.json", "--trust")
    assert "all 24 texts are identical" in capsys.readouterr().out


def test_a_benchmark_is_reproduced(tiny, problems, tmp_path, capsys):
    path, out = tmp_path / "bench.json", tmp_path / "out.json"
    tiny(
        "bench", "--pair", "bundled:tiny", "--task", f"jsonl:{problems},scorer=numeric,split=test",
        "--max-new-tokens", 4, "--arms", "gap", "--num-tune-problems", 0, "--repeats", 1,
        f"--json={path}", "--overwrite",
    )  # fmt: skip
    tiny("reproduce", path, "--out", out)
    assert "all 24 texts are identical" in capsys.readouterr().out
    assert "--overwrite" not in json.loads(out.read_text())["argv"]


def test_an_answer_that_changed_is_told_and_fails_where_nothing_else_did(
    results, tiny, tmp_path, capsys
):
    a, _ = results
    change(a, lambda d: d["rows"][0].update(text="another", correct=True))
    with pytest.raises(SystemExit) as stop:
        tiny("reproduce", a, "--out", tmp_path / "1.json")
    assert stop.value.code == 1
    out = capsys.readouterr().out
    assert "1 of 24 texts differ; right answers differ in target." in out
    assert "not reproduced" in out
    change(a, lambda d: d["provenance"]["versions"].update(torch="1.0"))
    tiny("reproduce", a, "--out", tmp_path / "2.json")
    out = capsys.readouterr().out
    assert "versions.torch was '1.0'" in out
    assert "need not be the same" in out


def test_a_result_without_texts_is_compared_and_reproduced_by_its_verdicts(
    results, tiny, tmp_path, capsys
):
    a, b = results
    whole = json.loads(b.read_text())
    a.write_text(b.read_text())
    change(a, slim)
    small = json.loads(a.read_text())
    assert len(small["rows"]) == len(whole["arms"])
    assert acceptance_rates(small["rows"]) == acceptance_rates(whole["rows"])
    capsys.readouterr()
    tiny("compare", a, b)
    shown = capsys.readouterr().out
    tiny("compare", b, b)
    assert shown.replace("?", "0") == capsys.readouterr().out
    tiny("reproduce", a, "--out", tmp_path / "1.json")
    assert "all 24 verdicts (the old texts are lost) are identical" in capsys.readouterr().out
    flip = str.maketrans("01", "10")
    change(a, lambda d: d["rows"][0].update(correct=d["rows"][0]["correct"].translate(flip)))
    with pytest.raises(SystemExit):
        tiny("reproduce", a, "--out", tmp_path / "2.json")
    assert "6 of 24 verdicts" in capsys.readouterr().out


def test_what_cannot_be_reproduced_is_refused(results, tiny, problems, tmp_path):
    a, b = results
    with pytest.raises(SystemExit, match="never overwritten"):
        tiny("reproduce", a, "--out", a)
    change(b, lambda d: d.update(argv=[*d["argv"], f"--threads={tmp_path}/a/b"]))
    with pytest.raises(SystemExit, match=r"with .*/a/b, which does not exist here"):
        tiny("reproduce", b, "--out", tmp_path / "new.json")
    problems.unlink()
    change(b, lambda d: d.update(argv=["cospec", "eval", f"--task=jsonl:{problems},scorer=exact"]))
    with pytest.raises(SystemExit, match=r"with .*problems\.jsonl, which does not exist here"):
        tiny("reproduce", b, "--out", tmp_path / "new.json")
    with pytest.raises(SystemExit, match=r"problems\.jsonl, which does not exist here"):
        tiny("reproduce", a, "--out", tmp_path / "new.json")
    change(b, lambda d: d.update(argv=["cospec", "calibrate"]))
    with pytest.raises(SystemExit, match="made by 'cospec calibrate'"):
        tiny("reproduce", b, "--out", tmp_path / "new.json")
    change(b, lambda d: d.update(argv=["cospec", "eval", "--arbiter", "no/such/arbiter:point=x"]))
    with pytest.raises(SystemExit, match="no/such/arbiter, which does not exist"):
        tiny("reproduce", b, "--out", tmp_path / "new.json")
    assert not (tmp_path / "new.json").exists()


def test_paths_that_a_command_takes_are_found_again(tmp_path, monkeypatch):
    """Found: ~, a colon in a name and a revision with slashes were no files."""
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "a:b"
    folder.mkdir()
    (tmp_path / "mine.jsonl").touch()
    words = ["jsonl:~/mine.jsonl,scorer=exact", str(folder), "user/name@refs/pr/1"]
    reproduce._check_paths(["cospec", "eval", *words])
