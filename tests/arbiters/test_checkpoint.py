"""The folder of a trained arbiter: what is written is read, and what is damaged is refused."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import resource
from dataclasses import asdict, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cospec import ModelPair, load_arbiter
from cospec.arbiters import LogProbGap, checkpoint, with_threshold
from cospec.arbiters.guard import PromptGuard
from cospec.arbiters.learned import LearnedArbiter
from cospec.arbiters.policy import Policy, PolicyConfig
from cospec.errors import ArbiterError, CheckpointError, ConfigError
from cospec.features import SCALAR_NAMES, ScalarFeatures, token_kinds
from tests.arbiters.trained import (
    change_config,
    hidden,
    learned,
    mismatches,
    policy,
)
from tests.conftest import family_pair

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.mark.parametrize(
    "shape",
    [{}, {"kind": "linear"}, {"hidden_size": 5, "num_layers": 3}, {"correction": True}],
)
def test_what_is_loaded_rules_as_what_was_saved(shape, tmp_path) -> None:
    it, batch = learned(policy(**shape)), mismatches()
    it.save(tmp_path / "deep" / "folder")
    again = LearnedArbiter.load(tmp_path / "deep" / "folder")
    ours, theirs = it.rule(batch), again.rule(batch)
    assert torch.equal(ours.keep_draft, theirs.keep_draft) and 0 < int(ours.keep_draft.sum()) < 40
    assert torch.equal(ours.score, theirs.score) and torch.equal(ours.features, theirs.features)
    assert again.policy.config == it.policy.config and again.threshold == 0.5
    assert not again.policy.training and not again.explore
    files = sorted(path.name for path in (tmp_path / "deep" / "folder").iterdir())
    assert files == ["config.json", "model.safetensors"], "no parts are left behind"


def test_what_the_default_point_says_stays_with_its_threshold(folder, tmp_path) -> None:
    """Found: saving again forgot the settings that the threshold was chosen for."""
    point = {"threshold": 0.625, "p_value": 0.01}
    change_config(folder, operating_points={"default": point})
    again = LearnedArbiter.load(folder)
    again.save(tmp_path / "same")
    replace(again, threshold=0.5).save(tmp_path / "other")
    points = [
        json.loads((tmp_path / name / "config.json").read_text())["operating_points"]["default"]
        for name in ("same", "other")
    ]
    assert points == [point, {"threshold": 0.5}]


def test_the_config_tells_what_the_arbiter_is(folder) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["features"]["names"] == list(SCALAR_NAMES)
    assert config["policy"] == asdict(PolicyConfig())
    assert config["operating_points"]["default"] == {"threshold": 0.625}
    assert config["operating_points"]["bold"]["why"] == "fast"
    assert (folder / "README.md").read_text() == "# A card\n"


def test_a_save_that_is_cut_short_leaves_no_config(tmp_path, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="disk full"):
        learned().save(tmp_path)
    with pytest.raises(CheckpointError, match="is no trained arbiter"):
        LearnedArbiter.load(tmp_path)


def test_an_arbiter_saved_again_keeps_what_is_known_of_it(folder, tmp_path) -> None:
    change_config(folder, training={"seed": 3}, max_mismatch_rate=0.25)
    LearnedArbiter.load(folder).save(tmp_path / "copy")
    configs = [json.loads((f / "config.json").read_text()) for f in (folder, tmp_path / "copy")]
    assert configs[0] == configs[1]


def test_the_guard_is_saved_and_can_be_switched_off(folder, tmp_path) -> None:
    assert LearnedArbiter.load(folder).max_mismatch_rate == math.inf
    learned(max_mismatch_rate=0.125).save(tmp_path / "guarded")
    spec = str(tmp_path / "guarded")
    assert load_arbiter(spec).max_mismatch_rate == 0.125
    assert load_arbiter(spec).name == "guarded:threshold=0.5"
    off = load_arbiter(f"{spec}:max_mismatch_rate=inf")
    assert off.max_mismatch_rate == math.inf
    assert off.name == "guarded:threshold=0.5,max_mismatch_rate=inf"


def test_the_prompt_guard_is_saved_and_can_be_switched_off(folder, tmp_path) -> None:
    assert LearnedArbiter.load(folder).prompt_guard is None
    guard = PromptGuard.of([[1, 2, 3]], [[1, 2, 4], [2, 3, 4]])
    learned(prompt_guard=guard).save(tmp_path / "guarded")
    spec = str(tmp_path / "guarded")
    found = load_arbiter(spec, family_pair("llama"))
    assert found.name == "guarded:threshold=0.5"
    assert torch.equal(found.prompt_guard.profile, guard.profile)
    assert found.prompt_guard.min_likeness == guard.min_likeness
    assert [found.is_foreign(ids) for ids in ([1, 2, 4], [8, 9])] == [False, True]
    off = load_arbiter(f"{spec}:min_prompt_likeness=0")
    assert off.name == "guarded:threshold=0.5,min_prompt_likeness=0"
    assert not off.is_foreign([8, 9])
    with pytest.raises(ArbiterError, match="does not know the prompts of its training"):
        load_arbiter(f"{folder}:min_prompt_likeness=0.5")


def test_another_tokenizer_of_the_same_size_has_other_prompts(tmp_path) -> None:
    """Found: only the number of tokens was compared."""
    pair = ModelPair.from_pretrained("bundled:family")
    kinds = token_kinds(pair.tokenizer, pair.target.config.vocab_size)
    guard = PromptGuard.of([[1, 2, 3]], [[1, 2, 4]])
    for name, own in (("same", kinds), ("other", kinds.roll(1))):
        features = ScalarFeatures(own)
        policy = Policy(len(features.names), PolicyConfig())
        LearnedArbiter(policy, features, prompt_guard=guard).save(tmp_path / name)
    assert load_arbiter(str(tmp_path / "same"), pair).prompt_guard is not None
    assert load_arbiter(str(tmp_path / "other"), pair).prompt_guard is None


def test_ids_of_another_vocabulary_say_nothing_of_a_prompt(tmp_path) -> None:
    learned(prompt_guard=PromptGuard.of([[1, 2, 3]], [[1, 2, 4]])).save(tmp_path / "one")
    pair = ModelPair.from_pretrained("bundled:family")
    other = load_arbiter(str(tmp_path / "one"), pair)
    assert other.prompt_guard is None and "the prompt guard of one is off" in other.notes[-1]
    with pytest.raises(ArbiterError, match="not in the tokens of this pair"):
        load_arbiter(f"{tmp_path / 'one'}:min_prompt_likeness=0.5", pair)
    with pytest.raises(ArbiterError, match=r"is 1.5; it must be from 0 \(off\) to 1"):
        load_arbiter(f"{tmp_path / 'one'}:min_prompt_likeness=1.5")
    other.save(tmp_path / "two")
    assert load_arbiter(str(tmp_path / "two")).prompt_guard is None


@pytest.mark.parametrize("damage", ["no profile", "a short profile", "no likeness"])
def test_half_a_prompt_guard_is_refused(tmp_path, damage) -> None:
    learned(prompt_guard=PromptGuard.of([[1, 2, 3]], [[1, 2, 4]])).save(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    profile = tensors.pop("prompt_profile")
    if damage == "a short profile":
        tensors["prompt_profile"] = profile[:-1].contiguous()
    if damage == "no likeness":
        change_config(tmp_path, min_prompt_likeness=None)
    else:
        save_file(tensors, tmp_path / "model.safetensors")
        config = json.loads((tmp_path / "config.json").read_text())
        del config["weights_sha256"]
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="min_prompt_likeness and prompt_profile"):
        LearnedArbiter.load(tmp_path)


def test_an_arbiter_with_another_threshold_is_saved_with_that_one(folder, tmp_path) -> None:
    LearnedArbiter.load(folder).with_threshold(0.75).save(tmp_path / "copy")
    assert LearnedArbiter.load(tmp_path / "copy").threshold == 0.75


def test_other_features_are_refused(folder) -> None:
    features = json.loads((folder / "config.json").read_text())["features"]
    change_config(folder, features=features | {"hash": "0123456789abcdef"})
    with pytest.raises(ArbiterError, match=r"other features .*0123456789abcdef.*train it again"):
        LearnedArbiter.load(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["gone", "cut", "empty", "noise"])
def test_a_damaged_folder_is_refused(folder, name, damage) -> None:
    path = folder / name
    whole = path.read_bytes()
    path.unlink()
    contents = {"cut": whole[: len(whole) // 2], "empty": b"", "noise": b"\xff\x00" * 500}
    if damage != "gone":
        path.write_bytes(contents[damage])
    with pytest.raises(CheckpointError, match=r"is no trained arbiter.*cospec train") as caught:
        LearnedArbiter.load(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("text", ["[]", "3", '"arbiter"', "{}", '{"cospec_arbiter": "1"}'])
def test_a_folder_of_something_else_is_refused(folder, text) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"not of a trained arbiter.*cospec_arbiter is not 1"):
        LearnedArbiter.load(folder)


def test_a_folder_of_a_newer_version_is_refused_with_what_to_do(folder) -> None:
    change_config(folder, cospec_arbiter=2)
    with pytest.raises(
        CheckpointError, match=r"newer version of cospec \(format 2.*pip install -U"
    ):
        LearnedArbiter.load(folder)


def test_weights_that_were_changed_afterwards_are_refused(folder) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["policy.layers.0.bias"][0] += 1
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"not the file that config.json was written with"):
        LearnedArbiter.load(folder)
    config = json.loads((folder / "config.json").read_text())
    del config["weights_sha256"]  # of a version that recorded none
    (folder / "config.json").write_text(json.dumps(config))
    LearnedArbiter.load(folder)


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_pickled_file_is_never_unpickled(folder, tmp_path, name) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"policy": Payload(tmp_path / "ran")}, folder / name)
    with pytest.raises(CheckpointError, match="is no trained arbiter"):
        LearnedArbiter.load(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("change", ["shape", "missing", "extra", "config"])
def test_weights_that_do_not_fit_the_config_are_refused(folder, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = "policy.layers.0.weight"
    if change == "shape":
        tensors[name] = tensors[name][:, :-1].contiguous()
    elif change == "missing":
        del tensors[name]
    elif change == "extra":
        tensors["policy.layers.9.weight"] = torch.zeros(1)
    else:
        change_config(folder, policy=asdict(PolicyConfig(hidden_size=7)))
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="the weights do not fit the config"):
        LearnedArbiter.load(folder)


@pytest.mark.parametrize(
    "damage",
    [
        *("features", "policy", "operating_points", "kinds", "policy key", "threshold", "pair"),
        "max_mismatch_rate",
    ],
)
def test_a_config_without_what_is_needed_is_refused_by_name(folder, damage) -> None:
    if damage == "kinds":
        tensors = load_file(folder / "model.safetensors")
        del tensors["kinds"]
        save_file(tensors, folder / "model.safetensors")
    elif damage == "policy key":
        change_config(folder, policy=asdict(PolicyConfig()) | {"width": 3})
    elif damage == "threshold":
        change_config(folder, operating_points={"default": {}})
    elif damage in ("pair", "max_mismatch_rate"):
        change_config(folder, **{damage: "bundled:arithmetic"})
    else:
        change_config(folder, **{damage: None})
    with pytest.raises(CheckpointError, match=damage.split()[0]):
        LearnedArbiter.load(folder, family_pair("llama"))


def test_a_threshold_that_is_no_number_is_refused(folder) -> None:
    with pytest.raises((ArbiterError, ConfigError), match="threshold"):
        load_arbiter(f"{folder}:threshold=nan")


@pytest.mark.parametrize(
    "widths",
    [
        *({"hidden_sizes": bad} for bad in ([32, 31], [33, 32], "wide", [32], [32, 32.0], [])),
        *({"embedding_size": bad} for bad in (31, "wide", 32.0, -1, None)),
    ],
)
def test_widths_that_are_not_those_it_was_trained_with_are_refused(widths, tmp_path) -> None:
    hidden(family_pair("llama")).save(tmp_path)
    features = json.loads((tmp_path / "config.json").read_text())["features"]
    change_config(tmp_path, features=features | widths)
    message = r"other features|hidden_sizes or features.embedding_size"
    with pytest.raises((ArbiterError, CheckpointError), match=message):
        LearnedArbiter.load(tmp_path)


# --- from strangers ----------------------------------------------------------------------------

HUGE = 10_000_000
HOSTILE: dict[str, tuple[str, Any]] = {
    "huge widths": ("features.hidden_sizes", [HUGE, HUGE]),
    "huge embeddings": ("features.embedding_size", 10**12),
    "huge layers": ("policy.hidden_size", 10**12),
    "layers beyond any tensor": ("policy.hidden_size", 10**18),
    "layers beyond any integer": ("policy.hidden_size", 10**30),
    "many layers": ("policy.num_layers", 10**9),
    "no projection": ("policy.hidden_projection", -(10**400)),
    "a float for a size": ("policy.hidden_size", 64.0),
    "a string for a size": ("policy.hidden_size", "64"),
    "null for a size": ("policy.num_layers", None),
    "no number for dropout": ("policy.dropout", math.nan),
    "a kind of policy": ("policy.kind", "tree"),
    "an unknown setting": ("policy.width", 3),
    "a huge block": ("training.train.num_speculative_tokens", 10**9),
    "a huge block in a group": ("training.train.rollouts.num_speculative_tokens", 10**9),
    "no block": ("training.train.num_speculative_tokens", 0),
    "a string for a block": ("training.train.num_speculative_tokens", "4"),
    "training": ("training", []),
    "training settings": ("training.train", [1]),
    "a threshold that is no number": ("operating_points.default.threshold", math.nan),
    "an infinite threshold": ("operating_points.default.threshold", math.inf),
    "a threshold beyond 1": ("operating_points.default.threshold", 2.0),
    "a threshold below 0": ("operating_points.default.threshold", -1e30),
    "a huge threshold": ("operating_points.default.threshold", 10**400),
    "a point": ("operating_points.default", "bold"),
    "a rate that is no number": ("max_mismatch_rate", math.nan),
    "a huge rate": ("max_mismatch_rate", 10**400),
    "a negative rate": ("max_mismatch_rate", -0.5),
    "no number for a rate": ("max_mismatch_rate", ""),
    "a likeness above 1": ("min_prompt_likeness", 1.5),
    "a likeness that is no number": ("min_prompt_likeness", "high"),
    "a version": ("features.version", "1"),
    "a hash": ("features.hash", 3),
    "a pair": ("pair", 3),
}


def put(config: dict[str, Any], name: str, value: Any) -> None:
    """Set one value of a config by its path."""
    *path, last = name.split(".")
    for key in path:
        config = config.setdefault(key, {})
    config[last] = value


def test_an_empty_tensor_is_no_proof_of_a_width(tmp_path, monkeypatch) -> None:
    """Found: a header with the shape [0, N] let a few bytes ask for gigabytes of names."""
    hidden(family_pair("llama")).save(tmp_path)
    features = json.loads((tmp_path / "config.json").read_text())["features"]
    change_config(tmp_path, features=features | {"hidden_sizes": [HUGE, HUGE]})
    weights = load_file(tmp_path / checkpoint.WEIGHTS)
    save_file(weights | {"policy.mean": torch.empty(0, HUGE)}, tmp_path / checkpoint.WEIGHTS)
    monkeypatch.setattr(checkpoint, "saved_features", lambda *_: pytest.fail("names were made"))
    with pytest.raises(CheckpointError, match=r"hidden_sizes or features.embedding_size"):
        LearnedArbiter.load(tmp_path)


@pytest.mark.parametrize("case", HOSTILE)
def test_a_value_that_cannot_be_is_refused_by_name_before_anything_is_allocated(
    folder, case
) -> None:
    path, (name, value) = folder / "config.json", HOSTILE[case]
    config = json.loads(path.read_text())
    put(config, name, value)
    path.write_text(json.dumps(config))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError) as caught:
        LearnedArbiter.load(folder)
    message = str(caught.value)
    assert name.rpartition(".")[2] in message or "do not fit the config" in message
    assert len(message) < 700
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown_mb < 100


def test_versions_and_specs_that_this_version_does_not_have_are_refused(folder) -> None:
    features = json.loads((folder / "config.json").read_text())["features"]
    change_config(folder, features=features | {"version": 99})
    with pytest.raises(ArbiterError, match="version 99"):
        LearnedArbiter.load(folder)


def test_a_config_that_is_nested_too_deeply_is_refused(folder) -> None:
    (folder / "config.json").write_text('{"cospec_arbiter": ' * 100_000 + "1" + "}" * 100_000)
    with pytest.raises(CheckpointError, match="is no trained arbiter"):
        LearnedArbiter.load(folder)


@pytest.mark.parametrize("change", ["short", "values", "floats", "table"])
def test_kinds_of_tokens_that_cannot_be_are_refused(folder, llama_pair, change) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    kinds = tensors["kinds"]
    changed = {
        "short": kinds[:3],
        "values": kinds + 9,
        "floats": kinds.float(),
        "table": kinds[None],
    }
    save_file(tensors | {"kinds": changed[change].contiguous()}, path)
    change_config(folder, pair={"fingerprint": llama_pair.fingerprint})
    with pytest.raises(CheckpointError, match="kinds"):
        LearnedArbiter.load(folder, llama_pair)


def test_weights_that_are_no_floats_are_refused(folder) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"policy.mean": tensors["policy.mean"].long()}, path)
    with pytest.raises(CheckpointError, match=r"policy.mean.* has the dtype I64"):
        LearnedArbiter.load(folder)


def test_any_value_in_any_place_gives_an_arbiter_or_a_clear_error(folder) -> None:
    """Seeded fuzzing: values of every kind put into every place of a config."""
    random = Random(0)
    values = [None, True, -1, 0, 1, 2**70, 1e308, math.nan, "", "x" * 9, [], [1, "a"], {}, {"a": 1}]
    whole = json.loads((folder / "config.json").read_text())
    whole["training"] = {"train": {"rollouts": {"num_speculative_tokens": 4}}}
    places = list(walk(whole))
    num_refused = 0
    for _ in range(300):
        config = copy.deepcopy(whole)
        for place in random.sample(places, random.choice([1, 1, 2])):
            with contextlib.suppress(AttributeError, TypeError):  # its parent was replaced
                put(config, place, random.choice(values))
        (folder / "config.json").write_text(json.dumps(config))
        try:
            LearnedArbiter.load(folder)
        except (CheckpointError, ArbiterError):
            num_refused += 1
    assert 100 < num_refused < 300


def walk(config: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Paths of all values."""
    for key, value in config.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from walk(value, f"{prefix}{key}.")


# --- folders -----------------------------------------------------------------------------------


def test_what_cannot_be_written_leaves_the_arbiter_that_was_there(folder) -> None:
    """Found: its weights were replaced before the config turned out to be no JSON."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(TypeError, match="not JSON serializable"):
        learned(policy(1), about={"name": object()}).save(folder, "# Another\n")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("card", ["", "# Another\n"])
def test_an_arbiter_in_place_of_another_keeps_nothing_that_tells_of_that(folder, card) -> None:
    """Found: the card and the problems of the old one stayed."""
    (folder / "trained_on.safetensors").write_text("of the old one")
    (folder / "train.json").write_text("of the run")
    learned(policy(1)).save(folder, card)
    cards = {path.name: path.read_text() for path in folder.glob("*.md")}
    assert cards == ({"README.md": card} if card else {})
    assert not (folder / "trained_on.safetensors").exists() and (folder / "train.json").exists()


def test_an_arbiter_saved_over_itself_keeps_its_card_and_its_problems(folder) -> None:
    (folder / "trained_on.safetensors").write_text("of this one")
    arbiter = LearnedArbiter.load(folder).with_threshold(0.75)
    kinds = torch.cat([arbiter.features.kinds, arbiter.features.kinds])  # fitted to another pair
    replace(arbiter, features=replace(arbiter.features, kinds=kinds)).save(folder)
    assert LearnedArbiter.load(folder).threshold == 0.75
    assert (folder / "README.md").read_text() == "# A card\n"
    assert (folder / "trained_on.safetensors").exists()


def test_the_problems_of_a_training_that_ends_now_stay(tmp_path) -> None:
    """A training writes them before the arbiter, whose config it writes last."""
    (tmp_path / "trained_on.safetensors").write_text("of this one")
    (tmp_path / "model.safetensors").write_text("of a save that was cut short")
    learned().save(tmp_path)
    assert (tmp_path / "trained_on.safetensors").exists()


def test_a_folder_may_be_a_path_a_string_or_begin_with_the_home_folder(folder, monkeypatch) -> None:
    """Found: AttributeErrors, and a folder named ``~``."""
    monkeypatch.setenv("HOME", str(folder.parent))
    learned(threshold=0.75).save("~/saved")
    saved = folder.parent / "saved"
    assert LearnedArbiter.load(str(saved)).folder == LearnedArbiter.load("~/saved").folder == saved
    assert load_arbiter(folder).threshold == load_arbiter("~/arbiter").threshold == 0.625
    assert load_arbiter("~/arbiter:point=bold").threshold == 0.125
    with pytest.raises(CheckpointError, match="nowhere is no trained arbiter"):
        load_arbiter(Path("nowhere"))


def test_the_name_of_a_folder_may_hold_a_colon(tmp_path, monkeypatch) -> None:
    """Found: what is after it was taken for knobs of a folder that does not exist."""
    learned(threshold=0.75).save(tmp_path / "gsm8k:k=16")
    monkeypatch.chdir(tmp_path)
    for spec in ("gsm8k:k=16", str(tmp_path / "gsm8k:k=16")):
        assert load_arbiter(spec).threshold == 0.75
        assert load_arbiter(with_threshold(spec, 0.25)).threshold == 0.25
    (tmp_path / "gap:max_gap=2").mkdir()
    assert load_arbiter("gap:max_gap=2") == LogProbGap(2)


def test_a_threshold_of_numpys_is_written_as_a_number() -> None:
    """Found: ``np.float64(0.5)`` stood in the spec."""
    assert with_threshold("someone/arbiter", np.float64(0.5)) == "someone/arbiter:threshold=0.5"
