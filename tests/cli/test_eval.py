"""``cospec eval``: the table, the result document, and what an interruption leaves."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch

from cospec import Engine
from cospec.arbiters.guard import NUM_BUCKETS, PromptGuard
from cospec.arbiters.learned import LearnedArbiter
from cospec.arbiters.policy import Policy, PolicyConfig
from cospec.cli.common.options import PairOptions
from cospec.features import make_features
from tests.cli.conftest import stop_after


@pytest.fixture
def evaluate(tiny, problems):
    def run(*arguments: object) -> None:
        task = f"jsonl:{problems},scorer=numeric,split=test"
        tiny(
            "eval", "--pair", "bundled:tiny", "--task", task, "--max-new-tokens", 8,
            "--batch-size", 2, *arguments,
        )  # fmt: skip

    return run


def test_eval_prints_a_table_and_writes_the_document(evaluate, tmp_path, capsys):
    result = tmp_path / "r.json"
    evaluate(
        "--arbiter", "gap:max_gap=2", "--arbiter", "random:rate=0.5", "-k", 3, "--seed", 7,
        "--num-problems", 4, "--json", result,
    )  # fmt: skip
    out, err = capsys.readouterr()
    names = ["target", "draft", "lossless", "gap:max_gap=2", "random:rate=0.5"]
    assert [line.split()[0] for line in out.splitlines()[3:8]] == names
    assert "exact McNemar test" in out
    assert "note: the draft has no name" in err
    assert "turn 10/10" in err
    document = json.loads(result.read_text())
    assert (document["schema"], document["command"]) == (1, "eval")
    assert [arm["name"] for arm in document["arms"]] == names
    assert len(document["rows"]) == 5 * 4
    right = {n: [r["correct"] for r in document["rows"] if r["arm"] == n] for n in names}
    for arm in document["arms"]:
        for other in ("draft", "lossless"):
            pairs = list(zip(right[arm["name"]], right[other], strict=True))
            found = arm[f"vs_{other}"]
            assert found["wins"] == pairs.count((True, False))
            assert found["losses"] == pairs.count((False, True))
    assert [line.split(": won/lost")[0] for line in out.splitlines()[-2:]] == names[3:]
    lengths = [arm["num_tokens"] / arm["num_problems"] for arm in document["arms"]]
    told = f"; {lengths[-1]:.0f} tokens a text, the target's {lengths[0]:.0f}"
    assert out.splitlines()[-1].endswith(told)
    assert len(document["chunks"]) == 5 * 2, "chunks of a batch"
    assert document["num_resumed_turns"] == 0
    config = document["config"]
    assert config["decode"]["num_speculative_tokens"] == 3
    assert config["evaluation"]["num_problems"] == 4
    assert config["task"]["seed"] == config["evaluation"]["seed"] == 7
    assert document["provenance"]["dtype"] == "torch.float32"
    assert not list(tmp_path.glob("*.part*"))


def test_eval_shows_each_part_of_a_mixture(tiny, problems, tmp_path, capsys):
    other = tmp_path / "other.jsonl"
    other.write_text(problems.read_text())
    parts = [f"jsonl:{path},scorer=numeric,split=test" for path in (problems, other)]
    tiny(
        "eval", "--pair", "bundled:tiny", "--task", f"mix:{parts[0]}@2+{parts[1]}",
        "--num-problems", 6, "--max-new-tokens", 8, "--json", tmp_path / "r.json",
    )  # fmt: skip
    assert "0.0% 0/0 p 1" in capsys.readouterr().out
    document = json.loads((tmp_path / "r.json").read_text())
    found = {
        part: [arm["num_problems"] for arm in arms] for part, arms in document["parts"].items()
    }
    assert found == {parts[0]: [4, 4, 4], parts[1]: [2, 2, 2]}


def test_the_exact_prefix_is_part_of_the_configuration(evaluate, tmp_path, monkeypatch):
    result = tmp_path / "r.json"
    settings = ("--arbiter", "always_draft", "--num-problems", 2, "--json", result)
    evaluate(*settings, "--exact-prefix-tokens", 8)
    document = json.loads(result.read_text())
    config = document["config"]
    assert config["exact_prefix_tokens"] == config["evaluation"]["exact_prefix_tokens"] == 8
    arms = {arm["name"]: arm for arm in document["arms"]}
    assert arms["always_draft"]["num_overrides"] == 0
    assert arms["always_draft"]["num_texts_unlike_target"] == 0
    result.unlink()
    with monkeypatch.context() as patch:
        stop_after(patch, 4 + 2)
        with pytest.raises(SystemExit):
            evaluate(*settings)
    with pytest.raises(SystemExit, match=r"exact_prefix_tokens 0 there and 2 here"):
        evaluate(*settings, "--exact-prefix-tokens", 2)
    evaluate(*settings)
    arms = {arm["name"]: arm for arm in json.loads(result.read_text())["arms"]}
    assert arms["always_draft"]["num_overrides"] > 0


def test_a_draft_that_stops_early_costs_fewer_of_its_forwards_and_no_answer(evaluate, tmp_path):
    documents = []
    for threshold in (0, 0.25):
        result = tmp_path / f"{threshold}.json"
        evaluate(
            "-k", 8, "--draft-confidence-threshold", threshold, "--num-problems", 3,
            "--json", result,
        )  # fmt: skip
        documents.append(json.loads(result.read_text()))
        assert documents[-1]["config"]["decode"]["draft_confidence_threshold"] == threshold
    whole, early = (
        next(arm for arm in document["arms"] if arm["name"] == "lossless") for document in documents
    )
    assert early["num_texts_unlike_target"] == 0
    assert 0 < early["num_draft_forwards"] < 0.7 * whole["num_draft_forwards"]


def test_an_interrupted_run_goes_on_where_it_stopped(evaluate, tmp_path, monkeypatch, capsys):
    whole, result = tmp_path / "whole.json", tmp_path / "r.json"
    evaluate("--json", whole)
    with monkeypatch.context() as patch:
        stop_after(patch, 3 + 2)  # the warm-up and two turns
        with pytest.raises(SystemExit) as stop:
            evaluate("--json", result)
    assert stop.value.code == 130
    part = tmp_path / "r.json.part.jsonl"
    assert f"2 of 9 turns are done; {part} keeps them" in capsys.readouterr().err
    assert not result.exists()
    with pytest.raises(SystemExit, match=r"decode.num_speculative_tokens 4 there and 2 here"):
        evaluate("--json", result, "-k", 2)
    kept = [json.loads(line) for line in part.read_text().splitlines()[1:]]
    stop_after(monkeypatch, 3 + 7)  # the warm-up and what is left
    evaluate("--json", result)
    document, expected = (json.loads(path.read_text()) for path in (result, whole))
    assert document["rows"] == expected["rows"]
    assert document["num_resumed_turns"] == 2
    assert [c["seconds"] for c in document["chunks"][:2]] == [turn["seconds"] for turn in kept]
    assert not part.exists()


def test_an_interrupted_run_without_a_file_says_so(evaluate, monkeypatch, capsys):
    stop_after(monkeypatch, 4)
    with pytest.raises(SystemExit):
        evaluate()
    assert "1 of 9 turns are done; they are not kept" in capsys.readouterr().err


def test_a_finished_result_is_not_overwritten_silently(evaluate, tmp_path, capsys):
    result = tmp_path / "r.json"
    result.write_text("precious")
    with pytest.raises(SystemExit, match="--overwrite"):
        evaluate("--json", result)
    assert result.read_text() == "precious"
    evaluate("--json", result, "--overwrite")
    assert json.loads(result.read_text())["schema"] == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--arbiter", "gapp"], "did you mean 'gap'?"),
        (["--arbiter", "gap", "--arbiter", "gap:max_gap=1"], "two arms are called"),
        (["--num-problems", 7], "6 test problems, 7 asked for"),
        (["--split", "tune"], "0 tune problems"),
        (["-k", 0], "num_speculative_tokens is 0"),
        (["--batch-size", 0], "batch_size is 0"),
        (["--exact-prefix-tokens", -1], "exact_prefix_tokens is -1"),
        (["--draft-confidence-threshold", 2], "draft_confidence_threshold is 2"),
        (["--threads", 0], "threads is 0"),
        (["--threads", 10**9], "threads is 1000000000; it must be from 1 to"),
        (["--json", "no/such/folder.json"], "does not exist"),
    ],
)
def test_bad_input_ends_in_a_sentence(evaluate, refusal, arguments, sentence):
    assert sentence in refusal(evaluate, *arguments)


def test_arms_with_one_name_are_refused_before_the_models_are_loaded(evaluate, tiny):
    with pytest.raises(SystemExit, match="two arms are called 'gap:max_gap=1'"):
        evaluate("--arbiter", "gap", "--arbiter", "gap:max_gap=1.0")
    assert not tiny.asked_for


def test_a_second_run_on_one_file_is_refused_while_the_first_one_decodes(
    evaluate, tmp_path, monkeypatch
):
    """Two runs on one file, both killed and resumed, counted 64 problems as 96."""
    result, generate, refusals = tmp_path / "r.json", Engine.generate, []

    def with_a_second_run(self, prompts, sampling, **more):
        if not refusals:
            with pytest.raises(SystemExit) as stop:
                evaluate("--json", result)
            refusals.append(str(stop.value))
        return generate(self, prompts, sampling, **more)

    monkeypatch.setattr(Engine, "generate", with_a_second_run)
    evaluate("--json", result)
    assert "another run is writing to" in refusals[0]
    assert len(json.loads(result.read_text())["rows"]) == 3 * 6


def test_a_result_that_another_run_finished_meanwhile_is_kept(evaluate, tmp_path, monkeypatch):
    result, load = tmp_path / "r.json", PairOptions.load

    def slow(self):
        result.write_text("precious")
        return load(self)

    monkeypatch.setattr(PairOptions, "load", slow)
    with pytest.raises(SystemExit, match="--overwrite"):
        evaluate("--json", result)
    assert result.read_text() == "precious"


def test_prompts_that_an_arbiter_stands_back_from_are_told_and_decoded_losslessly(
    evaluate, tiny, tmp_path, capsys
):
    features = make_features("scalar", tiny.pair)
    policy = Policy(len(features.names), PolicyConfig(init_logit=9.0))
    for name, floor in (("timid", 1.0), ("bold", 0.0)):
        guard = PromptGuard(torch.eye(NUM_BUCKETS)[0], floor)
        LearnedArbiter(policy, features, prompt_guard=guard).save(tmp_path / name)
    result = tmp_path / "r.json"
    arbiters = ("--arbiter", tmp_path / "timid", "--arbiter", tmp_path / "bold")
    evaluate(*arbiters, "--num-problems", 2, "--json", result)
    noted = [line for line in capsys.readouterr().err.splitlines() if "stands back" in line]
    assert len(noted) == 1 and "note: timid stands back from 2 of these 2" in noted[0]
    overrides = {"timid": 0, "bold": 0}
    for row in json.loads(result.read_text())["rows"]:
        if (name := row["arm"].partition(":")[0]) in overrides:
            overrides[name] += row["num_overrides"]
    assert overrides["timid"] == 0 < overrides["bold"]


def test_other_weights_in_the_same_folder_do_not_resume(evaluate, tiny, tmp_path, monkeypatch):
    result, folder = tmp_path / "r.json", tmp_path / "arbiter"
    arguments = ("--arbiter", folder, "--num-problems", 2, "--json", result)
    features = make_features("scalar", tiny.pair)
    arbiter = LearnedArbiter(Policy(len(features.names), PolicyConfig()), features)
    arbiter.save(folder)
    with monkeypatch.context() as patch:
        stop_after(patch, 4 + 2)
        with pytest.raises(SystemExit):
            evaluate(*arguments)
    other = copy.deepcopy(arbiter.policy)
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    replace(arbiter, policy=other).save(folder)
    with pytest.raises(SystemExit, match=r"arbiters\..*\.sha256 '\w+' there and '\w+' here"):
        evaluate(*arguments)
    arbiter.save(folder)
    evaluate(*arguments)
    config = json.loads(result.read_text())["config"]
    assert len(config["arbiters"][str(folder)]["sha256"]) == 64
    assert config["models"]["fingerprint"]


def test_an_arm_with_one_turn_shows_a_dash_for_its_speed_up(capsys):
    """Found: a ratio of one turn was printed without an interval and without a word."""
    from cospec.cli.views.arms import COLUMNS, print_table

    arm = {
        "name": "lossless", "accuracy": 0.5, "accuracy_ci95": (0.4, 0.6), "wins": 0, "losses": 0,
        "mcnemar_p": 1.0, "tokens_per_s": 9.0, "speedup_vs_target": 2.0, "speedup_vs_lossless": 1.0,
        "mean_acceptance_length": 3.0, "num_overrides": 0, "target_forwards_per_token": 0.3,
        "num_texts_unlike_target": 0, "num_problems": 9,
    }  # fmt: skip
    over = COLUMNS["over\ntarget"]
    assert (over(arm), over(arm | {"num_turns": 2}), over(arm | {"num_turns": 1})) == (
        "2.00x", "2.00x", "-",
    )  # fmt: skip
    for turns, is_told in ((1, True), (2, False)):
        print_table([arm | {"num_turns": turns}])
        assert ("one turn" in capsys.readouterr().out) == is_told
