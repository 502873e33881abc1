"""The command line as a user starts it, on a tiny pair saved as a checkpoint."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import runpy
import subprocess
import sys

import pytest

from cospec import cli
from cospec.cli.generate import PromptOptions, _Timed
from cospec.cli.views.paint import STYLES, Painter
from cospec.engine import Engine
from cospec.errors import pip_line
from cospec.types import Origin
from tests.cli.conftest import stop_after
from tests.conftest import disturbed, random_model


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tokenizer):
    target = random_model("llama")
    paths = {}
    for role, model in {"target": target, "draft": disturbed(target, 0.12)}.items():
        paths[role] = str(tmp_path_factory.mktemp(role))
        model.save_pretrained(paths[role])
        tokenizer.save_pretrained(paths[role])
    return paths


@pytest.fixture
def cospec(monkeypatch, folders):
    def run(*arguments: object) -> None:
        models = [f"--{role}={path}" for role, path in folders.items()]
        argv = ["cospec", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", argv + (models if arguments[0] == "generate" else []))
        cli.main()

    return run


def test_info_names_versions_arbiters_and_what_is_missing(cospec, capsys):
    cospec("info")
    out = capsys.readouterr().out
    assert "transformers" in out
    assert "gap:max_gap=1" in out
    for extra in importlib.metadata.metadata("cospec").get_all("Provides-Extra"):
        assert extra == "dev" or f"extra {extra}" in out, "every extra is listed"


def test_info_gives_the_line_that_installs_a_missing_extra(cospec, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name)
    )
    cospec("info")
    out = " ".join(capsys.readouterr().out.split())
    assert f"extra wandb missing (wandb); run: {pip_line('wandb')}" in out


def test_generate_streams_one_prompt_and_writes_result_and_trace(cospec, capsys, tmp_path):
    result, trace = tmp_path / "r.json", tmp_path / "t.jsonl"
    cospec(
        "generate", "--prompt", "the and", "--max-new-tokens", 20, "-k", 3,
        "--arbiter", "gap:max_gap=2", "--json", result, "--trace", trace,
    )  # fmt: skip
    document = json.loads(result.read_text())
    (row,) = document["rows"]
    assert capsys.readouterr().out == row["text"] + "\n"
    assert document["schema"] == 1
    assert document["command"] == "generate"
    assert document["config"]["decode"]["num_speculative_tokens"] == 3
    assert {"git", "versions", "device", "dtype", "threads", "seconds"} <= set(
        document["provenance"]
    )
    (line,) = trace.read_text().splitlines()
    completion = json.loads(line)
    assert completion["text"] == row["text"]
    assert len(completion["origins"]) == len(completion["token_ids"]) == row["num_tokens"]
    assert completion["trace"][0]["mismatches"] is not None
    assert document["totals"]["num_drafts"] == len(completion["trace"])


def test_a_trace_without_probabilities_of_a_draft_is_json(cospec, tmp_path):
    trace = tmp_path / "t.jsonl"
    cospec(
        "generate", "--prompt", "the and the and the", "--drafter", "ngram", "--arbiter",
        "always_draft", "--max-new-tokens", 40, "--trace", trace,
    )  # fmt: skip
    (line,) = trace.read_text().splitlines()
    blocks = json.loads(line, parse_constant=pytest.fail)["trace"]
    assert [m["q_draft_id"] for block in blocks for m in block["mismatches"]][:1] == [None]


def test_what_an_interrupted_run_has_not_written_is_not_overwritten(
    cospec, tmp_path, monkeypatch, refusal
):
    result, precious = tmp_path / "r.json", tmp_path / "precious.jsonl"
    with monkeypatch.context() as patch:
        stop_after(patch, 0)
        source = tmp_path / "two.txt"
        source.write_text("a\nb\n")
        with pytest.raises(SystemExit):
            cospec("generate", "--file", source, "--json", result)
    assert result.with_name("r.json.part.jsonl").exists()
    precious.write_text("kept")
    command = ["generate", "--prompt", "b", "--json", result, "--trace", precious]
    assert "precious.jsonl exists" in refusal(cospec, *command)
    assert precious.read_text() == "kept"


def test_the_line_of_a_file_that_does_not_fit_is_named(cospec, tmp_path, refusal):
    path = tmp_path / "p.jsonl"
    path.write_text('\n{"prompt": "the"}\n\n{}\n')
    assert "p.jsonl, line 4 has no field 'prompt'" in refusal(cospec, "generate", "--file", path)


def test_only_the_time_that_deltas_take_is_that_of_a_generation(monkeypatch):
    """Found: the time to paint them was measured as well."""
    now = [0.0]

    def stream():
        for _ in range(3):
            now[0] += 1.0
            yield "a delta"

    monkeypatch.setattr("cospec.cli.generate.time.perf_counter", lambda: now[0])
    deltas = _Timed(stream())
    for _ in deltas:
        now[0] += 10.0
    assert deltas.seconds == 3.0


def test_generate_takes_a_file_of_prompts_and_a_template(cospec, capsys, tmp_path):
    prompts = tmp_path / "p.jsonl"
    prompts.write_text("".join(json.dumps({"q": w}) + "\n" for w in ("the", "and", "in", "on")))
    result = tmp_path / "r.json"
    cospec(
        "generate", "--file", prompts, "--batch-size", 2, "--max-new-tokens", 5, "--json", result,
        "--config", json.dumps({"field": "q", "num_prompts": 3, "template": "{prompt}\nstone"}),
    )  # fmt: skip
    document = json.loads(result.read_text())
    assert [row["id"] for row in document["rows"]] == [0, 1, 2]
    assert document["num_finished"] == document["num_prompts"] == 3
    assert capsys.readouterr().out.count("---") == 3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "there is no prompt"),
        (["--prompt", "a", "--arbiter", "gapp"], "did you mean 'gap'?"),
        (["--prompt", "a", "-k", 0], "num_speculative_tokens is 0"),
        (["--file", "nowhere.txt"], "cannot read nowhere.txt"),
        (["--prompt", "a", "--config", '{"template": "x"}'], "it must hold {prompt}"),
        (["--prompt", "a", "--config", '{"num_prompts": -1}'], "num_prompts is -1; it must be at"),
        (["--prompt", "a", "--top-k", 2], "top_k has no flag; pass --config '{\"top_k\": VALUE}'"),
        (["--prompt", "a", "--chat", "True"], "no chat template"),
        (["--prompt", "a", "--system", "b"], "system is 'b', and the target has no chat template"),
        (["--prompt", "a", "--system", "b", "--chat", "False"], "and --chat is False"),
        (["--prompt", "a", "--json", "no/such/folder.json"], "does not exist"),
        (["--prompt", "a", "--max-new-tokens", 500], "context holds"),
    ],
)
def test_bad_input_ends_in_a_sentence(cospec, refusal, arguments, sentence):
    assert sentence in refusal(cospec, "generate", *arguments)


def test_a_setting_that_cannot_be_is_named(cospec, capsys):
    with pytest.raises(SystemExit):
        cospec("generate", "--prompt", "a", "--temperature", -1)
    message = capsys.readouterr().err
    assert "temperature is -1.0" in message
    assert "tyro" not in message, "the parser's wrapper is not an option of ours"


def test_alone_it_says_what_to_do_next(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cospec"])
    cli.main()
    out = capsys.readouterr().out
    for line in ("cospec demo", "cospec info", "cospec audit --target T", "cospec --help"):
        assert line in out


@pytest.mark.parametrize(
    "main", [cli.main, lambda: runpy.run_module("cospec", run_name="__main__")]
)
def test_it_tells_its_version_as_a_command_and_as_a_module(monkeypatch, capsys, main):
    monkeypatch.setattr(sys, "argv", ["cospec", "--version"])
    main()
    assert capsys.readouterr().out == f"cospec {importlib.metadata.version('cospec')}\n"


def test_an_unknown_verb_is_refused_with_the_known_ones(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cospec", "evl"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "eval" in capsys.readouterr().err


def test_text_of_a_model_cannot_steer_the_terminal(cospec, capsys, monkeypatch):
    from cospec.engine.rows import Row

    monkeypatch.setattr(Row, "text", lambda _: "\x1b[2Jgone")
    for prompts in (["--prompt", "a"], ["--prompt", "a", "--prompt", "b"]):
        cospec("generate", *prompts, "--max-new-tokens", 2)
        assert "\x1b" not in capsys.readouterr().out


def test_a_finished_result_is_not_overwritten_silently(cospec, tmp_path):
    result = tmp_path / "r.json"
    result.write_text("precious")
    arguments = ["generate", "--prompt", "a", "--max-new-tokens", 2, "--json", result]
    with pytest.raises(SystemExit, match="--overwrite"):
        cospec(*arguments)
    assert result.read_text() == "precious"
    cospec(*arguments, "--overwrite")
    assert json.loads(result.read_text())["num_finished"] == 1


def test_an_interrupt_keeps_the_finished_rows(cospec, tmp_path, monkeypatch):
    stream = Engine.stream

    def interrupted(self, prompts, sampling):
        for delta in stream(self, prompts, sampling):
            yield delta
            if delta.completion:
                raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "stream", interrupted)
    result = tmp_path / "r.json"
    with pytest.raises(SystemExit) as stop:
        cospec(
            "generate", "--prompt", "a", "--prompt", "the", "--max-new-tokens", 9,
            "--batch-size", 1, "--json", result,
        )  # fmt: skip
    assert stop.value.code == 130
    assert list(tmp_path.iterdir()) == [result], "an unfinished generation is not resumed"
    document = json.loads(result.read_text())
    assert (document["num_finished"], document["num_prompts"]) == (1, 2)
    assert document["rows"][0]["num_tokens"] > 0


def test_painted_text_is_the_streamed_text_with_each_origin_in_its_colour(llama_pair, tokenizer):
    from cospec import ModelPair, SamplingConfig, load_arbiter

    pair = ModelPair(llama_pair.target, llama_pair.draft, tokenizer)
    engine = Engine(pair, load_arbiter("random:rate=0.5"))
    painter, styles, origins = Painter(tokenizer), set(), set()
    for delta in engine.stream([[9, 8, 7]], SamplingConfig(max_new_tokens=40, seed=1, stop=("q",))):
        painted = painter.paint(delta)
        assert painted.plain == delta.text
        styles |= {str(span.style) for span in painted.spans}
        origins |= set(delta.origins)
    assert Origin.OVERRIDE in origins
    assert styles == {STYLES[origin] for origin in origins} - {""}


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_a_large_tensor_takes_the_memory_of_the_one_before():
    """In a process of its own: the setting is for good."""
    script = (
        "import resource, torch\n"
        "from cospec.cli import keep_freed_memory\n"
        "keep_freed_memory()\n"
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "torch.zeros(2**24); before = faults()\n"  # 64 MB: 16,384 pages
        "for _ in range(4): torch.zeros(2**24)\n"
        "print(faults() - before)"
    )
    run = [sys.executable, "-c", script]
    num_faults = int(subprocess.run(run, capture_output=True, text=True, check=True).stdout)
    assert num_faults < 100  # and else 65,536


@pytest.mark.parametrize("command", ["eval", "audit", "calibrate", "trace"])
def test_answers_that_cannot_be_are_refused_before_the_models_are_loaded(
    monkeypatch, capsys, command
) -> None:
    for option, sentence in {
        "--temperature=nan": "temperature is nan; it must be 0 (greedy) or positive",
        "--max-new-tokens=0": "max_new_tokens is 0; it must be at least 1",
    }.items():
        models = ["--target", "no/target", "--draft", "no/draft", "--task", "no task"]
        more = ["--arbiter", "gap"] if command == "calibrate" else []
        monkeypatch.setattr(sys, "argv", ["cospec", command, *models, *more, option])
        with pytest.raises(SystemExit):
            cli.main()
        assert sentence in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.parametrize("name, text", [("p.txt", "the"), ("p.jsonl", '{"prompt": "the"}')])
def test_a_byte_order_mark_is_no_part_of_the_first_prompt(tmp_path, name, text):
    """Found: it went to the models, or the first line was no JSON."""
    (tmp_path / name).write_text(text, encoding="utf-8-sig")
    assert PromptOptions(file=tmp_path / name).read() == ["the"]
