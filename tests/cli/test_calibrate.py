"""``cospec calibrate``: the point that is chosen and stored, the document, and what is refused."""

from __future__ import annotations

import errno
import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cospec import load_arbiter
from cospec.arbiters.learned import LearnedArbiter, notes_on
from cospec.arbiters.policy import Policy, PolicyConfig
from cospec.config import DecodeConfig, SamplingConfig
from cospec.features import ScalarFeatures, token_kinds
from cospec.tasks import load_task
from cospec.tasks.splits import split_of
from cospec.tasks.trained_on import write_trained_on
from tests.cli.conftest import stop_after

THRESHOLDS = (0.2, 0.5, 0.8)
ALWAYS_TOLD = {"adaptive_cost": None, "prompt_lookup_max": 4, "prompt_lookup_min": 2}
"""Settings that an operating point has at their defaults too."""


@pytest.fixture
def folder(tmp_path, tokenizer):
    """An arbiter whose scores depend on the mismatch, by random weights."""
    features = ScalarFeatures(token_kinds(tokenizer, 61))
    policy = Policy(len(features.names), PolicyConfig(init_logit=0.0))
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        policy.layers[-1].weight.normal_(generator=generator)
    folder = tmp_path / "arbiter"
    LearnedArbiter(policy, features).save(folder)
    return folder


@pytest.fixture
def letters(tmp_path):
    """Twelve problems of the tune split and two of train, right if there is an h in the answer."""
    questions = ["the hen" + "s" * i + " and" * j for i in range(20) for j in range(8)]
    tune = [q for q in questions if split_of(q) == "tune"][:12]
    train = [q for q in questions if split_of(q) == "train"][:2]
    assert len(tune) == 12
    path = tmp_path / "letters.jsonl"
    rows = [{"question": question, "answer": "h"} for question in [*tune, *train]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"jsonl:{path},scorer=regex"


@pytest.fixture
def calibrate(tiny, letters, folder):
    def run(*arguments: object, thresholds=THRESHOLDS, length=24) -> None:
        tiny(
            "calibrate", "--pair", "bundled:tiny", "--task", letters, "--arbiter", folder,
            "--thresholds", *thresholds, "--max-new-tokens", length, "--batch-size", 12, *arguments,
        )  # fmt: skip

    return run


@pytest.fixture
def quick(calibrate):
    """The same with one threshold and short answers, where neither matters."""
    return partial(calibrate, thresholds=(0.5,), length=4)


def points(folder):
    return json.loads((folder / "config.json").read_text())["operating_points"]


def test_the_most_accurate_threshold_becomes_a_point_that_an_arbiter_can_be_loaded_with(
    calibrate, folder, tmp_path, capsys
):
    result = tmp_path / "r.json"
    calibrate("-k", 3, "--json", result)
    out, err = capsys.readouterr()
    document = json.loads(result.read_text())
    arms = document["arms"]
    names = [f"arbiter:threshold={threshold}" for threshold in (0.8, 0.5, 0.2)]
    assert [arm["name"] for arm in arms] == ["target", "draft", "lossless", *names]
    assert len({arm["num_overrides"] for arm in arms[2:]}) > 2, "the thresholds differ"
    best = max(arms[2:], key=lambda arm: (arm["accuracy"], -arm["num_target_forwards"]))
    threshold = 1.0 if best["name"] == "lossless" else float(best["name"].partition("=")[2])
    point = {
        "threshold": threshold, "aim": "accuracy", "risk": None, "epsilon": None, "delta": None,
        "num_problems": 12, "task": document["config"]["task"]["task"], "split": "tune", "seed": 0,
        "num_speculative_tokens": 3,
        "decoding": ALWAYS_TOLD | {
            "num_speculative_tokens": 3, "temperature": 0.0, "max_new_tokens": 24,
        },
    }  # fmt: skip
    assert points(folder)["accuracy"] == point == document["calibration"]["point"]
    assert points(folder)["default"] == {"threshold": 0.5}
    assert load_arbiter(f"{folder}:point=accuracy").threshold == threshold
    assert f"Threshold {threshold:g} is the choice for accuracy on 12 problems" in out
    assert "not a guarantee" in out
    assert err.count("was not trained on this pair") == 1
    assert (document["schema"], document["command"]) == (1, "calibrate")
    assert document["calibration"]["tests"] == []
    assert document["calibration"]["reliability"] is None
    assert len(document["rows"]) == 6 * 12
    assert not list(tmp_path.rglob("*.part*"))


def test_a_point_that_is_used_with_other_settings_is_noted(tiny, quick, folder, letters, capsys):
    """Found: what was certified at one block length was used at any without a word."""
    quick("-k", 3, "--max-corrections", 2, "--aim", "guarantee", "--epsilon", 0.9)
    decoding = points(folder)["guarantee"]["decoding"]
    assert decoding.keys() - {*ALWAYS_TOLD, "temperature", "max_new_tokens"} == {
        "num_speculative_tokens", "max_corrections",
    }  # fmt: skip
    arbiter = load_arbiter(f"{folder}:point=guarantee")
    assert arbiter.threshold < 1
    same = DecodeConfig(num_speculative_tokens=3, max_corrections=2, batch_size=1)
    sampling = SamplingConfig(max_new_tokens=4)
    assert notes_on(arbiter, same) == notes_on(arbiter, same, sampling) == ()
    other = same.with_options(max_corrections=None, drafter="ngram")
    (note,) = notes_on(arbiter, other, replace(sampling, temperature=0.5))
    assert "was chosen for another max_corrections, drafter, temperature: " in note
    (note,) = notes_on(arbiter, other)
    assert "another max_corrections, drafter: " in note, "who samples how is not known"
    (note,) = notes_on(arbiter, same, replace(sampling, top_p=0.9))
    assert "another top_p: " in note
    (note,) = notes_on(load_arbiter(f"{folder}:point=guarantee,max_mismatch_rate=0.5"), same)
    assert "another max_mismatch_rate: " in note
    for free in (load_arbiter(str(folder)), arbiter.with_threshold(0.3), load_arbiter("gap")):
        assert notes_on(free, other, sampling) == ()
    assert notes_on(replace(arbiter, threshold=1.0), other) == (), "lossless with any settings"
    capsys.readouterr()
    evaluate = ["eval", "--pair", "bundled:tiny", "--task", letters, "--split", "tune"]
    evaluate += ["--num-problems", 2, "--arbiter", f"{folder}:point=guarantee", "-k", 3]
    tiny(*evaluate, "--max-new-tokens", 4, "--max-corrections", 2)
    assert "was chosen for another" not in capsys.readouterr().err
    tiny(*evaluate, "--max-new-tokens", 3, "--exact-prefix-tokens", 2)
    said = "for another max_corrections, max_new_tokens, exact_prefix_tokens: "
    assert said in capsys.readouterr().err


def test_a_point_of_an_older_version_is_used_without_a_note(folder):
    config = json.loads((folder / "config.json").read_text())
    for decoding in ({}, {"decoding": None}, {"decoding": "damaged"}):
        config["operating_points"]["old"] = {"threshold": 0.5, **decoding}
        (folder / "config.json").write_text(json.dumps(config))
        arbiter = load_arbiter(f"{folder}:point=old")
        assert notes_on(arbiter, DecodeConfig(num_speculative_tokens=9, adaptive=False)) == ()


def test_the_guarantee_is_told_with_its_terms(calibrate, folder, tmp_path, capsys):
    result = tmp_path / "r.json"
    calibrate(
        "--aim", "guarantee", "--epsilon", 0.9, "--name", "safe", "--seed", 3, "--json", result
    )
    out = capsys.readouterr().out
    point = points(folder)["safe"]
    tests = json.loads(result.read_text())["calibration"]["tests"]
    assert [test["threshold"] for test in tests] == [1.0, 0.8, 0.5, 0.2]
    assert point["threshold"] == [t["threshold"] for t in tests if t["is_certified"]][-1] < 1
    assert (point["risk"], point["epsilon"], point["delta"]) == ("harm", 0.9, 0.1)
    assert (point["aim"], point["seed"]) == ("guarantee", 3)
    assert "is certified on 12 problems of the tune split" in out
    assert "fails with probability at most 0.1" in out
    assert "provided that the problems are independent" in out
    assert "with other settings on the same problems, and keep the best, voids this level" in out


def test_a_question_that_comes_twice_is_one_problem_of_a_guarantee(
    quick, folder, letters, tmp_path
):
    """Found: with every row twice the bound held half of what it said."""
    path = letters.removeprefix("jsonl:").partition(",")[0]
    with open(path, encoding="utf-8") as file:
        rows = file.read()
    with open(path, "w", encoding="utf-8") as file:
        file.write(rows * 2)
    quick("--aim", "guarantee", "--epsilon", 0.5, "--json", tmp_path / "r.json")
    assert points(folder)["guarantee"]["num_problems"] == 12


def test_without_a_certificate_the_point_is_lossless(calibrate, folder, letters, capsys):
    calibrate("--aim", "guarantee", "--epsilon", 0.25, "--risk", "loss", "--delta", 0.1)
    assert points(folder)["guarantee"]["threshold"] == 1.0
    assert "No threshold below 1 is certified" in capsys.readouterr().out


def test_the_fastest_threshold_is_stored_under_its_aim(calibrate, folder, tmp_path, capsys):
    calibrate("--aim", "speed", "--json", tmp_path / "r.json")
    arms = json.loads((tmp_path / "r.json").read_text())["arms"]
    able = [arm for arm in arms[2:] if arm["wins"] >= arm["losses"]]
    best = min(able, key=lambda arm: arm["num_target_forwards"] / max(arm["accuracy"], 1e-9))
    expected = 1.0 if best["name"] == "lossless" else float(best["name"].partition("=")[2])
    point = points(folder)["speed"]
    assert (point["aim"], point["threshold"]) == ("speed", expected)
    assert len({arm["num_target_forwards"] for arm in able}) > 1, "there is a choice"
    assert "the choice for speed" in capsys.readouterr().out


@pytest.mark.parametrize("trained_on", ["{}", "mix:{}@3"])
def test_problems_that_training_was_watched_on_give_no_guarantee(
    quick, folder, letters, tmp_path, trained_on
):
    training = {"task": {"task": trained_on.format(letters)}, "train": {"num_tune": 5, "seed": 0}}
    replace(LearnedArbiter.load(folder), about={"training": training}).save(folder)
    quick("--aim", "guarantee", "--epsilon", 0.5, "--json", tmp_path / "r.json")
    ids = {row["id"] for row in json.loads((tmp_path / "r.json").read_text())["rows"]}
    assert len(ids) == points(folder)["guarantee"]["num_problems"] == 7
    with pytest.raises(SystemExit, match="there are 2 problems"):
        quick("--aim", "guarantee", "--epsilon", 0.5, "--num-problems", 7, "--name", "few")
    quick("--aim", "accuracy")
    assert points(folder)["accuracy"]["num_problems"] == 12


def test_problems_that_the_arbiter_met_under_another_name_give_no_guarantee(
    quick, folder, letters, tmp_path
):
    """Found: tasks were told apart by their names alone."""
    seen = load_task(letters).examples("tune", 5)
    write_trained_on(folder, seen)
    quick("--aim", "guarantee", "--epsilon", 0.5, "--json", tmp_path / "r.json")
    ids = {row["id"] for row in json.loads((tmp_path / "r.json").read_text())["rows"]}
    assert len(ids) == 7 and not ids & {example.id for example in seen}


def test_an_arbiter_that_does_not_tell_its_problems_has_no_guarantee_on_another_task(quick, folder):
    training = {"task": {"task": "jsonl:other"}, "train": {"num_tune": 5, "seed": 0}}
    replace(LearnedArbiter.load(folder), about={"training": training}).save(folder)
    with pytest.raises(SystemExit, match="trained on jsonl:other, does not tell its problems"):
        quick("--aim", "guarantee", "--epsilon", 0.5)


_MADE: list[bytes] = []
"""The data set of the audit, made once."""


def audit(tiny, letters, data):
    """Write the mismatches of the tune problems, with whose branch of each is right."""
    if not _MADE:
        tiny(
            "audit", "--task", letters, "--split", "tune", "--max-new-tokens", 12, "--no-oracle",
            "--cost-batch-sizes", 1, "--max-k", 1, "--dataset", data,
        )  # fmt: skip
        _MADE.append(data.read_bytes())
    data.write_bytes(_MADE[0])


def test_the_scores_are_held_against_an_audit(tiny, quick, folder, letters, tmp_path, capsys):
    data, result = tmp_path / "m.safetensors", tmp_path / "r.json"
    audit(tiny, letters, data)
    quick("--dataset", data, "--json", result)
    scores = json.loads(result.read_text())["calibration"]["reliability"]
    assert 0 < scores["num_differing"] < scores["num_mismatches"]
    assert sum(row["num_mismatches"] for row in scores["bins"]) == scores["num_differing"]
    error = scores["expected_calibration_error"]
    out, err = capsys.readouterr()
    assert f"expected calibration error {error:.3f}" in out
    assert "was trained on" not in err


def test_problems_of_an_audit_that_the_arbiter_was_trained_on_are_noted(
    tiny, quick, folder, letters, tmp_path, capsys
):
    """Found: scores on questions of its training passed for reliable."""
    data = tmp_path / "m.safetensors"
    audit(tiny, letters, data)
    write_trained_on(folder, load_task(letters).examples("tune", 5))
    quick("--dataset", data)
    assert f"note: arbiter was trained on 5 of the 12 problems of {data}" in capsys.readouterr().err


def test_an_audit_of_another_pair_says_nothing_of_the_scores(
    tiny, quick, folder, letters, tmp_path, refusal
):
    """Found: only the names of the features were compared; then the pair of the training."""
    data, other = tmp_path / "m.safetensors", tmp_path / "other.safetensors"
    audit(tiny, letters, data)
    with safe_open(data, "pt") as file:
        metadata = file.metadata() | {"fingerprint": "other"}
    save_file(load_file(data), other, metadata)
    assert f"{other} is of another pair" in refusal(quick, "--dataset", other)
    about = {"pair": {"fingerprint": "of a pair that it was trained on"}}
    replace(LearnedArbiter.load(folder), about=about).save(folder)
    quick("--dataset", data)


def test_an_interrupted_run_goes_on_where_it_stopped(quick, folder, tmp_path, monkeypatch):
    whole, result = tmp_path / "whole.json", tmp_path / "r.json"
    chunks = ("--batch-size", 6)
    quick("--json", whole, *chunks)
    before = points(folder)
    with monkeypatch.context() as patch:
        stop_after(patch, 4 + 2)  # the warm-up and two turns
        with pytest.raises(SystemExit):
            quick("--json", result, "--overwrite", *chunks)
    assert points(folder) == before and not result.exists()
    quick("--json", result, "--overwrite", *chunks)
    document, expected = (json.loads(path.read_text()) for path in (result, whole))
    assert document["num_resumed_turns"] == 2
    assert document["rows"] == expected["rows"]
    assert document["calibration"] == expected["calibration"]


def test_a_run_that_failed_after_its_point_was_stored_goes_on(quick, folder, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    result = tmp_path / "r.json"
    with monkeypatch.context() as patch:
        patch.setattr("cospec.cli.common.run.write_json", full)
        with pytest.raises(SystemExit):
            quick("--json", result)
    point = points(folder)["accuracy"]
    quick("--json", result)
    stored = json.loads(result.read_text())["calibration"]["point"]
    assert points(folder)["accuracy"] == point == stored


def test_a_point_of_that_name_is_not_replaced_silently(quick, folder):
    with pytest.raises(SystemExit, match="has an operating point 'default'"):
        quick("--name", "default")
    quick("--name", "default", "--overwrite")
    assert points(folder)["default"]["aim"] == "accuracy"


def test_a_copy_gets_the_point_and_the_arbiter_stays_as_it_is(
    quick, folder, tmp_path, monkeypatch, refusal
):
    """Found: the points of bundled arbiters were written into the installed package."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    copy = tmp_path / "copy"
    monkeypatch.setattr("os.access", lambda path, _: path != folder)  # as for root nothing is
    assert "cannot be written to; pass --out FOLDER" in refusal(quick)
    quick("--out", copy)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert points(copy).keys() == {"accuracy", "default"}
    threshold = points(copy)["accuracy"]["threshold"]
    assert load_arbiter(f"{copy}:point=accuracy").threshold == threshold
    assert "exists; pass another --out" in refusal(quick, "--out", copy, "--name", "b")
    assert "the arbiter itself" in refusal(quick, "--out", folder, "--overwrite")
    quick("--out", tmp_path / "second", "--name", "default")  # the arbiter's own has that name
    assert points(tmp_path / "second")["default"]["aim"] == "accuracy"
    quick("--out", copy, "--name", "b", "--overwrite")
    assert points(copy).keys() == {"b", "default"}, "the copy was replaced"
    assert "cannot be written to; pass another --out" in refusal(
        quick, "--out", folder / "config.json" / "copy"
    )


def test_a_bundled_arbiter_needs_a_copy(calibrate, folder, monkeypatch, refusal):
    monkeypatch.setattr("cospec.cli.common.options.bundled_arbiter", lambda *_: str(folder))
    assert "whose folder belongs to the package" in refusal(calibrate, "--arbiter", "bundled")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--arbiter", "gap"], "must be the folder of a trained arbiter"),
        (["--arbiter", "bundled"], "ships with a trained arbiter"),
        (["--dataset", "pyproject.toml"], "is not a data set of cospec audit"),
        (["--aim", "guarantee"], "takes at least 114"),
        (["--aim", "guarantee", "--risk", "loss"], "takes at least 149"),
        (["--name", "a,b"], "name is 'a,b'"),
        (["--json", "no/such/folder.json"], "does not exist"),
        (["--thresholds", 0.5, 1.2], "each must be in [0, 1]"),
        (["--epsilon", 0], "epsilon is 0.0; it must be in (0, 1)"),
        (["--cost-weight", 0.1, "--aim", "speed"], "positive with --aim accuracy"),
        (["--epsilon", 0.01], "epsilon is 0.01, which only --aim guarantee reads"),
        (["--aim", "guarantee", "--split", "train"], "a guarantee needs --split tune"),
        (["--split", "test"], "invalid choice"),
    ],
)
def test_bad_input_ends_in_a_sentence(tiny, calibrate, refusal, arguments, sentence):
    assert sentence in refusal(calibrate, *arguments)
    assert tiny.asked_for == [], "before any model is loaded"


def test_a_folder_that_is_no_arbiter_is_refused(tiny, calibrate, folder, refusal):
    (folder / "config.json").write_text("{")
    assert "is no trained arbiter" in refusal(calibrate)
    (folder / "config.json").unlink()
    assert "is no trained arbiter" in refusal(calibrate)


def test_questions_of_the_same_groups_give_no_guarantee(tiny, quick, folder, letters, refusal):
    """Found: 12 questions on 3 databases counted as 12 independent ones."""
    path = letters.removeprefix("jsonl:").partition(",")[0]
    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]

    def ask(number, **more):
        with open(path, "w", encoding="utf-8") as file:
            for i, row in enumerate(rows):
                file.write(json.dumps(row | {"group": f"d{i % number}"} | more) + "\n")

    ask(3)
    message = refusal(quick, "--aim", "guarantee", "--epsilon", 0.9)
    assert "12 problems are of 3 groups, such as databases" in message and "independent" in message
    assert tiny.asked_for == [], "before any model is loaded"
    quick("--aim", "accuracy")
    ask(len(rows))
    quick("--aim", "guarantee", "--epsilon", 0.9)
    ask(3, template=0)  # found: a field of that name in a file waived the check
    again = ["--aim", "guarantee", "--epsilon", 0.9, "--overwrite"]
    assert "are of 3 groups" in refusal(quick, *again)
    ask(3, gsm_template=0)  # templates are drawn with the problems
    quick(*again)
