"""`cospec train` as a user starts it."""

from __future__ import annotations

import itertools
import json
import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from cospec.arbiters.learned import LearnedArbiter
from cospec.cli import parse, train
from cospec.cli.common.progress import Progress
from cospec.cli.train import Train
from cospec.errors import ConfigError, pip_line
from cospec.evaluation.turns import lock
from cospec.rl.card import write_card
from cospec.rl.config import TrainConfig
from cospec.rl.trainer import Trainer
from tests.rl.helpers import audit_file


@pytest.fixture
def letters(tmp_path):
    """A task with a train and a tune split: right is an answer with an h in it."""
    path = tmp_path / "letters.jsonl"
    words = [f"{a} {b} {c}" for a, b, c in itertools.product(["the", "on", "ten"], repeat=3)]
    rows = [{"question": text + end, "answer": "h"} for text in words for end in ("s", "")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"jsonl:{path},scorer=regex"


@pytest.fixture
def command(letters, tmp_path):
    small = ["--num-rounds", 2, "--prompts-per-round", 4, "--num-tune", 2, "--tune-every", 1]
    small += ["--max-new-tokens", 12, "--num-problems", 8, "--batch-size", 8]
    config = write_config(tmp_path)
    return ["train", "--task", letters, "--out", tmp_path / "arbiter", "--config", config, *small]


def write_config(folder, **policy):
    """A config file with settings that have no options."""
    path = folder / "few.json"
    path.write_text(json.dumps({"optimizer": {"num_epochs": 2}, "policy": policy}))
    return path


def test_training_writes_an_arbiter_that_eval_takes(tiny, command, letters, tmp_path, capsys):
    tiny(*command)
    shown = capsys.readouterr().out
    assert "round 1/2" in shown and "round 2/2" in shown and "tune_accuracy" in shown
    folder = tmp_path / "arbiter"
    card = (folder / "README.md").read_text()
    assert "# arbiter: an arbiter for" in card and "| 2 |" in card
    assert "Trained by reinforcement learning" in card
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    config = json.loads((folder / "config.json").read_text())
    told = ["name", "pair", "training", "provenance", "best", "history", "weights_sha256"]
    assert list(config)[-7:] == told and "min_prompt_likeness" in config
    assert set(config["training"]) == {"task", "pair", "train"}
    assert config["pair"]["fingerprint"] and config["training"]["task"]["task"] == letters
    assert ("- Guard: none" in card) == (config["max_mismatch_rate"] is None)
    assert LearnedArbiter.load(folder).threshold == 0.5
    tiny("eval", "--task", letters, "--split", "test", "--arbiter", folder, "--max-new-tokens", 8)
    out, err = capsys.readouterr()
    assert "arbiter:threshold=0.5" in out
    assert "of these 8 problems" not in err and "stands back" not in err
    with pytest.raises(SystemExit, match="finished arbiter"):
        tiny(*command)


def test_problems_that_an_arbiter_was_trained_on_are_noted_and_refused_if_strict(
    tiny, command, letters, tmp_path, capsys
):
    tiny(*command, "--num-rounds", 1)
    folder = tmp_path / "arbiter"
    for verb in ("eval", "bench"):
        measure = [verb, "--task", letters, "--split", "train", "--max-new-tokens", 4]
        measure += ["--num-problems", 10, "--arms" if verb == "bench" else "--arbiter", folder]
        if verb == "bench":
            measure += ["--num-tune-problems", 0, "--repeats", 1, "--batch-sizes", 10]
        tiny(*measure)
        assert "note: arbiter was trained on 8 of these 10 problems" in capsys.readouterr().err
        with pytest.raises(SystemExit, match=r"trained on 8 of these 10 problems; draw others"):
            tiny(*measure, "--strict")
        measure[measure.index("train")] = "test"
        measure[measure.index("--num-problems") + 1] = 2
        tiny(*measure, "--strict")
    (folder / "trained_on.safetensors").unlink()
    with pytest.raises(SystemExit, match="arbiter does not tell what it was trained on"):
        tiny(*measure, "--strict")


@pytest.mark.parametrize(("num_solved", "num_first"), [(0, 0), (3, 3 * 2 * 2 * 2 + 2)])
def test_the_progress_bar_counts_every_completion(
    tiny, command, tmp_path, monkeypatch, num_solved, num_first
) -> None:
    """Its total is what is decoded at most: a rollout may have fewer decisions to leave it at.

    Found: answers of both models, their reading and the tune split after it counted as one text
    a problem.
    """
    warmup = {"solutions_from": "samples", "num_solutions": num_solved, "num_samples": 2}
    path = write_config(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"warmup": warmup}))
    totals, finished = [], []

    class Counted(Progress):
        def __init__(self, total, *args, **kwargs):
            totals.append(total)
            super().__init__(total, *args, **kwargs)

        def advance(self, num):
            finished.append(num)

    monkeypatch.setattr(train, "Progress", Counted)
    tiny(*command, "--branches-per-rollout", 1)
    assert totals == [num_first + 2 * (4 + 4 + 4) + 2 * (1 + 2)]
    assert num_first // 2 + 2 * (4 + 4) + 2 * (1 + 2) < sum(finished) <= totals[0]


def test_an_arbiter_can_learn_from_hidden_states(tiny, command, letters, tmp_path, capsys) -> None:
    folder = tmp_path / "arbiter"
    write_config(tmp_path, hidden_projection=3, dropout=0.2)
    tiny(*command, "--features", "hidden")
    config = json.loads((folder / "config.json").read_text())
    assert config["features"]["spec"] == "hidden" and config["policy"]["hidden_projection"] == 3
    it = LearnedArbiter.load(folder)
    assert it.policy.projection.weight.shape == (3, it.features.num_hidden)
    assert it.policy.mean[-1] != 0, "what it was normalized by is kept"
    tiny("eval", "--task", letters, "--split", "test", "--arbiter", folder, "--max-new-tokens", 8)
    assert "arbiter:threshold=0.5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("gold", "A control, trained by the method gold"),
        ("r2r", "A control, trained by the method r2r"),
        ("one_step", "Trained on single rulings off the target's own path"),
    ],
)
def test_a_card_says_how_its_arbiter_was_trained(tiny, command, tmp_path, method, told) -> None:
    tiny(*command, "--method", method)
    config = json.loads((tmp_path / "arbiter" / "config.json").read_text())
    assert config["training"]["train"]["method"] == method
    card = (tmp_path / "arbiter" / "README.md").read_text()
    assert told in card and "reinforcement" not in card
    assert "(the target's path on train problems;" in card
    rounds = (tmp_path / "arbiter" / "metrics.jsonl").read_text().splitlines()
    assert all("branch_gain" in json.loads(line) for line in rounds)
    assert LearnedArbiter.load(tmp_path / "arbiter").threshold == 0.5


class Wandb:
    """Record of the calls to Weights & Biases."""

    def __init__(self) -> None:
        self.inits, self.logs = [], []

    def init(self, **options: object) -> object:
        self.inits.append(options)
        return SimpleNamespace(id=options["id"] or "run-1", log=self.log)

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.logs.append((step, numbers))


def test_an_interrupted_training_goes_on_in_the_same_run_of_wandb(
    tiny, command, tmp_path, monkeypatch
) -> None:
    told = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", told)
    command += ["--wandb-project", "arbiters"]
    report = Train._report

    def interrupted(self, trainer, *args):
        report(self, trainer, *args)
        if trainer.state.round == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Train, "_report", interrupted)
    with pytest.raises(SystemExit):
        tiny(*command)
    tiny(*command)
    assert [(i["project"], i["id"], i["resume"]) for i in told.inits] == [
        ("arbiters", None, "allow"),
        ("arbiters", "run-1", "allow"),
    ]
    assert told.inits[0]["config"]["train"]["num_rounds"] == 2
    rows = [json.loads(x) for x in (tmp_path / "arbiter/metrics.jsonl").read_text().splitlines()]
    assert told.logs == [(row["round"], row) for row in rows] and len(rows) == 2


def test_metrics_have_the_last_round_though_the_run_died_before_it_was_told(
    tiny, command, tmp_path, monkeypatch
) -> None:
    """Found: its state was saved, so that it was neither played nor told again."""
    report = Train._report

    def until_the_second(self, trainer, *args):
        if trainer.state.round == 2:
            raise KeyboardInterrupt
        report(self, trainer, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Train, "_report", until_the_second)
        with pytest.raises(SystemExit):
            tiny(*command)
    path = tmp_path / "arbiter" / "metrics.jsonl"
    assert len(path.read_text().splitlines()) == 1
    tiny(*command)
    assert [json.loads(line)["round"] for line in path.read_text().splitlines()] == [1, 2]


def test_a_project_without_wandb_is_refused_with_the_line_that_installs_it(
    tiny, command, monkeypatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SystemExit, match=re.escape(pip_line("wandb"))):
        tiny(*command, "--wandb-project", "arbiters")
    assert tiny.asked_for == [], "found: the models were loaded first"


def test_a_dry_run_prints_the_plan_and_leaves_nothing(tiny, command, tmp_path, capsys) -> None:
    tiny(*command, "--dry-run")
    assert "2 rounds of 4 problems: 4 rollouts and 16 branches each" in capsys.readouterr().out
    assert not (tmp_path / "arbiter").exists()


def interrupt(tiny, command, monkeypatch):
    """Stop a training after its first round."""
    evaluate = Trainer.evaluate

    def until_the_second(self):
        if self.state.round == 2:
            raise KeyboardInterrupt
        return evaluate(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "evaluate", until_the_second)
        with pytest.raises(SystemExit):
            tiny(*command)


def test_a_training_resumes_with_its_own_settings_data_and_pair_only(
    tiny, command, tmp_path, monkeypatch, capsys
) -> None:
    """The file of problems was written anew between two runs, and training went on."""
    interrupt(tiny, command, monkeypatch)
    with pytest.raises(SystemExit, match="other settings"):
        tiny(*command, "--cost-weight", 0.5)
    file = tmp_path / "letters.jsonl"
    text = file.read_text()
    file.write_text(text.replace('"answer": "h"', '"answer": "x"'))
    with pytest.raises(SystemExit, match=r"other settings \(data_train, data_tune\)"):
        tiny(*command)
    file.write_text(text)
    with monkeypatch.context() as patch:
        patch.setitem(vars(tiny.pair), "fingerprint", "another")
        with pytest.raises(SystemExit, match=r"other settings \(fingerprint\)"):
            tiny(*command)
    tiny(*command)
    assert "resuming after round 1" in capsys.readouterr().out
    assert (tmp_path / "arbiter" / "config.json").exists()


def test_a_prompt_that_is_too_long_does_not_become_part_of_the_run(tiny, command, tmp_path) -> None:
    """Found: the run died of it, and without it the problems were others and did not resume."""
    file = tmp_path / "letters.jsonl"
    file.write_text(file.read_text().replace('s", "answer"', f'{"s" * 300}", "answer"'))
    with pytest.raises(SystemExit, match=r"the prompt of letters/\d+ has .*leave the problem out"):
        tiny(*command)
    assert not (tmp_path / "arbiter" / "run.json").exists()


def test_settings_that_fail_before_the_first_round_do_not_lock_the_folder(
    tiny, command, tmp_path, monkeypatch
) -> None:
    """Found: with what the error advised, the folder held "a run with other settings"."""

    def fails(_):
        raise ConfigError("set num_solutions to 0")

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "warm_up", fails)
        with pytest.raises(SystemExit, match="set num_solutions to 0"):
            tiny(*command)
    tiny(*command, "--num-rounds", 1)
    assert (tmp_path / "arbiter" / "config.json").exists()


def test_an_output_that_is_a_file_is_refused_at_once(tiny, command, tmp_path) -> None:
    (tmp_path / "arbiter").touch()
    with pytest.raises(SystemExit, match=r"out is .*arbiter, which is a file; name a folder"):
        tiny(*command)
    assert tiny.asked_for == []


def test_an_arbiter_in_the_working_folder_has_the_name_of_that(
    tiny, command, tmp_path, monkeypatch
) -> None:
    """Found: its name was empty. The config file has the mark that Windows writes first."""
    (tmp_path / "few.json").write_text('{"optimizer": {"num_epochs": 2}}', encoding="utf-8-sig")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    command[command.index("--out") + 1] = "."
    tiny(*command, "--num-rounds", 1)
    assert json.loads((tmp_path / "here" / "config.json").read_text())["name"] == "here"


def test_a_tilde_in_out_is_the_home_folder(tmp_path, monkeypatch, capsys) -> None:
    """Found: half of a run went to ./~, as bash leaves the one in --out=~/x as it is."""
    monkeypatch.setenv("HOME", str(tmp_path))
    train_by = ["train", "--task", "gsm8k"]
    with_config = [*train_by, "--config", str(write_config(tmp_path))]
    for args in (train_by, with_config):
        assert parse([*args, "--out=~/x"]).out == tmp_path / "x"
    calibrate = parse(["calibrate", "--task", "gsm8k", "--out=~/x"]).calibrate
    assert calibrate.out == tmp_path / "x"
    with pytest.raises(SystemExit):
        parse(with_config)
    assert "--out" in capsys.readouterr().err


def test_two_trainings_do_not_share_a_folder(tiny, command, tmp_path) -> None:
    (tmp_path / "arbiter").mkdir()
    with (
        lock(tmp_path / "arbiter" / "run.lock"),
        pytest.raises(SystemExit, match="another run is writing to"),
    ):
        tiny(*command)


def test_a_run_writes_its_settings_as_a_config_file_that_options_override(
    tiny, command, tmp_path
) -> None:
    tiny(*command, "-k", 3)
    written = json.loads((tmp_path / "arbiter" / "train.json").read_text())
    assert written["optimizer"]["num_epochs"] == 2
    assert written["rollouts"]["num_speculative_tokens"] == 3
    config = ["--config", str(tmp_path / "arbiter" / "train.json")]
    again = parse(["train", "--task", "t", "--out", "o", *config, "--num-rounds", "5"])
    assert again.train == replace(TrainConfig.from_dict(written), num_rounds=5)


@pytest.mark.parametrize("given", [["--config", "{}"], ["--config={}"]])
def test_a_config_file_may_have_an_equals_sign_in_its_path(tmp_path, given) -> None:
    """Found: the path was cut there."""
    (path := tmp_path / "run=3.json").write_text('{"num_rounds": 7}')
    command = ["train", "--task", "t=1", "--out", "o", *(word.format(path) for word in given)]
    assert parse(command).train.num_rounds == 7


def test_adaptive_blocks_need_a_cost_from_the_config_file(command, tiny, tmp_path, refusal) -> None:
    """Found: each process measured one, so that a resumed run was another one."""
    file = tmp_path / "few.json"
    file.write_text('{"rollouts": {"adaptive": true}}')
    assert "adaptive is on and adaptive_cost is None" in refusal(tiny, *command)
    file.write_text('{"rollouts": {"adaptive": true, "adaptive_cost": 0.3}}')
    it = parse([*map(str, command)])
    assert it.train.rollouts.adaptive and it.train.rollouts.adaptive_cost == 0.3


def test_no_problems_at_all_are_refused(tiny, command, refusal) -> None:
    """Found: 0 was taken for the default."""
    said = refusal(tiny, *command, "--num-problems", 0)
    assert "num_problems is 0; it must be at least 1" in said and tiny.asked_for == []


def test_an_audit_that_was_decoded_otherwise_is_noted(tiny, command, tmp_path, capsys) -> None:
    audit = audit_file(tmp_path, num_speculative_tokens="9", temperature="0.0")
    tiny(*command, "--warm-start", audit, "--num-rounds", 0)
    said = capsys.readouterr().err
    assert "audit.safetensors was decoded with num_speculative_tokens 9 (here 4): its" in said
    assert (tmp_path / "arbiter" / "config.json").exists()


def test_a_config_file_with_an_unknown_setting_is_refused(tiny, command, tmp_path) -> None:
    (tmp_path / "few.json").write_text('{"optimizer": {"lerning_rate": 1}}')
    with pytest.raises(SystemExit, match="did you mean 'learning_rate'"):
        tiny(*command)
    (tmp_path / "few.json").write_text('{"optimizer": {"learning_rate": 1' + "0" * 400 + "}}")
    with pytest.raises(SystemExit, match="learning_rate has hundreds of digits"):
        tiny(*command)
    for text in ("{", "[" * 100_000):
        (tmp_path / "few.json").write_text(text)
        with pytest.raises(SystemExit, match=r"few\.json cannot be read as settings"):
            tiny(*command)


def test_the_help_of_training_is_short(capsys) -> None:
    with pytest.raises(SystemExit):
        parse(["train", "--help"])
    out = capsys.readouterr().out
    options = {
        o for o in re.findall(r"--[a-z][a-z-]+", out) if not o.startswith(("--no-", "--help"))
    }
    assert len(options) <= 49 and {"--config", "--num-rounds", "--cost-weight"} <= options
    assert "--learning-rate" not in options


@pytest.mark.parametrize(
    ("origin", "name", "whose"),
    [
        ("task", "worked solutions", "the worked solutions of"),
        ("samples", "the models' own answers", "the models' own answers to"),
    ],
)
def test_the_card_says_whose_answers_were_read_before_the_first_round(origin, name, whose):
    """Found: the models' own answers were called worked solutions."""
    best = {
        "round": 0, "tune_accuracy": 0.5, "tune_accuracy_target": 0.4, "tune_wins": 2,
        "tune_losses": 1, "tune_relative_cost": 0.9, "num_solution_decisions": 30,
    }  # fmt: skip
    train_settings = {"warmup": {"num_solutions": 9, "solutions_from": origin}}
    train_settings |= {"method": "rl", "num_tune": 10, "cost_weight": 0.05, "seed": 0}
    card = write_card(
        {
            "name": "ours",
            "pair": {"pair": "bundled:family", "fingerprint": "f"},
            "training": {"task": {"task": "gsm8k"}, "train": train_settings},
            "provenance": {"git": "abc"},
            "best": best,
            "history": [best],
        }
    )
    assert f"Trained on {name} with CoSpec." in card
    assert f"30 decisions that {whose} 9 other problems settle: 0.500 of the tune" in card


@pytest.mark.parametrize(
    "option",
    [
        ("--target", "t"),
        ("--num-problems", 8),
        ("--backend", "vllm"),
        ("--num-rounds", 3),
        ("--cost-weight", 0.3),
    ],
)
def test_an_option_of_rollouts_is_refused_with_a_log(tiny, tmp_path, refusal, option) -> None:
    """Found: it was ignored."""
    log = ["--from-log", "l", "--rewards", "r", "--arbiter", "a", "--out", tmp_path / "arbiter"]
    given = ["train", *log, "--config", write_config(tmp_path, kind="linear"), *option]
    said = refusal(tiny, *given)
    assert f"{option[0]} is {option[1]}, which is not for training from a log" in said


def test_threads_are_set_for_training_from_a_log(tiny, tmp_path, refusal) -> None:
    """Found: they were ignored."""
    log = ["--from-log", "l", "--rewards", "r", "--arbiter", "a", "--out", tmp_path / "arbiter"]
    assert "threads is 0" in refusal(tiny, "train", *log, "--threads", 0)
