"""A target spread over several places by ``device_map`` writes what it writes in one."""

from __future__ import annotations

import pytest
import torch

from cospec import Engine, SamplingConfig
from cospec.arbiters import load_arbiter
from cospec.errors import ConfigError
from cospec.features import make_features
from cospec.models import ModelPair
from cospec.models.cache import CachedModel
from tests.conftest import disturbed, random_model, some_prompts

SAMPLING = SamplingConfig(max_new_tokens=12, ignore_eos=True)
SPLIT = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.layers.0": "cpu"}
SPLIT |= {"model.layers.1": "disk", "model.norm": "disk", "lm_head": "cpu"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tokenizer):
    """Target and draft as checkpoints."""
    home, target = tmp_path_factory.mktemp("pair"), random_model("llama")
    for role, model in {"target": target, "draft": disturbed(target, 0.12)}.items():
        model.save_pretrained(home / role)
        tokenizer.save_pretrained(home / role)
    return home / "target", home / "draft"


def same_texts(whole: ModelPair, spread: ModelPair) -> None:
    """Compare the pairs under an exact arbiter, a rule, and the target alone."""
    prompts = some_prompts(6)
    for name in ("lossless", "gap:max_gap=1"):
        engines = [Engine(p, load_arbiter(name), batch_size=4) for p in (whole, spread)]
        expected, found = (engine.generate(prompts, SAMPLING) for engine in engines)
        assert [c.token_ids for c in found] == [c.token_ids for c in expected]
        assert [c.origins for c in found] == [c.origins for c in expected]
    alone = Engine.target_only(whole).generate(prompts, SAMPLING)
    exact = Engine(spread, load_arbiter("lossless")).generate(prompts, SAMPLING)
    assert [c.token_ids for c in exact] == [c.token_ids for c in alone]


def test_a_target_with_layers_on_disk_writes_the_same_texts(folders, tmp_path):
    whole = ModelPair.from_pretrained(*folders, device="cpu")
    places = {"device_map": SPLIT, "offload_folder": tmp_path}
    spread = ModelPair.from_pretrained(*folders, device="cpu", **places)
    layer = spread.target.model.layers[1].mlp.up_proj
    assert layer.weight.is_meta, "is fetched when it is its turn"
    assert not any(weight.is_meta for weight in spread.draft_model.parameters())
    same_texts(whole, spread)
    assert spread.fingerprint == whole.fingerprint
    make_features("hidden", spread)


def test_hidden_states_of_a_spread_target_are_those_of_a_whole_one(folders, tmp_path):
    states = []
    for places in ({}, {"device_map": SPLIT, "offload_folder": tmp_path}):
        pair = ModelPair.from_pretrained(*folders, device="cpu", **places)
        model = CachedModel(pair.target, capture_hidden=True)
        model.reserve(2, 8)
        with torch.inference_mode():
            output = model.read(torch.tensor([[6, 7, 8], [9, 10, 11]]), model.window([0, 0], 3), 3)
        states.append(output.hidden)
    assert torch.equal(*states)


def test_embeddings_stay_on_a_device(folders, tmp_path):
    places = {"device_map": SPLIT | {"model.embed_tokens": "disk"}, "offload_folder": tmp_path}
    with pytest.raises(ConfigError, match=r"embeddings of .* were put on a disk"):
        ModelPair.from_pretrained(*folders, device="cpu", **places)


@pytest.mark.parametrize("how", ["balanced", "sequential"])
def test_spreading_over_gpus_needs_one(folders, how):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ConfigError, match="spreads the layers over GPUs, and there is none"):
        ModelPair.from_pretrained(*folders, device=how)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_target_on_two_gpus_writes_the_same_texts(folders):
    whole = ModelPair.from_pretrained(*folders, device="cuda:0")
    places = {**dict.fromkeys(SPLIT, 0), "model.layers.1": 1}
    spread = ModelPair.from_pretrained(*folders, device_map=places | {"model.norm": 1})
    assert spread.target.model.layers[1].mlp.up_proj.weight.device.index == 1
    assert spread.draft_model.device == spread.target.device
    same_texts(whole, spread)
    balanced = ModelPair.from_pretrained(*folders, device="balanced")
    same_texts(whole, balanced)
