"""Contents of result files: what is found, and what is refused."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest

from cospec.errors import ConfigError
from cospec.report.read import acceptance_rates, read_all

from .conftest import (
    ARMS,
    arm,
    audit_document,
    bench_document,
    eval_document,
    trace_document,
    write_metrics,
)


def test_every_kind_of_file_finds_its_place(results):
    found = read_all([results])
    assert [cell.title for cell in found.cells] == [
        "gsm8k, bundled:family, batch 16",
        "gsm8k, bundled:family, batch 16, temperature 1",
        "gsm8k, Big-7B / Small-1B",
    ]
    assert found.cells[2].about == "100 problems · k = 4 · batch 8 · greedy · a machine"
    kinds = ["exact", "reference", "exact", "learned", "rule", "random"]
    assert [arm["kind"] for arm in found.cells[2].arms] == kinds
    assert [arm["kind"] for arm in found.cells[0].arms] == [*kinds, "ceiling"]
    assert found.cells[0].notes == ["Best rival on the tune split: gap:max_gap=1."]
    assert found.cells[1].notes == ["assisted is left out: it is greedy."]
    assert (len(found.cells[0].tuning), len(found.cells[1].tuning)) == (1, 0)
    outcomes, rulings = found.mismatches
    assert outcomes.labels == ["only_draft", "neither", "both"]
    assert np.allclose(outcomes.q_draft, np.exp([-0.5, -1.5, 0.0]))
    assert rulings.labels == ["target's token", "override", "target's token"]
    assert np.allclose(rulings.gap_p, np.log(0.5 / 0.25))
    assert [training.title for training in found.trainings] == ["ours"]
    assert (len(found.audits), len(found.reliabilities), len(found.traces)) == (1, 1, 2)
    assert [path.name for path in found.passed_over] == ["other.json"]
    assert len(found.sources) == 7


def test_files_of_something_else_in_a_folder_are_passed_over_and_cut_results_are_not(tmp_path):
    """Found: a note ended the report, and a megabyte in another encoding was in the message."""
    (tmp_path / "notes.json").write_text("hello")
    (tmp_path / "rows.jsonl").write_bytes(("x" * 1000).encode("utf-16"))
    with pytest.raises(ConfigError, match="found no results"):
        read_all([tmp_path])
    with pytest.raises(ConfigError, match=r"rows\.jsonl is damaged") as error:
        read_all([tmp_path / "rows.jsonl"])
    assert len(str(error.value)) < 500
    (tmp_path / "cut.json").write_text('{"schema": 1, "command": "eval"')
    with pytest.raises(ConfigError, match=r"cut\.json is damaged"):
        read_all([tmp_path])


@pytest.mark.parametrize(
    "section, document", [("decode", eval_document), ("bench", bench_document)]
)
def test_it_is_told_that_drafts_end_early(tmp_path, section, document):
    made = document()
    made["config"][section] = {"draft_confidence_threshold": 0.7}
    (tmp_path / "early.json").write_text(json.dumps(made))
    assert "drafts end below 0.7 · " in read_all([tmp_path]).cells[0].about


def test_every_option_of_drafting_that_is_not_the_default_is_named(tmp_path):
    made = eval_document()
    made["config"]["decode"] = {
        "num_speculative_tokens": 4, "batch_size": 2, "keep_trace": False, "cascade": False,
        "drafter": "ngram", "adaptive": True, "max_corrections": 1,
    }  # fmt: skip
    (tmp_path / "other.json").write_text(json.dumps(made))
    about = read_all([tmp_path]).cells[0].about
    assert about.split(" · ")[2] == "adaptive, max_corrections = 1, drafter = ngram"


def test_texts_that_a_benchmark_stores_once_are_those_of_the_target(tmp_path):
    made = bench_document()
    made["cells"][0]["rows"] = [
        {"arm": "target", "id": "p/0", "text": "so 3", "correct": True},
        {"arm": "gap", "id": "p/0", "text": None, "correct": True},
    ]
    (tmp_path / "bench.json").write_text(json.dumps(made))
    texts = read_all([tmp_path]).texts[0].rows
    assert texts["gap"]["p/0"]["text"] == "so 3"


def test_the_temperature_of_an_evaluation_is_told(tmp_path):
    made = eval_document()
    made["config"]["evaluation"]["temperature"] = 0.7
    (tmp_path / "warm.json").write_text(json.dumps(made))
    assert "temperature 0.7" in read_all([tmp_path]).cells[0].about


def test_acceptance_is_a_share_of_all_blocks_of_an_arm(results):
    by_title = {each.title: each.rates for each in read_all([results]).acceptances}
    rates = by_title["gsm8k, bundled:family, batch 16 (bench.json)"]
    assert rates == {"lossless": [17 / 20, 12 / 20, 4 / 20]}
    row = {"arm": "a", "num_drafts": 4, "num_target_forwards": 9}
    assert acceptance_rates([row | {"num_accepted_tokens_per_pos": [2]}]) == {"a": [0.5]}
    assert acceptance_rates([row]) == {}
    nothing_drafted = row | {"num_accepted_tokens_per_pos": []}
    assert acceptance_rates([nothing_drafted]) == {}
    drafted = row | {"num_accepted_tokens_per_pos": [2]}
    assert acceptance_rates([nothing_drafted, drafted]) == {"a": [0.25]}


def test_in_a_folder_what_is_no_result_by_its_name_is_not_read(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(eval_document()))
    (tmp_path / "b.json.part.jsonl").write_text('{"config": 1}\n{"cut o')
    (tmp_path / "data.tar.gz").write_bytes(b"\x1f\x8b\xff")
    (tmp_path / "decisions.jsonl").write_text('{"request_id": 1}\n{"cut o')
    found = read_all([tmp_path])
    assert len(found.sources) == 1
    assert [path.name for path in found.passed_over] == ["b.json.part.jsonl", "decisions.jsonl"]


def test_runs_of_one_arm_with_other_settings_do_not_replace_each_other(tmp_path):
    for name, accepted in (("a", [3]), ("b", [1]), ("c", [2])):
        row = {"arm": "gap" if name == "c" else "lossless", "num_drafts": 4}
        made = eval_document() | {"command": "generate"}
        made["config"]["decode"] = {"num_speculative_tokens": 1}
        made["rows"] = [row | {"num_accepted_tokens_per_pos": accepted}]
        (tmp_path / f"{name}.json").write_text(json.dumps(made))
    first, second = read_all([tmp_path]).acceptances
    assert first.rates == {"lossless": [0.75], "gap": [0.5]}
    assert second.title == f"{first.title} (b.json)" and second.rates == {"lossless": [0.25]}


@pytest.mark.parametrize(
    "section, change",
    [
        ("decode", {"draft_confidence_threshold": 0.5}),
        ("decode", {"adaptive": True}),
        ("decode", {"max_corrections": 1}),
        ("decode", {"drafter": "ngram"}),
        ("sampling", {"temperature": 0.7}),
        ("sampling", {"top_p": 0.9}),
        ("prompts", {"file": "b.jsonl"}),
    ],
)
def test_generations_with_other_settings_do_not_share_a_picture(tmp_path, section, change):
    """Found: only the block length and the confidence told them apart."""
    for name, arm_of in (("a", "lossless"), ("b", "gap"), ("c", "fly")):
        row = {"arm": arm_of, "num_drafts": 4, "num_accepted_tokens_per_pos": [2]}
        made = eval_document() | {"command": "generate", "rows": [row]}
        made["config"] |= {
            "decode": {"num_speculative_tokens": 1, "arbiter": arm_of},
            "sampling": {"temperature": 0.0, "top_p": 1.0},
            "prompts": {"file": "a.jsonl"},
        }
        made["config"][section] |= change if name == "b" else {}
        (tmp_path / f"{name}.json").write_text(json.dumps(made))
    first, second = read_all([tmp_path]).acceptances
    assert (list(first.rates), list(second.rates)) == (["lossless", "fly"], ["gap"])
    assert first.title != second.title


def test_a_training_that_has_no_name_takes_that_of_its_folder(tmp_path):
    (tmp_path / "my-arbiter").mkdir()
    path = tmp_path / "my-arbiter" / "metrics.jsonl"
    write_metrics(path)
    assert read_all([path]).trainings[0].title == "my-arbiter"


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"command": "engine_speed"}', "holds nothing for a report"),
        ("[1]", "holds nothing for a report"),
        ("{", "damaged"),
        (json.dumps(eval_document([{"name": "target", "arbiter": None}])), "arm has no 'accuracy'"),
        (json.dumps(eval_document([])), "no arms"),
        (json.dumps(eval_document([arm("a", 0.5, 1.0, kind="new")])), "kind 'new' of arm a"),
    ],
)
def test_a_named_file_that_cannot_be_shown_is_an_error(tmp_path, text, message):
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        read_all([path])
    assert "result.json" in str(error.value)


def test_what_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        read_all([tmp_path / "none.json"])
    with pytest.raises(ConfigError, match="found no results"):
        read_all([tmp_path])
    broken = tmp_path / "data.safetensors"
    broken.write_bytes(b"no tensors")
    with pytest.raises(ConfigError, match=r"data\.safetensors is damaged"):
        read_all([broken])


def test_an_evaluation_without_rows_has_no_acceptance(tmp_path):
    path = tmp_path / "e.json"
    path.write_text(json.dumps(eval_document(ARMS, [{"arm": "lossless", "text": None}])))
    found = read_all([path])
    assert (len(found.cells), found.acceptances) == (1, [])


def broken(document, change):
    document = copy.deepcopy(document)  # several tests share the arms
    change(document)
    return document


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d["rows"][0].pop("question"), "row has no 'question'"),
        (lambda d: d.update(rows=[1]), "row is 1; it must be dict"),
        (lambda d: d.update(rows=3), "damaged"),
        (lambda d: d["rows"][0].update(tokens=[["a"]]), "tokens.0. is .'a'.; it must be a text"),
        (lambda d: d["rows"][0].update(tokens=[["a", 3]]), "tokens.0..1. is 3; it must be str"),
        (lambda d: d["rows"][0]["mismatches"][0].pop("q_target_id"), "has no 'q_target_id'"),
        (lambda d: d["rows"][0]["mismatches"][0].update(score="x"), "score is 'x'"),
        (lambda d: d["rows"][0]["mismatches"][0].update(p_draft_id=float("nan")), "nan.*finite"),
        (lambda d: d["rows"][0].update(num_overrides=True), "num_overrides is True"),
    ],
)
def test_a_damaged_trace_is_an_error_that_names_file_and_place(tmp_path, change, message):
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(broken(trace_document(), change)))
    with pytest.raises(ConfigError, match=message) as error:
        read_all([path])
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d["arms"][0].update(accuracy="high"), "arm.accuracy is 'high'"),
        (lambda d: d["arms"][0].update(accuracy_ci95=[0.1]), "must be two numbers"),
        (lambda d: d["arms"][0].update(wins=None), "arm.wins is None"),
        (lambda d: d["arms"][0].update(speedup_vs_target=float("inf")), "numbers finite"),
        (lambda d: d["arms"][0].update(num_overrides=1.5), "arm.num_overrides is 1.5"),
        (lambda d: d.update(arms=[3]), "damaged"),
    ],
)
def test_a_damaged_evaluation_is_an_error_that_names_file_and_place(tmp_path, change, message):
    path = tmp_path / "eval.json"
    path.write_text(json.dumps(broken(eval_document(), change)))
    with pytest.raises(ConfigError, match=message) as error:
        read_all([path])
    assert str(path) in str(error.value)


def test_an_audit_without_a_number_of_its_table_is_an_error(tmp_path):
    document = audit_document()
    del document["summary"]["outcomes"]["both"]
    (tmp_path / "audit.json").write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=r"KeyError.*both"):
        read_all([tmp_path])


def test_files_may_be_named_by_strings(results):
    """Found: an AttributeError."""
    assert read_all([str(results)]).sources == read_all([results]).sources
