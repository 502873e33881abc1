"""Two result documents: when they may be compared, and what comes out."""

from __future__ import annotations

import copy

import pytest
from experiments.slim import slim

from cospec.errors import ConfigError
from cospec.evaluation import stats
from cospec.evaluation.compare import check_alike, compare, differences, full_rows, worse_arms
from cospec.evaluation.summary import paired


def rows(arm, right, texts=None):
    texts = texts or [f"t{i}" for i in range(len(right))]
    return [
        {"id": f"p/{i}", "arm": arm, "correct": bool(c), "num_target_forwards": 10, "text": t}
        for i, (c, t) in enumerate(zip(right, texts, strict=True))
    ]


def arm(name, seconds, k=4, knob=None):
    return {
        "name": name, "num_problems": 4, "seconds": seconds, "tokens_per_s": 40 / seconds,
        "speedup_vs_target": 8 / seconds, "num_target_forwards": 40, "k": k, "knob": knob,
    }  # fmt: skip


def bench(seconds=2.0, right=(1, 0, 0, 0), knob="max_gap=1", **conditions):
    evaluation = {
        "task": "sums", "num_problems": 4, "problems_sha256": "abc", "seed": 0,
        "max_new_tokens": 16,
    }  # fmt: skip
    provenance = {
        "dtype": "float32", "device": "cpu", "threads": 1,
        "versions": {"cospec": "1", "torch": "2.6", "transformers": "5"},
    }  # fmt: skip
    texts = ["t0", "other", None, None]
    cell = {
        "task": "sums", "batch_size": 1, "temperature": 0.0,
        "arms": [arm("target", 8.0), arm("gap", seconds, knob=knob)],
        "rows": [*rows("target", [1, 0, 0, 0]), *rows("gap", right, texts)],
    }  # fmt: skip
    document = {
        "schema": 1, "command": "bench", "provenance": provenance, "cells": [cell],
        "config": {
            "pair": {"pair": "bundled:family", "target": None, "draft": None},
            "evaluation": evaluation, "models": {"fingerprint": "f"},
        },
    }  # fmt: skip
    for key, value in conditions.items():
        place = next(
            (part for part in (evaluation, provenance, provenance["versions"]) if key in part),
            document["config"]["models"],
        )
        place[key] = value
    return document


def test_an_arbiter_that_was_trained_again_is_told():
    """Found: its answers were called not reproduced, since nothing was known to differ."""
    ours, theirs = bench(), bench()
    for document, digest in ((ours, "a"), (theirs, "b")):
        document["config"]["arbiters"] = {"my-arbiter": {"sha256": digest}}
    expected = {"arbiters.my-arbiter": ({"sha256": "a"}, {"sha256": "b"})}
    assert differences(ours, theirs) == expected
    with pytest.raises(ConfigError, match=r"arbiters\.my-arbiter: {'sha256': 'a'}"):
        check_alike(ours, theirs)
    check_alike(ours, theirs, ["arbiters"])
    del theirs["config"]["arbiters"]  # as older results are
    assert not differences(ours, theirs)


@pytest.mark.parametrize("name", ["prompts", "metadata"])
def test_other_prompts_or_metadata_of_the_same_problems_are_told(name):
    """Found: a file with other worked examples, tests or databases was taken for the same."""
    ours, theirs = bench(), bench()
    for document, digest in ((ours, "x"), (theirs, "y")):
        document["config"]["evaluation"][f"{name}_sha256"] = digest
    assert differences(ours, theirs) == {name: ("x", "y")}
    theirs["config"]["evaluation"]["problems_sha256"] = "def"
    assert differences(ours, theirs).keys() == {"problems"}
    assert differences(ours, bench()) == {}, "an older result does not say"


def test_other_options_of_vllm_are_told():
    ours, theirs = bench(), bench()
    for document, options in ((ours, "{}"), (theirs, '{"quantization": "fp8"}')):
        document["config"]["engine"] = {"backend": "vllm", "vllm_options": options}
    assert differences(ours, theirs).keys() == {"vllm_options"}


@pytest.mark.parametrize("part", ["decode", "bench", "calibrate"])
def test_runs_on_another_engine_or_with_other_drafts_are_told_apart(part):
    """Found: those of calibrate were not."""
    ours, theirs = bench(), bench()
    for document, backend, drafter in ((ours, "transformers", "model"), (theirs, "vllm", "ngram")):
        document["config"] |= {"engine": {"backend": backend}, part: {"drafter": drafter}}
    assert differences(ours, theirs) == {
        "backend": ("transformers", "vllm"), "drafter": ("model", "ngram")
    }  # fmt: skip


def test_arms_are_compared_problem_by_problem():
    a, b = bench(2.0), bench(1.0, [1, 1, 1, 0], "max_gap=2")
    (cell,) = compare(a, b)
    assert (cell["task"], cell["batch_size"], cell["temperature"]) == ("sums", 1, 0.0)
    target, gap = cell["arms"]
    assert (target["wins"], target["losses"], target["speed_ratio"]) == (0, 0, 1.0)
    assert (gap["wins"], gap["losses"]) == (2, 0)
    assert gap["mcnemar_p"] == stats.mcnemar_p(2, 0)
    assert gap["num_right"] == [1, 3]
    assert gap["accuracy_delta"] == 0.5
    assert gap["speed_ratio"] == 2.0
    assert gap["forwards_ratio"] == 1.0
    assert gap["settings"] == [{"k": 4, "knob": "max_gap=1"}, {"k": 4, "knob": "max_gap=2"}]
    assert gap["num_texts_unlike"] == 0


def test_a_text_that_is_not_stored_is_that_of_the_target():
    found = full_rows(bench()["cells"][0])
    assert [row["text"] for row in found["gap"].values()] == ["t0", "other", "t2", "t3"]
    b = bench()
    b["cells"][0]["rows"][-1]["text"] = "changed"
    assert compare(bench(), b)[0]["arms"][1]["num_texts_unlike"] == 1


def test_only_common_problems_and_arms_are_compared():
    a, b = bench(), bench(problems_sha256="def")
    b["cells"][0]["rows"] = [row for row in b["cells"][0]["rows"] if row["id"] != "p/0"]
    b["cells"][0]["arms"].append(arm("new", 1.0))
    check_alike(a, b, ["problems"])
    (cell,) = compare(a, b)
    assert [one["num_problems"] for one in cell["arms"]] == [3, 3]
    ratios = {one[name] for one in cell["arms"] for name in ("speed_ratio", "forwards_ratio")}
    assert ratios == {None}, "they are of four problems in one file"
    assert (cell["only_in_a"], cell["only_in_b"]) == ([], ["new"])


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("task", "products", "task: 'sums' and 'products'"),
        ("problems_sha256", "def", "problems: '4 problems, sha256 abc'"),
        ("seed", 1, "seed: 0 and 1"),
        ("max_new_tokens", 32, "max_new_tokens: 16 and 32"),
        ("fingerprint", "g", "fingerprint: 'f' and 'g'"),
        ("dtype", "bfloat16", "dtype: 'float32' and 'bfloat16'"),
        ("device", "gpu", "device: 'cpu' and 'gpu'"),
        ("threads", 2, "threads: 1 and 2"),
        ("torch", "2.7", "versions.torch: '2.6' and '2.7'"),
    ],
)
def test_unlike_runs_are_refused_unless_the_difference_is_accepted(key, value, named):
    a, b = bench(), bench(**{key: value})
    with pytest.raises(ConfigError, match=named) as refusal:
        check_alike(a, b)
    accept = named.partition(":")[0]
    assert f"--allow {accept}." in str(refusal.value)
    check_alike(a, b, [accept])


def test_a_refusal_lists_every_difference():
    b = bench(dtype="bfloat16", threads=2, torch="2.7", transformers="6")
    with pytest.raises(ConfigError) as refusal:
        check_alike(bench(), b, ["versions"])
    assert "--allow dtype threads." in str(refusal.value)
    assert "versions" not in str(refusal.value)
    assert list(differences(bench(), b)) == [
        "dtype", "threads", "versions.torch", "versions.transformers"
    ]  # fmt: skip


def test_the_version_of_cospec_is_what_one_may_want_to_compare():
    assert not differences(bench(), bench(cospec="2"))


def test_a_run_that_does_not_tell_its_exact_prefix_had_none():
    a, b = bench(), bench()
    b["config"]["evaluation"]["exact_prefix_tokens"] = 0
    assert not differences(a, b)
    b["config"]["evaluation"]["exact_prefix_tokens"] = 16
    with pytest.raises(ConfigError, match="exact_prefix_tokens: 0 and 16"):
        check_alike(a, b)
    check_alike(a, b, ["exact_prefix_tokens"])


def test_names_of_models_count_where_there_is_no_hash_of_their_weights():
    a, b = bench(), bench()
    b["config"]["pair"]["pair"] = "bundled:specialist"
    check_alike(a, b)
    del a["config"]["models"]
    with pytest.raises(ConfigError, match="pair: 'bundled:family' and 'bundled:specialist'"):
        check_alike(a, b)


def test_an_unknown_condition_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'threads'"):
        check_alike(bench(), bench(), ["thread"])


def test_runs_with_nothing_in_common_are_refused():
    b = copy.deepcopy(bench())
    b["cells"][0]["batch_size"] = 4
    with pytest.raises(ConfigError, match="sums, batch 1, temperature 0 and sums, batch 4"):
        compare(bench(), b)
    b = copy.deepcopy(bench())
    for row in b["cells"][0]["rows"]:
        row["id"] += "x"
    with pytest.raises(ConfigError, match="no problem in common"):
        compare(bench(), b)


def test_an_arm_is_worse_only_if_chance_over_all_arms_does_not_explain_it():
    def cell(*arms):
        return {"batch_size": 1, "temperature": 0.0, "arms": list(arms)}

    def entry(name, wins, losses):
        p = stats.mcnemar_p(wins, losses)
        return {"name": name, "wins": wins, "losses": losses, "mcnemar_p": p}

    bad, good, same = entry("bad", 0, 7), entry("good", 9, 0), entry("same", 3, 4)
    assert bad["mcnemar_p"] == pytest.approx(0.015625)
    assert worse_arms([cell(bad, good, same)], 0.05) == ["bad (batch 1, temperature 0)"]
    assert worse_arms([cell(bad, good), cell(same, same)], 0.05) == []
    assert worse_arms([cell(good, same)], 0.05) == []


def test_where_problems_come_in_groups_an_arm_is_worse_by_groups():
    """Found: twelve losses in one database counted as twelve."""
    arm = {"name": "gap", "wins": 0, "losses": 12, "mcnemar_p": 0.0005, "group_p": 1.0}
    cell = {"batch_size": 1, "temperature": 0.0, "arms": [arm]}
    assert worse_arms([cell], 0.05) == []
    assert worse_arms([cell | {"arms": [arm | {"group_p": 0.01}]}], 0.05)


def test_runs_that_look_prompts_up_in_another_way_are_unlike():
    a, b = bench(), bench()
    for document, longest in ((a, 4), (b, 10)):
        document["config"]["decode"] = {"drafter": "ngram", "prompt_lookup_max": longest}
    assert differences(a, b) == {"prompt_lookup_max": (4, 10)}


def test_runs_on_other_numbers_of_engines_are_unlike():
    a, b = bench(), bench()
    for document, number in ((a, 1), (b, 4)):
        document["config"]["engine"] = {"backend": "transformers", "num_replicas": number}
    assert differences(a, b) == {"num_replicas": (1, 4)}


def test_an_arm_that_one_file_timed_once_shows_no_speed_and_a_median_is_taken_of_both(capsys):
    """Found: ratios of one turn were printed as if they were known to two digits."""
    from cospec.cli.views.compare import print_comparison

    a, b = bench(), bench()
    turns = [{"arm": name, "chunk": 0} for name in ("target", "gap")]
    a["cells"][0]["chunks"], b["cells"][0]["chunks"] = turns, turns * 3
    b["cells"][0]["arms"][1]["repeats"] = {"speedup_vs_target": [1.0, 5.0, 6.0]}
    cells = compare(a, b)
    _, gap = cells[0]["arms"]
    assert gap["num_turns"] == [1, 3]
    assert gap["speedup_vs_target"] == [4.0, 5.0], "an older file has the ratio of means"
    print_comparison(cells)
    (line,) = (each for each in capsys.readouterr().out.splitlines() if each.startswith("gap"))
    assert "- 5.00" in line and "1.00x" not in line.split("- 5.00")[0]
    (gap,) = (arm for arm in compare(bench(), b)[0]["arms"] if arm["name"] == "gap")
    assert gap["num_turns"] == [None, 3]


def test_one_file_by_two_names_is_compared_if_that_is_allowed():
    """Found: --allow task, which the refusal named, did not help."""
    a, b = bench(), bench(task="sums again")
    b["cells"][0]["task"] = "sums again"
    check_alike(a, b, ["task"])
    with pytest.raises(ConfigError, match="no cell"):
        compare(a, b)
    (cell,) = compare(a, b, any_task=True)
    assert (cell["task"], [one["num_problems"] for one in cell["arms"]]) == ("sums", [4, 4])


def test_the_table_has_the_p_by_which_is_judged(capsys):
    from cospec.cli.views.compare import print_comparison

    cells = compare(bench(), bench())
    for one in cells[0]["arms"]:
        one |= {"group_p": 0.123, "accuracy_delta_groups_ci95": (-0.5, 0.25)}
    print_comparison(cells)
    assert capsys.readouterr().out.count("(-50.0 to +25.0)") == 2


def test_a_problem_without_a_group_is_one_of_its_own():
    """Found: one of them, as in a mixture, took the groups from all the others."""
    ours = [{"correct": i < 4, "group": "a"} for i in range(8)] + [{"correct": True}] * 2
    theirs = [{"correct": False}] * 10
    for pair, sign in (((ours, theirs), 1), ((theirs, ours), -1)):
        found = paired(*pair)
        assert found["num_groups"] == 3
        assert found["accuracy_delta"] == sign * 0.6


def test_a_slim_file_keeps_groups():
    rows = [
        {"arm": "target", "id": i, "correct": True, "num_target_forwards": 1, "group": group}
        | {"num_accepted_tokens_per_pos": [1]}
        for i, group in (("x", "a"), ("y", "b"))
    ]
    part = {"rows": rows}
    slim(part)
    assert [row["group"] for row in full_rows(part)["target"].values()] == ["a", "b"]
