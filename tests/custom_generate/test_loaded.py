"""Trained arbiters that are kept from one call of ``generate`` to the next."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING

import pytest
import torch

from cospec.custom_generate import Collaborative, loaded
from cospec.custom_generate.loaded import arbiter_for
from cospec.errors import CheckpointError
from cospec.models import ModelPair
from tests.arbiters.trained import hidden, learned, policy
from tests.conftest import disturbed, random_model

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def models():
    target = random_model("llama")
    return target, disturbed(target, 0.12)


@pytest.fixture
def folder(tmp_path) -> Path:
    learned(about={"name": "mine"}).save(tmp_path / "arbiter")
    return tmp_path / "arbiter"


def test_generate_reads_an_arbiter_once(models, folder, monkeypatch):
    """Found: it was read from the disk in each call."""
    target, draft = models
    specs, load = [], loaded.load_arbiter
    monkeypatch.setattr(
        loaded, "load_arbiter", lambda spec, pair: specs.append(spec) or load(spec, pair)
    )
    prompt = torch.tensor([[7, 8, 9]])
    found = [
        target.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=9,
            custom_generate=Collaborative(draft, spec),
        ).tolist()
        for spec in (str(folder), str(folder), f"{folder}:threshold=1", str(folder))
    ]  # fmt: skip
    assert specs == [str(folder), f"{folder}:threshold=1"]
    assert found[0] == found[1] == found[3]


def test_an_arbiter_is_loaded_again_where_what_it_depends_on_has_changed(folder, tokenizer):
    target = random_model("llama")
    draft, spec = disturbed(target, 0.12), str(folder)
    found = [arbiter_for(spec, ModelPair(target, draft)) for _ in range(2)]
    assert found[0] is found[1]
    found.append(arbiter_for(spec, ModelPair(target, draft, tokenizer)))
    learned(policy(seed=3), about={"name": "theirs"}).save(folder)
    found.append(arbiter_for(spec, ModelPair(target, draft, tokenizer)))
    assert [one.label for one in found] == ["mine", "mine", "mine", "theirs"]
    with torch.no_grad():
        target.get_output_embeddings().weight.mul_(2)
    found.append(arbiter_for(spec, ModelPair(target, draft, tokenizer)))
    found.append(arbiter_for(spec, ModelPair(random_model("llama", seed=5), draft, tokenizer)))
    assert len(set(map(id, found))) == len(found) - 1, "all but the first two are others"


def test_an_arbiter_whose_files_are_gone_is_no_longer_found(models, folder):
    arbiter_for(str(folder), ModelPair(*models))
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="is no trained arbiter"):
        arbiter_for(str(folder), ModelPair(*models))


def test_few_arbiters_are_kept_and_no_rules(folder):
    target = random_model("llama")
    pair = ModelPair(target, disturbed(target, 0.12))
    assert arbiter_for("gap:max_gap=1", pair).name == "gap:max_gap=1"
    assert not loaded._LOADED[target]
    specs = [f"{folder}:threshold=0.{i}" for i in range(1, 8)]
    found = [arbiter_for(spec, pair) for spec in specs]
    assert list(loaded._LOADED[target]) == specs[-loaded._MOST :]
    assert arbiter_for(specs[-1], pair) is found[-1]


def test_models_are_freed_with_the_arbiters_that_were_loaded_for_them(tmp_path):
    """One that rules by hidden states has the target's embeddings."""
    target = random_model("llama")
    pair = ModelPair(target, disturbed(target, 0.12))
    hidden(pair).save(tmp_path)
    arbiter = weakref.ref(arbiter_for(str(tmp_path), pair))
    model = weakref.ref(target)
    assert arbiter() is not None
    del target, pair
    gc.collect()
    assert model() is None and arbiter() is None
