"""`cospec audit` as a user starts it."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file

from cospec.evaluation.audit.auditor import Auditor
from cospec.evaluation.audit.dataset import read_metadata
from cospec.features import SCALAR_NAMES
from cospec.models import costs
from tests.rl.conftest import arbiter, coin


def test_an_audit_prints_a_verdict_and_writes_the_result(tiny, problems, tmp_path, capsys) -> None:
    result, data = tmp_path / "audit.json", tmp_path / "mismatches.safetensors"
    task = f"jsonl:{problems},scorer=numeric,split=test"
    command = ["audit", "--task", task, "--split", "test", "--max-new-tokens", 12, "--max-k", 3]
    command += ["--json", result, "--dataset", data, "--cost-batch-sizes", 1, 2]
    tiny(*command)
    shown = capsys.readouterr()
    assert "whose branch is right" in shown.out and "oracle path" in shown.out
    assert "The target solves 0.0 %" in shown.out and "6/6 problems" in shown.err
    document = json.loads(result.read_text())
    assert (document["command"], document["schema"]) == ("audit", 1)
    assert document["summary"]["num_problems"] == len(document["rows"]) == 6
    speeds = document["summary"]["speed"]
    assert [speed["batch_size"] for speed in speeds] == [1, 2]
    assert [row["k"] for row in speeds[0]["by_k"]] == [1, 2, 3]
    assert data.exists() and not list(tmp_path.glob("*.part*"))
    with pytest.raises(SystemExit, match="exists"):
        tiny(*command)


def test_costs_that_do_not_fit_into_memory_are_left_out_and_the_rest_is_written(
    tiny, problems, tmp_path, monkeypatch, capsys
) -> None:
    """Found: the same command failed again each time, and another was refused."""
    measure = costs.measure_costs

    def measured(pair, *, batch_size, **more):
        if batch_size > 1:
            raise MemoryError
        return measure(pair, batch_size=batch_size, **more)

    monkeypatch.setattr(costs, "measure_costs", measured)
    result = tmp_path / "audit.json"
    command = ["audit", "--task", f"jsonl:{problems},scorer=numeric,split=test", "--split", "test"]
    command += ["--max-new-tokens", 8, "--max-k", 1, "--no-oracle", "--json", result]
    tiny(*command)
    assert "costs at batch 8 are left out: the forwards do not" in capsys.readouterr().err
    speeds = json.loads(result.read_text())["summary"]["speed"]
    assert [speed["batch_size"] for speed in speeds] == [1]


@pytest.mark.parametrize("command", ["audit", "calibrate", "eval"])
def test_adaptive_blocks_need_a_cost(tiny, problems, command, refusal) -> None:
    """Found: each process measured one, so that a run that was resumed was another one."""
    said = refusal(tiny, command, "--task", f"jsonl:{problems},scorer=numeric", "--adaptive")
    assert "adaptive is on and adaptive_cost is None" in said and '"adaptive_cost": 0.3}' in said
    assert not tiny.asked_for


def test_two_outputs_in_one_file_are_refused(tiny, problems, tmp_path) -> None:
    """Found: the last one replaced the other, after all the work."""
    task = f"jsonl:{problems},scorer=numeric,split=test"
    files = ["--json", tmp_path / "a", "--dataset", tmp_path / "." / "a"]
    with pytest.raises(SystemExit, match="two outputs would be the same file"):
        tiny("audit", "--task", task, *files)
    assert tiny.asked_for == []


def test_the_data_set_can_hold_the_states_of_the_models(tiny, problems, tmp_path) -> None:
    data = tmp_path / "mismatches.safetensors"
    command = ["audit", "--task", f"jsonl:{problems},scorer=numeric,split=test", "--split", "test"]
    command += ["--max-new-tokens", 8, "--max-k", 1, "--cost-batch-sizes", 1, "--no-oracle"]
    tiny(*command, "--features", "hidden", "--dataset", data)
    states = load_file(data)["features"][:, len(SCALAR_NAMES) :]
    assert states.shape[0] > 0 and states.shape[1] == 5 * 32, "the tiny models are 32 wide"


def test_an_arbiter_of_another_pair_is_noted(tiny, problems, tmp_path, capsys) -> None:
    """Found: the notes were those of an arbiter that no pair was known of."""
    arbiter(coin(0.0), explore=0.0).save(tmp_path / "other")
    command = ["audit", "--task", f"jsonl:{problems},scorer=numeric,split=test", "--split", "test"]
    command += ["--max-new-tokens", 8, "--max-k", 1, "--cost-batch-sizes", 1, "--no-oracle"]
    tiny(*command, "--num-problems", 2, "--arbiter", tmp_path / "other")
    assert "the arbiter other was not trained on this pair" in capsys.readouterr().err


def test_the_data_set_tells_how_it_was_decoded(tiny, problems, tmp_path) -> None:
    """Found: it did not, so that a policy was trained on the mismatches of other blocks unseen."""
    data = tmp_path / "mismatches.safetensors"
    command = ["audit", "--task", f"jsonl:{problems},scorer=numeric,split=test", "--split", "test"]
    command += ["--max-new-tokens", 8, "--max-k", 1, "--cost-batch-sizes", 1, "--no-oracle"]
    tiny(*command, "--num-problems", 2, "--end-blocks-at-stop", "--dataset", data)
    told = read_metadata(data, tiny.pair.fingerprint)
    names = ("num_speculative_tokens", "temperature", "end_blocks_at_stop")
    assert [told[name] for name in names] == ["4", "0.0", "true"]


def test_an_interrupted_audit_goes_on_where_it_was(tiny, problems, tmp_path, monkeypatch) -> None:
    task = f"jsonl:{problems},scorer=numeric,split=test"
    command = ["audit", "--task", task, "--split", "test", "--max-new-tokens", 6, "--max-k", 1]
    command += ["--problems-per-chunk", 2, "--cost-batch-sizes", 1]
    tiny(*command, "--json", tmp_path / "whole.json")
    audit, played = Auditor.audit, []

    def audit_until_the_third(self, examples, first):
        played.append([example.id for example in examples])
        if len(played) == 3:
            raise KeyboardInterrupt
        return audit(self, examples, first)

    monkeypatch.setattr(Auditor, "audit", audit_until_the_third)
    with pytest.raises(SystemExit) as stop:
        tiny(*command, "--json", tmp_path / "cut.json")
    assert stop.value.code == 130
    tiny(*command, "--json", tmp_path / "cut.json")
    assert [len(ids) for ids in played] == [2] * 4
    assert played[3] == played[2]
    whole, cut = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("whole", "cut"))
    assert cut["rows"] == whole["rows"]


def test_a_resumed_audit_replaces_no_data_set_but_its_own(tiny, problems, tmp_path, monkeypatch):
    """Found: one that another run had finished in the meantime was lost without a word."""
    task = f"jsonl:{problems},scorer=numeric,split=test"
    command = ["audit", "--task", task, "--split", "test", "--max-new-tokens", 6, "--max-k", 1]
    command += ["--problems-per-chunk", 2, "--cost-batch-sizes", 1]
    command += ["--dataset", tmp_path / "data.safetensors"]
    audit, num_left = Auditor.audit, [1]

    def audit_once(self, examples, first):
        if not num_left:
            raise KeyboardInterrupt
        num_left.pop()
        return audit(self, examples, first)

    with monkeypatch.context() as patch:
        patch.setattr(Auditor, "audit", audit_once)
        with pytest.raises(SystemExit):
            tiny(*command, "--json", tmp_path / "cut.json")
    tiny(*command, "--num-problems", 2, "--json", tmp_path / "other.json")
    theirs = (tmp_path / "data.safetensors").read_bytes()
    with pytest.raises(SystemExit, match="is of another run than the one that is resumed"):
        tiny(*command, "--json", tmp_path / "cut.json")
    assert (tmp_path / "data.safetensors").read_bytes() == theirs
    tiny(*command, "--json", tmp_path / "cut.json", "--overwrite")
    assert (tmp_path / "data.safetensors").read_bytes() != theirs


@pytest.mark.parametrize("option", ["--branches-per-problem", "--problems-per-chunk", "--max-k"])
def test_numbers_below_one_are_refused(tiny, problems, option, refusal) -> None:
    name = option.strip("-").replace("-", "_")
    said = refusal(tiny, "audit", "--task", f"jsonl:{problems},scorer=numeric", option, 0)
    assert f"{name} is 0; it must be at least 1" in said
