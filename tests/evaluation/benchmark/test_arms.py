"""Arms that take part in a benchmark, all of them tuned alike."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import torch
from examples.my_arbiter import Margin

from cospec import load_arbiter
from cospec.arbiters import RULES
from cospec.arbiters.memory import write_memory
from cospec.errors import ArbiterError, ConfigError
from cospec.evaluation.benchmark import arms
from cospec.evaluation.benchmark.arms import OWN_RULES, expand_sets, make_specs
from cospec.evaluation.benchmark.grids import GRIDS, NUM_TRIES, THRESHOLDS


def same(spec: str) -> str:
    return spec


def test_every_rule_with_settings_has_the_same_number_of_tries_and_no_other_has_any():
    assert set(GRIDS) == {name for name, rule in RULES.items() if fields(rule)}
    assert {len(grid) for grid in GRIDS.values()} == {len(THRESHOLDS)} == {NUM_TRIES}


def test_the_documentation_has_the_settings_that_are_tried():
    text = (Path(__file__).parents[3] / "docs" / "bench.md").read_text()
    for name, grid in {**GRIDS, "a trained arbiter": THRESHOLDS}.items():
        shown = f"`{name}`" if name in GRIDS else name
        assert f"| {shown} | {' '.join(f'`{setting}`' for setting in grid)} |" in text


@pytest.mark.parametrize("name", GRIDS)
def test_the_tries_of_a_rule_differ_and_the_released_constants_are_among_them(name):
    tried = [load_arbiter(f"{name}:{setting}") for setting in GRIDS[name]]
    assert len(set(tried)) == NUM_TRIES
    assert RULES[name]() in tried


def test_rules_are_all_cited_ones_and_all_adds_the_own_ones_and_the_references():
    rules, own = expand_sets(["rules"], has_bundled=False), ("gap", "agreement")
    assert set(rules) == set(RULES) - set(OWN_RULES)
    assert set(expand_sets(["all"], has_bundled=False)) == {*rules, *own, "random", "assisted"}
    bundled = {"bundled", "random:match=bundled"}
    assert set(expand_sets(["all"], has_bundled=True)) == {*rules, *own, "assisted", *bundled}
    assert expand_sets(["fly", "rules", "fly"], has_bundled=False)[0] == "fly"
    without_tune = expand_sets(["rules"], has_bundled=False, has_tune=False)
    assert {*rules} - {*without_tune} == {"csd"}, "it has no memory then"
    assert expand_sets(["fly", "rules"], has_bundled=False).count("fly") == 1


def test_target_draft_and_lossless_are_always_there():
    names = [(e.name, e.kind, e.tries) for e in make_specs(["lossless"], same)]
    exact = ("lossless", "exact", ("lossless",))
    assert names == [("target", "exact", ()), ("draft", "reference", ()), exact]


def test_an_arbiter_without_settings_is_tuned_and_one_with_settings_is_not():
    *_, gap, fixed = make_specs(["gap", "fly:window=2"], same, tune_knobs=True)
    assert gap.name == "gap"
    assert gap.tries == tuple(f"gap:{setting}" for setting in GRIDS["gap"])
    assert fixed.name == "fly:window=2,min_entropy=0.3"
    assert fixed.tries == ("fly:window=2",)
    *_, untuned = make_specs(["gap"], same)
    assert untuned.tries == ("gap",)


def test_a_class_from_outside_is_tuned_by_the_settings_that_it_declares(monkeypatch):
    """Found: it got the thresholds of trained arbiters, which it refused."""
    known = {"margin": Margin(), "margin:max_margin=0.3": Margin(0.3)}
    monkeypatch.setattr(arms, "load_arbiter", lambda spec: known[spec])
    *_, own, fixed = make_specs(list(known), same, tune_knobs=True)
    assert own.tries == tuple(f"margin:{one}" for one in Margin.knobs_to_try)
    assert fixed.tries == ("margin:max_margin=0.3",)
    assert own.kind == "rule" and own.is_rival
    monkeypatch.delattr(Margin, "knobs_to_try")
    *_, plain = make_specs(["margin"], same, tune_knobs=True)
    assert plain.tries == ("margin",)


def test_a_rule_is_tuned_in_the_settings_that_are_not_given(tmp_path):
    path = tmp_path / "memory.safetensors"
    write_memory(path, torch.tensor([[1, 2]]))
    *_, judi, csd = make_specs(["judi:confidence=0.8", f"csd:memory={path}"], same, tune_knobs=True)
    assert judi.name == "judi:confidence=0.8"
    assert judi.tries == tuple(f"judi:{one},confidence=0.8" for one in GRIDS["judi"])
    assert csd.name == f"csd:memory={path}"
    assert csd.tries == tuple(f"csd:{one},memory={path}" for one in GRIDS["csd"])
    *_, fixed = make_specs(["judi:threshold=0.2"], same, tune_knobs=True)
    assert fixed.tries == ("judi:threshold=0.2",)


def test_kinds_and_rivals():
    specs = ["gap", "random:rate=0.3", "assisted", "oracle", "always_draft", "random:match=gap"]
    found = {e.name: e for e in make_specs(specs, same)}
    kinds = {name: e.kind for name, e in found.items()}
    assert kinds == {
        "target": "exact", "draft": "reference", "lossless": "exact", "gap": "rule",
        "random:rate=0.3": "random", "assisted": "reference", "oracle": "ceiling",
        "always_draft": "rule",
        "random:match=gap": "random",
    }  # fmt: skip
    rivals = [name for name, e in found.items() if e.is_rival]
    assert rivals == ["draft", "lossless", "gap", "random:rate=0.3", "always_draft"]
    assert found["random:match=gap"].match == "gap"


def test_an_arm_is_matched_by_its_spec_or_its_name():
    by_spec = make_specs(["random:match=gap:max_gap=1.0", "gap:max_gap=1.0"], same)
    by_name = make_specs(["random:match=gap:max_gap=1", "gap:max_gap=1.0"], same)
    assert by_spec[-1] == by_name[-1]
    assert by_spec[-1].match == "gap:max_gap=1"
    specs = ["gap:max_gap=1.0", "random:match=gap:max_gap=1", "random:match=gap:max_gap=1.0"]
    assert len(make_specs(specs, same)) == 3 + 2, "both ways to name it are one arm"


@pytest.mark.parametrize(
    ("specs", "error", "sentence"),
    [
        (["gap:max_gap=1", "gap:max_gap=1.0"], ConfigError, "two arms are called 'gap:max_gap=1'"),
        (["gap", "random:match=gaap"], ConfigError, "did you mean 'gap'"),
        (["random:match=gap"], ConfigError, "no arbiter is asked for"),
        (["assisted", "random:match=assisted"], ConfigError, "unknown arm to match"),
        (["gaap"], ArbiterError, "did you mean 'gap'"),
    ],
)
def test_bad_input_is_refused(specs, error, sentence):
    with pytest.raises(error, match=sentence):
        make_specs(specs, lambda spec: load_arbiter(spec) and spec)
