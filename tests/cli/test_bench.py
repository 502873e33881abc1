"""``cospec bench``: tables, the document, and what an interruption leaves."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from cospec.arbiters import RULES
from cospec.cli.common.options import PairOptions
from cospec.evaluation.benchmark.arms import make_specs
from cospec.tasks.splits import split_of
from tests.cli.conftest import stop_after
from tests.conftest import random_model


@pytest.fixture
def bench(tiny, tmp_path):
    """Runs the benchmark on problems of both splits: four to tune on and five to test on."""
    wanted, rows = {"tune": 4, "test": 5}, []
    for i in range(500):
        question = "the [b]hen" + "s" * (i % 12) + " in" * (i // 12)
        if wanted.get(split_of(question), 0):
            wanted[split_of(question)] -= 1
            rows.append({"id": f"p/{i}", "question": question, "answer": i})
    path = tmp_path / "split.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(*arguments: object) -> None:
        tiny(
            "bench", "--pair", "bundled:tiny", "--task", f"jsonl:{path},scorer=numeric",
            "--num-tune-problems", 1, "--num-problems", 3, "--max-new-tokens", 6,
            "--batch-sizes", 2, "--repeats", 1, *arguments,
        )  # fmt: skip

    return run


def test_bench_prints_a_table_a_cell_and_writes_the_document(bench, tmp_path, capsys):
    result = tmp_path / "r.json"
    bench(
        "--arms", "gap", "random:match=gap", "assisted", "oracle", "--tune-k", 2, 3,
        "--batch-sizes", 1, 4, "--temperatures", 0, 1, "--max-new-tokens", 3, "--repeats", 2,
        "--num-tune-problems", 3, "--num-problems", 5, "--json", result,
    )  # fmt: skip
    out, err = capsys.readouterr()
    for batch in (1, 4):
        for temperature in (0, 1):
            assert f"batch {batch}, temperature {temperature}; best rival on the tune split" in out
    assert out.count("assisted is left out") == 3
    assert out.count("oracle is left out") == 2
    assert err.count("note: the draft has no name") == 1
    document = json.loads(result.read_text())
    assert (document["schema"], document["command"]) == (1, "bench")
    cells = document["cells"]
    assert [(c["batch_size"], c["temperature"]) for c in cells] == [(1, 0), (4, 0), (1, 1), (4, 1)]
    names = [[arm["name"] for arm in cell["arms"]] for cell in cells]
    common = ["target", "draft", "lossless", "gap", "random:match=gap"]
    with_assisted = [*common[:4], "assisted", common[4], "oracle"]
    assert names == [with_assisted, [*common, "oracle"], common, common]
    assert {arm["name"] for arm in cells[1]["arms"] if arm["kind"] == "ceiling"} == {"oracle"}
    for cell in cells:
        assert len(cell["rows"]) == 5 * len(cell["arms"])
        stored = [row["text"] for row in cell["rows"] if row["arm"] in ("target", "lossless")]
        assert None not in stored[:5]
        if cell["temperature"] == 0:
            assert stored[5:] == [None] * 5
        assert {chunk["repeat"] for chunk in cell["chunks"]} == {0, 1}
    assert [entry["temperature"] for entry in document["tuning"]] == [0] * 4 + [1] * 4
    assert document["config"]["evaluation"]["num_problems"] == 5
    assert document["config"]["evaluation"]["tune"]["num_problems"] == 3
    assert document["config"]["models"]["fingerprint"]
    assert not list(tmp_path.glob("*.part*"))


TUNED = ("--arms", "gap", "random:match=gap", "--tune-k", 2, 3, "--tune-knobs")
NUM_TRIES = 1 + 2 + 5 + 1  # draft, lossless with each k, gap: all with one, the best with both
NUM_ARMS = 5


def test_an_interrupted_run_goes_on_in_any_part(bench, tmp_path, monkeypatch, capsys):
    """Once in tuning, then once in the second repeat (each has a warm-up)."""
    whole, result = tmp_path / "whole.json", tmp_path / "r.json"
    part = tmp_path / "r.json.part.jsonl"
    command = (*TUNED, "--max-new-tokens", 3, "--batch-sizes", 3, "--repeats", 2, "--json")
    bench(*command, whole)
    expected = json.loads(whole.read_text())
    kept = []
    for num_calls in (4, NUM_TRIES - 4 + 3 * NUM_ARMS + 2):
        with monkeypatch.context() as patch:
            stop_after(patch, num_calls)
            with pytest.raises(SystemExit) as stop:
                bench(*command, result)
        assert stop.value.code == 130
        assert f"{part} keeps them" in capsys.readouterr().err
        before, kept = kept, [json.loads(line) for line in part.read_text().splitlines()[1:]]
        assert kept[: len(before)] == before and len(kept) > len(before)
    assert [turn["part"][:4] for turn in before] == ["tune"] * 4
    assert sum(turn["part"].endswith("repeat 2") for turn in kept) == 2
    bench(*command, result)
    document = json.loads(result.read_text())
    assert document["num_resumed_turns"] == len(kept)
    assert document["tuning"] == expected["tuning"]
    assert document["cells"][0]["rows"] == expected["cells"][0]["rows"]
    times = [chunk["seconds"] for chunk in document["cells"][0]["chunks"]]
    assert all(turn["seconds"] in times for turn in kept if turn["part"].startswith("test"))
    assert not part.exists()


def test_another_configuration_does_not_go_on(bench, tmp_path, monkeypatch):
    result = tmp_path / "r.json"
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(SystemExit):
            bench(*TUNED, "--json", result)
    with pytest.raises(SystemExit, match=r"bench.repeats 1 there and 2 here"):
        bench(*TUNED, "--json", result, "--repeats", 2)


def test_the_exact_prefix_is_part_of_the_configuration(bench, tmp_path, monkeypatch):
    result = tmp_path / "r.json"
    arguments = ("--arms", "always_draft", "--exact-prefix-tokens", 6, "--json", result)
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(SystemExit):
            bench(*arguments)
    with pytest.raises(SystemExit, match=r"bench.exact_prefix_tokens 6 there and 0 here"):
        bench(*arguments[:2], "--json", result)
    bench(*arguments)
    document = json.loads(result.read_text())
    assert document["config"]["evaluation"]["exact_prefix_tokens"] == 6
    (cell,) = document["cells"]
    arms = {arm["name"]: arm for arm in cell["arms"]}
    assert arms["always_draft"]["num_overrides"] == 0
    assert arms["always_draft"]["num_texts_unlike_target"] == 0


EXACT = ("lossless", "assisted")


def test_every_arm_has_a_draft_that_stops_early(bench, tmp_path):
    result = tmp_path / "r.json"
    arguments = ("--arms", "always_draft", "assisted", "--batch-sizes", 1, "-k", 8)
    rows = {}
    for threshold in (0.0, 0.5):
        bench(
            *arguments, "--draft-confidence-threshold", threshold, "--json", result, "--overwrite"
        )
        document = json.loads(result.read_text())
        assert document["config"]["bench"]["draft_confidence_threshold"] == threshold
        tries = {entry["arm"]: entry["tries"][0] for entry in document["tuning"]}
        (cell,) = document["cells"]
        rows[threshold] = {arm["name"]: arm for arm in cell["arms"]}, tries
        assert all(rows[threshold][0][name]["num_texts_unlike_target"] == 0 for name in EXACT)
    (whole, whole_tries), (early, early_tries) = rows.values()
    for name in (*EXACT, "always_draft"):
        assert 0 < early[name]["num_draft_forwards"] < whole[name]["num_draft_forwards"]
    for name in ("lossless", "always_draft"):
        forwards = [tries[name]["num_draft_forwards"] for tries in (early_tries, whole_tries)]
        assert 0 < forwards[0] < forwards[1]


def test_a_document_does_not_say_where_an_arbiter_is_installed(bench, tmp_path, monkeypatch):
    def find(_, spec, **__):
        return spec.replace("bundled", "gap") if spec.startswith("bundled") else spec

    monkeypatch.setattr(PairOptions, "find_arbiter", find)
    result = tmp_path / "r.json"
    bench("--arms", "bundled:max_gap=2", "--max-new-tokens", 3, "--json", result)
    document = json.loads(result.read_text())
    (arm,) = [arm for arm in document["cells"][0]["arms"] if arm["kind"] == "rule"]
    (tried,) = [entry for entry in document["tuning"] if entry["arm"] == arm["name"]]
    assert arm["name"] == "gap:max_gap=2"
    assert arm["arbiter"] == tried["tries"][0]["arbiter"] == "bundled:max_gap=2"


def test_without_tuning_there_is_no_rival(bench, capsys):
    bench("--arms", "gap", "--num-tune-problems", 0, "--max-new-tokens", 3)
    out = capsys.readouterr().out
    assert "best rival" not in out
    assert "gap (max_gap=1)" in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--arms", "gapp"], "did you mean 'gap'?"),
        (["--arms", "random:match=gap"], "unknown arm to match"),
        (["--split", "tune"], "split is tune"),
        (["--num-tune-problems", 9], "4 tune problems, 9 asked for"),
        (["--arms", "gap", "random:match=gap", "--num-tune-problems", 0], "takes its rate from"),
        (["--arms", "oracle", "--draft-confidence-threshold", 0.5], "path is one of whole blocks"),
        (["--arms", "oracle", "--max-corrections", 1], "end_blocks_at_stop, max_corrections and"),
        (["--json", "no/such/folder.json"], "does not exist"),
        (["--repeats", 0], "repeats has 0"),
        (["--batch-size", 3, "--batch-sizes", 1, 2], "batch_size is 3, and --batch-sizes are 1 2"),
        (["--exact-prefix-tokens", -1], "exact_prefix_tokens is -1"),
        (["--draft-confidence-threshold", "nan"], "draft_confidence_threshold is nan"),
    ],
)
def test_bad_input_ends_in_a_sentence(bench, refusal, arguments, sentence):
    assert sentence in refusal(bench, *arguments)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--tune-k", 2, 3], "--tune-k is 2 3"),
        (["--batch-sizes", 1, 4], "--batch-sizes is 1 4"),
        (["--temperatures", 0, 1], "--temperatures is 0.0 1.0"),
        (["--arms", "gap", "oracle"], "--arms is gap oracle"),
    ],
)
def test_on_vllm_one_engine_with_the_pair_is_enough(bench, tiny, refusal, arguments, sentence):
    message = refusal(bench, "--backend", "vllm", *arguments)
    assert sentence in message and "leave out --backend vllm" in message
    assert not tiny.asked_for


def test_the_arms_that_can_be_asked_for_are_listed_one_a_line(tiny, capsys):
    tiny("bench", "--list-arms")
    names = capsys.readouterr().out.splitlines()
    assert names[0] == "lossless"
    untrained = [name for name in names if "bundled" not in name]
    assert len(make_specs(untrained, str)) == 3 + len(untrained) - 1, "all can be asked for"
    assert {*RULES, "bundled", "random:match=bundled", "assisted", "oracle"} <= {*names}
    assert len(names) == len(set(names))
    tiny("bench", "--list-arms", "--pair", "bundled:without")
    assert "bundled" not in capsys.readouterr().out
    assert not tiny.asked_for


def test_a_block_length_that_is_chosen_is_not_given_as_well(bench):
    with pytest.raises(SystemExit, match="num_speculative_tokens is 8, and --tune-k chooses it"):
        bench(*TUNED, "-k", 8)


def test_an_assistant_that_cannot_read_the_targets_prompts_is_left_out(tiny, tmp_path, monkeypatch):
    """Its draft reads the target's prompts, and that of other arms has shorter ones of its own."""
    path = tmp_path / "shown.jsonl"
    rows = [{"question": "the hen" + "s" * i, "answer": i} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = f"jsonl:{path},scorer=numeric,shots=2,draft_shots=0"
    for context, is_left_out in ((90, True), (512, False)):
        model = random_model("llama", num_hidden_layers=1, max_position_embeddings=context)
        monkeypatch.setattr(PairOptions, "load", lambda _, m=model: replace(tiny.pair, draft=m))
        out = tmp_path / f"{context}.json"
        tiny(
            "bench", "--pair", "bundled:tiny", "--num-tune-problems", 0, "--num-problems", 2,
            "--task", task, "--repeats", 1, "--max-new-tokens", 6, "--batch-sizes", 1,
            "--arms", "gap", "assisted", "--json", out,
        )  # fmt: skip
        (cell,) = json.loads(out.read_text())["cells"]
        assert [each["arm"] for each in cell["left_out"]] == ["assisted"] * is_left_out
        assert ("assisted" in [arm["name"] for arm in cell["arms"]]) != is_left_out


def test_without_a_task_a_benchmark_is_refused(tiny):
    with pytest.raises(SystemExit, match="--task is missing"):
        tiny("bench", "--pair", "bundled:tiny")
