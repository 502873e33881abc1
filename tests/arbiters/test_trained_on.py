"""A trained arbiter on its own pair and on others, and by spec."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from cospec import ModelPair, load_arbiter
from cospec.arbiters.learned import LearnedArbiter, decoding_of, notes_on
from cospec.config import DecodeConfig, SamplingConfig
from cospec.errors import ArbiterError, CheckpointError
from cospec.features import SCALAR_NAMES, token_kinds
from tests.arbiters.trained import (
    change_config,
    decode,
    hidden,
    learned,
    mismatches,
    with_states,
)
from tests.conftest import VOCAB, family_pair


def test_a_pair_that_it_was_not_trained_on_is_noted_and_its_tokens_are_looked_up(
    folder, llama_pair, tokenizer
) -> None:
    pair = ModelPair(llama_pair.target, llama_pair.draft, tokenizer)
    for trained_on in (None, {"fingerprint": "0" * 16}, {"target": "a", "draft": "b"}):
        change_config(folder, pair=trained_on)
        it = LearnedArbiter.load(folder, pair)
        assert it.notes == ("the arbiter arbiter was not trained on this pair",)
        expected = token_kinds(tokenizer, VOCAB)
        assert torch.equal(it.features.kinds, expected)
    saved = load_file(folder / "model.safetensors")["kinds"].long()
    assert not torch.equal(saved, expected)
    change_config(folder, pair={"fingerprint": pair.fingerprint})
    it = LearnedArbiter.load(folder, pair)
    assert it.notes == () and torch.equal(it.features.kinds, saved)
    assert LearnedArbiter.load(folder).notes == (), "no pair, nothing to note"


def test_another_kind_of_the_drafts_weights_is_noted_and_its_states_are_refused(
    folder, llama_pair, tmp_path
) -> None:
    int8 = replace(llama_pair, draft_quantization="int8")
    assert int8.fingerprint == f"{llama_pair.fingerprint}-int8"
    change_config(folder, pair={"fingerprint": llama_pair.fingerprint})
    it = LearnedArbiter.load(folder, int8)
    (note,) = it.notes
    assert "trained with draft_quantization none, and here it is int8" in note
    assert torch.equal(it.features.kinds, LearnedArbiter.load(folder, llama_pair).features.kinds)
    change_config(folder, pair={"fingerprint": int8.fingerprint})
    assert LearnedArbiter.load(folder, int8).notes == ()
    assert "int8, and here it is none" in LearnedArbiter.load(folder, llama_pair).notes[0]
    hidden(llama_pair).save(tmp_path)
    change_config(tmp_path, pair={"fingerprint": llama_pair.fingerprint})
    assert LearnedArbiter.load(tmp_path, llama_pair).notes == ()
    with pytest.raises(ArbiterError, match="same dtype and quantization"):
        LearnedArbiter.load(tmp_path, int8)


def test_another_block_length_than_in_training_is_noted(folder, llama_pair) -> None:
    change_config(
        folder,
        pair={"fingerprint": llama_pair.fingerprint},
        training={"train": {"num_speculative_tokens": 6}},
    )
    it = LearnedArbiter.load(folder, llama_pair)
    at_6 = DecodeConfig(num_speculative_tokens=6)
    at_16 = DecodeConfig(num_speculative_tokens=16)
    assert notes_on(it, at_6) == ()
    (note,) = notes_on(it, at_16)
    assert "trained at 6 drafted tokens" in note and "rules at 16" in note
    (note,) = notes_on(it, at_6.with_options(draft_confidence_threshold=0.5))
    assert "trained on whole blocks" in note
    (note,) = notes_on(it, at_6.with_options(adaptive=True))
    assert "trained on whole blocks" in note
    change_config(folder, pair=None)
    assert len(notes_on(LearnedArbiter.load(folder, llama_pair), at_16)) == 2, "and another pair"
    assert notes_on(load_arbiter("gap:max_gap=1"), at_16) == ()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"max_corrections": 1}, "trained with max_corrections 1 and rules with None"),
        ({"draft_confidence_threshold": 0.4}, "or on blocks that end elsewhere"),
    ],
)
def test_an_arbiter_that_rules_with_other_blocks_than_in_training_is_noted(
    folder, llama_pair, options, told
) -> None:
    """Found: whole blocks were not noted where training had ended them by confidence."""
    trained = {"num_speculative_tokens": 6, **options}
    change_config(folder, pair={"fingerprint": llama_pair.fingerprint}, training={"train": trained})
    it = LearnedArbiter.load(folder, llama_pair)
    assert notes_on(it, DecodeConfig(**trained)) == ()
    (note,) = notes_on(it, DecodeConfig(num_speculative_tokens=6))
    assert told in note


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompt_lookup_max", 8),
        ("prompt_lookup_min", 1),
        ("override_stop_tokens", True),
        ("exact_prefix_tokens", 5),
    ],
)
def test_a_point_is_noted_where_blocks_end_elsewhere_or_other_rulings_count(name, value) -> None:
    """Found: these and adaptive_cost were not compared."""
    config, sampling = DecodeConfig(num_speculative_tokens=4), SamplingConfig()
    it = learned(chosen_for=decoding_of(config, sampling))
    older = learned(chosen_for={"num_speculative_tokens": 4, "temperature": 0.0} | {
        "max_new_tokens": sampling.max_new_tokens
    })  # fmt: skip
    assert notes_on(it, config, sampling) == notes_on(older, config, sampling) == ()
    is_decoding = hasattr(config, name)
    if is_decoding:
        config = config.with_options(**{name: value})
    else:
        sampling = replace(sampling, **{name: value})
    (note,) = notes_on(it, config, sampling)
    assert f"was chosen for another {name}: " in note
    assert bool(notes_on(older, config, sampling)) != is_decoding, "an older point does not tell"


def test_a_point_is_noted_where_another_cost_ends_the_blocks() -> None:
    ours, theirs = (DecodeConfig(4, adaptive=True, adaptive_cost=cost) for cost in (0.2, 0.3))
    it = learned(chosen_for=decoding_of(ours, SamplingConfig()))
    assert len(notes_on(it, theirs, SamplingConfig())) == 1 + len(
        notes_on(it, ours, SamplingConfig())
    )


def test_the_block_length_is_that_of_training_unless_another_is_asked_for(folder) -> None:
    rule, untold = load_arbiter("gap:max_gap=1"), LearnedArbiter.load(folder)
    free = DecodeConfig()
    assert free.for_arbiters([]).k == free.for_arbiters([rule, untold]).k == 4
    change_config(folder, training={"train": {"num_speculative_tokens": 6}})
    at_6 = LearnedArbiter.load(folder)
    change_config(folder, training={"train": {"num_speculative_tokens": 16}})
    at_16 = LearnedArbiter.load(folder)
    assert free.for_arbiters([rule, at_6, at_6]).k == 6
    assert DecodeConfig(9).for_arbiters([at_6, at_16]).k == 9
    with pytest.raises(ArbiterError, match=r"trained at 6 and 16 drafted tokens a block; .* -k"):
        free.for_arbiters([at_6, at_16])


def test_the_fingerprint_tells_pairs_apart() -> None:
    llama, qwen = family_pair("llama"), family_pair("qwen2")
    assert len({llama.fingerprint, qwen.fingerprint}) == 2
    swapped = ModelPair(llama.draft, llama.target)
    assert swapped.fingerprint != llama.fingerprint
    assert ModelPair(llama.target, llama.draft).fingerprint == llama.fingerprint


def test_an_arbiter_with_hidden_states_is_bound_to_its_pair(tmp_path) -> None:
    pair, batch = family_pair("llama"), with_states(mismatches())
    it = hidden(pair)
    it.save(tmp_path)
    again = LearnedArbiter.load(tmp_path, pair)
    ours, theirs = it.rule(batch), again.rule(batch)
    assert torch.equal(ours.score, theirs.score) and 5 < int(ours.keep_draft.sum()) < 35
    assert again.needs == it.needs and again.notes == ()
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["features"]["spec"] == "hidden"
    assert config["features"]["hidden_sizes"] == [32, 32]
    assert config["features"]["embedding_size"] == 32
    assert config["features"]["names"] == list(SCALAR_NAMES), "those of states follow"
    with pytest.raises(ArbiterError, match=r"hidden states of the pair.*bundled:tiny.*same dtype"):
        LearnedArbiter.load(tmp_path, family_pair("qwen2"))
    change_config(tmp_path, pair=None)
    with pytest.raises(ArbiterError, match="not recorded"):
        LearnedArbiter.load(tmp_path, pair)


def test_an_arbiter_whose_features_are_of_version_1_is_read(tmp_path) -> None:
    """It was saved before embeddings were among the hidden features."""
    pair, batch = family_pair("llama"), with_states(mismatches())
    it = hidden(pair, version=1)
    it.save(tmp_path)
    assert "embedding_size" not in (tmp_path / "config.json").read_text()
    again = LearnedArbiter.load(tmp_path, pair)
    assert torch.equal(it.rule(batch).score, again.rule(batch).score)


def test_an_arbiter_with_hidden_states_does_not_rule_on_a_pair_that_nobody_checked(
    tmp_path,
) -> None:
    """Found: loaded without a pair it ruled on any pair whose states are as wide."""
    pair, it = family_pair("llama"), hidden(family_pair("llama"))
    it.save(tmp_path)
    unbound = load_arbiter(str(tmp_path))
    assert unbound.needs == it.needs and unbound.name == load_arbiter(str(tmp_path), pair).name
    with pytest.raises(ArbiterError, match=r"hidden states of the pair.*pass it: load_arb"):
        decode(pair, unbound)
    assert decode(pair, load_arbiter(str(tmp_path), pair))


def test_a_spec_names_the_folder_and_how_boldly_it_is_used(folder) -> None:
    for knobs, threshold in [("", 0.625), (":threshold=0.7", 0.7), (":point=bold", 0.125),
                             (":point=default", 0.625), (":threshold=1", 1.0)]:  # fmt: skip
        it = load_arbiter(f"{folder}{knobs}")
        assert isinstance(it, LearnedArbiter) and it.threshold == threshold
        assert it.name == f"arbiter:threshold={threshold:g}"
    assert load_arbiter(f"{folder}:point=bold,threshold=0.3").threshold == 0.3
    with pytest.raises(ArbiterError, match="operating point"):  # found: never looked up
        load_arbiter(f"{folder}:point=bald,threshold=0.3")


def test_a_folder_beside_us_needs_no_slash(folder, monkeypatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert load_arbiter("arbiter:threshold=0.2").threshold == 0.2


def test_its_name_is_that_of_its_config(folder) -> None:
    change_config(folder, name="sum-small")
    assert load_arbiter(str(folder)).name == "sum-small:threshold=0.625"


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ("treshold=0.7", "'treshold'; did you mean 'threshold'"),
        ("window=3", "unknown setting of a trained arbiter: 'window'"),
        ("max_mismatch_rate=low", "max_mismatch_rate of .* is 'low'; it must be a number"),
        ("threshold=bold", "threshold of .* is 'bold'; it must be a number"),
        ("threshold", "threshold of .* is ''; it must be a number"),
        ("point=bolt", "unknown operating point of .* 'bolt'; did you mean 'bold'"),
        ("point=", "unknown operating point of .* ''"),
    ],
)
def test_knobs_that_it_does_not_have_are_refused(folder, knobs, message) -> None:
    with pytest.raises(ArbiterError, match=message):
        load_arbiter(f"{folder}:{knobs}")


def test_a_folder_that_holds_no_arbiter_is_refused(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="is no trained arbiter"):
        load_arbiter(str(tmp_path))


def test_what_is_no_folder_is_asked_of_the_hub(folder, monkeypatch) -> None:
    asked = []

    def download(repo_id: str, **_: object) -> str:
        asked.append(repo_id)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert load_arbiter("someone/arbiter:point=bold").threshold == 0.125
    assert asked == ["someone/arbiter"]


@pytest.mark.parametrize("source", ["/no/such/folder", "./neither", "someone/unreachable"])
def test_what_neither_disk_nor_hub_has_is_refused(source, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=f"{source} is neither a folder nor a repository"):
        load_arbiter(source)


def test_a_name_that_is_neither_rule_nor_folder_is_refused() -> None:
    with pytest.raises(ArbiterError, match="unknown arbiter 'losles'; did you mean 'lossless'"):
        load_arbiter("losles")
