"""The models that ship with the package: complete, small, loadable, and as their card says."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path

import pytest
import torch

import cospec
from cospec.arbiters import load_arbiter
from cospec.arbiters.learned import notes_on
from cospec.cli.common.options import PairOptions
from cospec.config import DecodeConfig
from cospec.errors import ConfigError
from cospec.models.bundled import BUNDLED_ARBITERS, bundled_models
from cospec.tasks import load_task
from cospec.tasks.reasoning_gym import SUFFIX
from cospec.tasks.splits import split_of
from cospec.tasks.trained_on import overlap
from tests.conftest import family_pair

HOME = Path(cospec.__file__).parent / "bundled"
PAIRS = ("bundled:family", "bundled:specialist")
MAX_WEIGHT_BYTES = 30_000_000
requires_weights = pytest.mark.skipif(
    not any(HOME.glob("*/model.safetensors")),
    reason="the bundled models are not there; tools/train_bundled.py makes them",
)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Empty folder in which the bundled models are looked for."""
    monkeypatch.setattr(cospec, "__file__", str(tmp_path / "__init__.py"))
    return tmp_path / "bundled"


def test_a_build_without_models_says_so(home):
    with pytest.raises(ConfigError, match="this build ships no pair"):
        bundled_models("bundled:family")


def test_a_pair_is_there_if_both_its_models_are(home):
    (home / "family").mkdir(parents=True)
    with pytest.raises(ConfigError, match="this build ships no pair"):
        bundled_models("bundled:family")
    (home / "target").mkdir()
    assert bundled_models("bundled:family") == (home / "target", home / "family")
    with pytest.raises(ConfigError, match="bundled:family"):
        bundled_models("bundled:specialist")


def test_the_pair_names_both_models():
    with pytest.raises(ConfigError, match="leave out --target"):
        PairOptions(pair="bundled:family", target="elsewhere").load()


@requires_weights
def test_the_checksums_are_right_and_cover_every_file():
    lines = (HOME / "SHA256SUMS").read_text().splitlines()
    listed = {name: digest for digest, name in (line.split("  ") for line in lines)}
    files = {path.relative_to(HOME).as_posix(): path for path in HOME.rglob("*") if path.is_file()}
    del files["SHA256SUMS"]
    assert listed == {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()
    }


@requires_weights
def test_the_weights_are_small():
    weights = [path.stat().st_size for path in HOME.glob("*/*.safetensors")]
    assert sum(weights) <= MAX_WEIGHT_BYTES


@requires_weights
@pytest.mark.parametrize("folder", sorted((HOME / "arbiters").glob("*")), ids=lambda f: f.name)
def test_each_arbiter_tells_the_problems_that_it_was_trained_on(folder):
    task = load_task("reasoning_gym:gsm_symbolic")
    seed = json.loads((folder / "config.json").read_text())["training"]["train"]["seed"]
    assert overlap(folder, task.examples("train", 3, seed)).num_same == 3
    assert overlap(folder, task.examples("train", 3, 99)).num_same == 0


@functools.cache
def bundled_pair(name):
    return PairOptions(pair=name, device="cpu").load()


@requires_weights
@pytest.mark.parametrize("name", PAIRS)
def test_a_bundled_pair_loads_by_its_name(name):
    pair = bundled_pair(name)
    assert pair.target.dtype == pair.draft.dtype == torch.float32
    assert pair.target.num_parameters() > pair.draft.num_parameters()
    assert not pair.tokenizer.chat_template, "the models were trained on the plain prompt"


@requires_weights
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("spec", BUNDLED_ARBITERS)
def test_the_trained_arbiter_is_that_of_its_pair(name, spec):
    options = PairOptions(pair=name, device="cpu")
    pair = bundled_pair(name)
    arbiter = load_arbiter(options.find_arbiter(spec), pair)
    found = load_arbiter(f"{spec}:threshold=0.25", pair)  # found: an unknown arbiter
    assert found.folder == arbiter.folder and found.threshold == 0.25
    assert arbiter.name.startswith(name.partition(":")[2])
    assert (arbiter.features.num_hidden > 0) == (spec == "bundled")
    assert arbiter.max_mismatch_rate < 0.2, "it has its guard"
    decode = DecodeConfig().for_arbiters([arbiter])
    assert decode.k == 16
    assert not notes_on(arbiter, decode), "it is said to be of another pair or block length"
    with pytest.raises(ConfigError, match="ships with a trained arbiter"):
        PairOptions(target="T", draft="D").find_arbiter(spec)
    for other in (None, family_pair("llama")):
        with pytest.raises(ConfigError, match=f"arbiter {spec} needs .*, and got none; load one"):
            load_arbiter(spec, other)


@requires_weights
def test_the_card_shows_the_figures():
    card = (HOME / "README.md").read_text()
    figures = json.loads((HOME / "figures.json").read_text())
    assert "early export" not in card
    assert set(figures["pairs"]) == set(PAIRS)
    for name, row in figures["models"].items():
        low, high = row["accuracy_ci95"]
        assert f"| {name} | {row['accuracy']:.1%} | {low:.1%} to {high:.1%} | " in card
    for name, row in figures["pairs"].items():
        counts = (row[f"{key}_right"] for key in ("only_target", "only_draft", "both"))
        assert f"| `{name}` | {' | '.join(map(str, counts))} | {row['agreement']:.1%} | " in card
    for name, row in figures["tasks"].items():
        shares = (f"{row[model]:.0%}" for model in figures["models"])
        assert f"| `{name}` | {row['num_problems']} | {' | '.join(shares)} |" in card


@requires_weights
def test_the_demo_problems_are_different_and_of_the_test_split():
    rows = [json.loads(line) for line in (HOME / "problems.jsonl").read_text().splitlines()]
    assert len({row["question"] for row in rows}) == len({row["id"] for row in rows}) == 400
    assert {split_of(row["question"] + SUFFIX) for row in rows} == {"test"}
    assert all(row.keys() == {"id", "question", "answer"} for row in rows)
