"""The learned arbiter: its rulings, its checkpoint folder, and the laws it keeps in the engine."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cospec import Engine, ModelPair, SamplingConfig, load_arbiter
from cospec.arbiters.learned import LearnedArbiter, mismatch_rate, notes_on
from cospec.arbiters.policy import Policy, PolicyConfig
from cospec.config import DecodeConfig
from cospec.errors import ArbiterError, CheckpointError, ConfigError
from cospec.features import KINDS, SCALAR_NAMES, ScalarFeatures, make_features
from cospec.models.cache import CachedModel, Output
from cospec.types import Arbiter, Completion, MismatchBatch, Needs, Origin
from tests.conftest import EOS, VOCAB, family_pair, some_prompts

if TYPE_CHECKING:
    from pathlib import Path

F = len(SCALAR_NAMES)
SAMPLING = SamplingConfig(max_new_tokens=24)
TOKEN_KINDS = torch.arange(VOCAB) % len(KINDS)


def policy(seed: int = 0, **changes: Any) -> Policy:
    """A policy that keeps half of `mismatches`: its head is not zero, as it is before training."""
    network = Policy(F, PolicyConfig(**changes), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head = network.layers[-1]
        head.weight += torch.randn(head.weight.shape, generator=generator)
        network.mean += 0.1 * torch.arange(F)
        network.std += torch.rand(F, generator=generator)
        head.bias -= network(ScalarFeatures(TOKEN_KINDS)(mismatches())).median()
    return network


def learned(network: Policy | None = None, **changes: Any) -> LearnedArbiter:
    return LearnedArbiter(network or policy(), ScalarFeatures(TOKEN_KINDS), **changes)


def mismatches(num: int = 40, k: int = 4, seed: int = 1) -> MismatchBatch:
    """Mismatches of all kinds."""
    generator = torch.Generator().manual_seed(seed)

    def ints(high: int) -> torch.Tensor:
        return torch.randint(0, high, (num,), generator=generator)

    def logits() -> torch.Tensor:
        return 3 * torch.randn(num, VOCAB, generator=generator)

    return MismatchBatch(
        rows=torch.arange(num),
        block_positions=ints(k),
        positions=ints(100),
        num_overrides=ints(9),
        num_mismatches=ints(9),
        block_lengths=torch.full((num,), k),
        draft_ids=ints(VOCAB),
        target_ids=ints(VOCAB),
        target_logits=logits(),
        draft_logits=logits(),
        lookahead_matches=torch.rand(num, k - 1, generator=generator) < 0.5,
        lookahead_log_p=-torch.rand(num, k - 1, generator=generator),
        uniforms=torch.rand(num, generator=generator, dtype=torch.float64),
    )


def decode(pair: ModelPair, arbiter: Arbiter, k: int = 4, **changes: Any) -> list[Completion]:
    engine = Engine(pair, arbiter, num_speculative_tokens=k)
    return engine.generate(some_prompts(5), SamplingConfig(**dict(max_new_tokens=24) | changes))


# --- the policy --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_an_untrained_policy_says_the_same_of_everything(kind: str) -> None:
    network = Policy(F, PolicyConfig(kind=kind, init_logit=-1.5))
    assert network(torch.randn(7, F)).tolist() == [-1.5] * 7


def test_the_seed_decides_the_first_weights_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (Policy(F, PolicyConfig(), seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.layers[0].weight, again.layers[0].weight)
    assert not torch.equal(first.layers[0].weight, other.layers[0].weight)


def test_features_are_normalised_and_outliers_cut_at_ten_spreads() -> None:
    network = Policy(3, PolicyConfig(kind="linear", init_logit=0.0))
    seen = torch.tensor([[1.0, 5.0, 7.0], [3.0, -5.0, 7.0], [2.0, 0.0, 7.0]])
    network.normalise_by(seen)
    assert network.mean.tolist() == [2, 0, 7] and network.std.tolist() == [1, 5, 1]
    with torch.no_grad():
        network.layers[-1].weight.copy_(torch.tensor([[1.0, 10.0, 100.0]]))
    rows = torch.tensor([[3.0, 10.0, 7.0], [1e9, 0.0, 7.0], [2.0, -1e9, 7.5]])
    assert network(rows).tolist() == pytest.approx([21, 10, -50])


def test_a_feature_that_never_changes_can_be_left_out() -> None:
    network = Policy(2, PolicyConfig(kind="linear", init_logit=0.0))
    network.normalise_by(torch.tensor([[1.0, 7.0], [3.0, 7.0]]), constant_spread=math.inf)
    with torch.no_grad():
        network.layers[-1].weight.fill_(1.0)
    low, high = network(torch.tensor([[3.0, -50.0], [3.0, 50.0]])).tolist()
    assert low == high != 0


@pytest.mark.parametrize("num_rows", [0, 1])
def test_normalising_by_next_to_nothing_leaves_the_scale_alone(num_rows: int) -> None:
    network = Policy(3, PolicyConfig(kind="linear"))
    network.normalise_by(torch.full((num_rows, 3), 4.0))
    assert network.mean.tolist() == [4.0 * num_rows] * 3 and network.std.tolist() == [1.0] * 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "tree"}, "kind of policy is 'tree'; it must be mlp or linear"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"hidden_projection": 0}, "hidden_projection is 0"),
        ({"dropout": 1.0}, r"dropout is 1.0; it must be in \[0, 1\)"),
        ({"dropout": math.nan}, "dropout is nan"),
    ],
)
def test_shapes_that_no_policy_has_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PolicyConfig(**values)


def test_hidden_states_go_through_a_projection_of_their_own() -> None:
    network = Policy(7, PolicyConfig(kind="linear", hidden_projection=2), num_hidden=4)
    assert network.layers[-1].weight.shape == (1, 3 + 2)
    with torch.no_grad():
        network.layers[-1].weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 10.0, 100.0]]))
        network.layers[-1].bias.zero_()
        network.projection.weight.copy_(torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, -1]]))
    x = torch.tensor([[1.0, 1, 1, 1, 2, 3, 4]])
    assert network(x).tolist() == [1 + 2 + 3 + 10 * 3 + 100 * -1]
    shapes = [PolicyConfig(hidden_projection=n) for n in (2, 16)]
    first, second = (Policy(7, shape, 5).state_dict() for shape in shapes)
    torch.testing.assert_close(first, second, rtol=0, atol=0)  # no states, no projection


def test_dropout_takes_a_generator_and_is_off_without_one() -> None:
    network = Policy(3, PolicyConfig(kind="linear", init_logit=0.0, dropout=0.25))
    with torch.no_grad():
        network.layers[-1].weight.copy_(torch.tensor([[1.0, 0.0, 0.0]]))
    x = torch.ones(4000, 3)
    assert network(x).tolist() == [1.0] * 4000
    dropped, again = (network(x, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(dropped, again)
    assert dropped.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert float((dropped == 0).float().mean()) == pytest.approx(0.25, abs=0.04)


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_a_correction_begins_as_none_and_takes_up_what_was_left_out(kind) -> None:
    plain, it = (policy(kind=kind, correction=on) for on in (False, True))
    first, last = 4, F - 1  # two that never changed in what was learnt from
    for network in (plain, it):
        network.std[[first, last]] = torch.inf
    x = ScalarFeatures(TOKEN_KINDS)(mismatches())
    x[:, first] = torch.arange(len(x)).float()  # it does now; the last does not
    x[:, last] = 1.0
    with torch.no_grad():
        before = it(x)
        assert torch.equal(before, plain(x))
        it.take_up(x)
        assert torch.equal(it(x), before)
        assert it.mean[first] == x[:, first].mean() and it.std[first] == x[:, first].std()
        assert it.std[last].isinf()
        others = [i for i in range(F) if i not in (first, last)]
        assert torch.equal(it.std[others], plain.std[others])
        it.correction.weight[0, [first, last]] = torch.tensor([2.0, 5.0])
        it.correction.bias.fill_(0.5)
        normal = (x[:, first] - x[:, first].mean()) / x[:, first].std()
        torch.testing.assert_close(it(x), before + 2 * normal + 0.5)


def test_what_a_correction_takes_makes_the_logit_with_it() -> None:
    network = policy(correction=True)
    x = ScalarFeatures(TOKEN_KINDS)(mismatches())
    with torch.no_grad():
        without = network(x)
        network.correction.weight.copy_(torch.linspace(-1, 1, F)[None])
        network.correction.bias.fill_(0.25)
        taken = network.corrigible(x)
        assert taken.shape == (len(x), F + 1) and torch.equal(taken[:, -1], without)
        torch.testing.assert_close(
            network(x), without + taken[:, :-1] @ torch.linspace(-1, 1, F) + 0.25
        )


def test_a_correction_is_of_scalars_and_no_input_of_it_is_dropped() -> None:
    network = Policy(5, PolicyConfig(dropout=0.5, correction=True), num_hidden=2)
    assert network.correction.weight.shape == (1, 3)
    network.std[[1, 4]] = torch.inf
    x = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
    network.take_up(x)
    assert network.std.isinf().tolist() == [False, False, False, False, True]
    with torch.no_grad():
        network.correction.weight.fill_(1.0)
        dropped = network(x, torch.Generator().manual_seed(1))  # its head is still zero
        assert torch.equal(dropped, network(x))
        assert len(dropped.unique()) == 30


# --- rulings -----------------------------------------------------------------------------------


def test_it_keeps_the_drafts_token_where_the_probability_exceeds_the_threshold() -> None:
    it, batch = learned(threshold=0.3), mismatches()
    ruling = it.rule(batch)
    expected = torch.sigmoid(it.policy(it.features(batch))).detach()
    torch.testing.assert_close(ruling.score, expected)
    assert torch.equal(ruling.keep_draft, expected > 0.3)
    assert torch.equal(ruling.features, it.features(batch))
    assert 5 < int(ruling.keep_draft.sum()) < 35
    edge = float(expected[0])
    assert not it.with_threshold(edge).rule(batch).keep_draft[0], "not if it only equals it"
    assert it.needs == Needs.LOGITS | Needs.LOOKAHEAD
    assert not ruling.score.requires_grad


def test_a_bolder_threshold_keeps_no_less() -> None:
    it, batch = learned(), mismatches()
    kept = [it.with_threshold(t).rule(batch).keep_draft for t in (1.0, 0.9, 0.5, 0.1, 0.0)]
    assert not kept[0].any() and kept[-1].all()
    for shy, bold in itertools.pairwise(kept):
        assert not (shy & ~bold).any()
    assert it.with_threshold(0.9).name == "cospec:threshold=0.9"


def test_in_training_it_keeps_where_the_uniform_is_below_the_probability() -> None:
    it, batch = learned(is_stochastic=True, threshold=1.0), mismatches()
    ruling = it.rule(batch)
    assert Needs.UNIFORMS in it.needs
    assert torch.equal(ruling.keep_draft, batch.uniforms < ruling.score)
    assert 0 < int(ruling.keep_draft.sum()) < 40


# --- in the engine -----------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 4, 7])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_threshold_one_is_lossless(family: str, k: int) -> None:
    pair = family_pair(family)
    target = Engine.target_only(pair).generate(some_prompts(5), SAMPLING)
    sure = policy()
    with torch.no_grad():
        sure.layers[-1].bias.fill_(1e4)  # even where the probability is 1 in float32
    corrected = policy(correction=True)
    with torch.no_grad():
        corrected.correction.weight.fill_(3.0)
        corrected.correction.bias.fill_(1e4)
    for network in (policy(), sure, corrected):
        done = decode(pair, learned(network, threshold=1.0), k)
        assert [c.token_ids for c in done] == [c.token_ids for c in target]
        assert sum(c.stats.num_mismatches for c in done) > 0
        assert not any(c.stats.num_overrides for c in done)


def test_threshold_one_draws_what_lossless_sampling_draws() -> None:
    pair = family_pair("llama")
    sampling = dict(temperature=0.8, top_p=0.9, seed=4)
    lossless = decode(pair, load_arbiter("lossless"), **sampling)
    done = decode(pair, learned(threshold=1.0), **sampling)
    assert [c.token_ids for c in done] == [c.token_ids for c in lossless]


@pytest.mark.parametrize(
    "changes", [{}, {"exact_prefix_tokens": 6}, {"override_stop_tokens": True}]
)
def test_threshold_zero_rules_for_the_draft_wherever_the_safety_rules_allow(changes) -> None:
    done = decode(family_pair("llama"), learned(threshold=0.0), **changes)
    prefix, may_stop = changes.get("exact_prefix_tokens", 0), "override_stop_tokens" in changes
    vetoes = set()
    for m in (m for c in done for s in c.trace for m in s.mismatches if m.is_reached):
        is_stop = EOS in (m.draft_id, m.target_id) and not may_stop
        assert m.keep_draft == (m.position >= prefix and not is_stop)
        vetoes.add(m.veto)
    assert {None, *(["exact_prefix"] if prefix else [])} <= vetoes
    draft = decode(family_pair("llama"), load_arbiter("always_draft"), **changes)
    assert [c.token_ids for c in done] == [c.token_ids for c in draft]


@pytest.mark.parametrize("is_stochastic", [False, True])
def test_a_policy_that_answers_nan_rules_for_the_target_and_is_counted(is_stochastic) -> None:
    network = policy()
    with torch.no_grad():
        network.layers[-1].bias.fill_(math.nan)
    it = learned(network, threshold=-1.0, is_stochastic=is_stochastic)
    done = decode(family_pair("llama"), it, seed=0)
    target = Engine.target_only(family_pair("llama")).generate(some_prompts(5), SAMPLING)
    assert [c.token_ids for c in done] == [c.token_ids for c in target]
    for c in done:
        assert c.stats.num_non_finite_scores == c.stats.num_mismatches
        assert c.origins.count(Origin.OVERRIDE) == 0


def test_a_policy_that_answers_infinity_rules_for_the_target_too() -> None:
    network = policy()
    with torch.no_grad():
        network.layers[-1].bias.fill_(math.inf)
    done = decode(family_pair("llama"), learned(network))
    for c in done:
        assert c.stats.num_non_finite_scores == c.stats.num_mismatches
        assert c.stats.num_overrides == 0


def test_what_a_draft_of_nan_logits_proposed_gets_a_score_of_nan() -> None:
    """Its features are NaN then; the engine rules for the target where the score is."""
    batch = mismatches(6)
    spoilt = batch.draft_logits.clone()
    spoilt[2] = math.nan
    broken = MismatchBatch(
        **{name: getattr(batch, name) for name in batch.__dataclass_fields__}
        | {"draft_logits": spoilt}
    )
    score = learned().rule(broken).score
    assert score.isnan().tolist() == [False, False, True, False, False, False]


STATES = ("target_hidden", "target_hidden_after", "draft_hidden")


def with_states(batch: MismatchBatch, **changes: torch.Tensor) -> MismatchBatch:
    """Mismatches with states of the width that the tiny pairs have."""
    generator = torch.Generator().manual_seed(2)
    states = {name: torch.randn(len(batch), 32, generator=generator) for name in STATES}
    return replace(batch, **states | changes)


def hidden(pair: ModelPair, version: int = 2) -> LearnedArbiter:
    """An arbiter that rules by hidden states, of a pair; it keeps half of what `mismatches` has."""
    features = make_features("hidden", pair)
    if version == 1:
        features = replace(features, embeddings=None)
    shape = PolicyConfig(hidden_projection=5)
    network = Policy(len(features.names), shape, num_hidden=features.num_hidden)
    with torch.no_grad():
        network.layers[-1].weight.fill_(1.0)
        network.layers[-1].bias -= network(features(with_states(mismatches()))).median()
    about = {"pair": {"pair": "bundled:tiny", "fingerprint": pair.fingerprint}}
    return LearnedArbiter(network, features, about=about)


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_state_that_is_not_finite_gets_a_score_of_nan(name, value) -> None:
    it, batch = hidden(family_pair("llama")), with_states(mismatches(6))
    spoilt = getattr(batch, name).clone()
    spoilt[2, 7] = value
    score = it.rule(replace(batch, **{name: spoilt})).score
    assert score.isnan().tolist() == [False, False, True, False, False, False]


def test_states_that_are_not_finite_rule_for_the_target_and_are_counted(monkeypatch) -> None:
    pair = family_pair("llama")
    read = CachedModel.read

    def spoilt(model: CachedModel, *args: Any) -> Output:
        output = read(model, *args)
        if output.hidden is not None:
            output.hidden[:, :, 3] = math.inf  # of the arbiter's copy: the logits are there already
        return output

    target = Engine.target_only(pair).generate(some_prompts(5), SAMPLING)
    assert any(c.stats.num_overrides for c in decode(pair, hidden(pair).with_threshold(0.0)))
    monkeypatch.setattr(CachedModel, "read", spoilt)
    done = decode(pair, hidden(pair).with_threshold(0.0))
    assert [c.token_ids for c in done] == [c.token_ids for c in target]
    for c in done:
        assert c.stats.num_non_finite_scores == c.stats.num_mismatches


# --- the folder --------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint with two operating points, on no pair in particular."""
    points = {"operating_points": {"bold": {"threshold": 0.125, "why": "fast"}}}
    learned(threshold=0.625, about=points).save(tmp_path / "arbiter", "# A card\n")
    return tmp_path / "arbiter"


def change_config(folder: Path, **changes: Any) -> None:
    """Set keys of config.json; None takes one out."""
    config = json.loads((folder / "config.json").read_text()) | changes
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


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
    assert not again.policy.training and not again.is_stochastic
    files = sorted(path.name for path in (tmp_path / "deep" / "folder").iterdir())
    assert files == ["config.json", "model.safetensors"], "no parts are left behind"


def test_the_config_tells_what_the_arbiter_is(folder) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["features"]["names"] == list(SCALAR_NAMES)
    assert config["policy"] == PolicyConfig().to_dict()
    assert config["operating_points"]["default"] == {"threshold": 0.625}
    assert config["operating_points"]["bold"]["why"] == "fast"
    assert (folder / "README.md").read_text() == "# A card\n"


def test_a_save_that_is_cut_short_leaves_no_config(tmp_path, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("cospec.arbiters.learned.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        learned().save(tmp_path)
    with pytest.raises(CheckpointError, match="is no trained arbiter"):
        LearnedArbiter.load(tmp_path)


def test_an_arbiter_saved_again_keeps_what_is_known_of_it(folder, tmp_path) -> None:
    change_config(folder, training={"seed": 3}, max_mismatch_rate=0.25)
    LearnedArbiter.load(folder).save(tmp_path / "copy")
    configs = [json.loads((f / "config.json").read_text()) for f in (folder, tmp_path / "copy")]
    assert configs[0] == configs[1]


def test_nothing_is_kept_where_a_text_has_more_mismatches_than_in_training() -> None:
    """The first mismatch at token 0 has rate 1 / 5, the third at token 20 has 3 / 25."""
    assert mismatch_rate(torch.tensor([0, 2]), torch.tensor([0, 20])).tolist() == pytest.approx(
        [0.2, 0.12]
    )
    batch = mismatches()
    rate = mismatch_rate(batch.num_mismatches, batch.positions)
    is_dense = rate > 0.1
    assert 5 < is_dense.sum() < 35
    free, guarded = (learned(max_mismatch_rate=r).rule(batch) for r in (math.inf, 0.1))
    assert (free.keep_draft & is_dense).any()
    assert torch.equal(guarded.keep_draft, free.keep_draft & ~is_dense)
    assert torch.equal(guarded.score, torch.where(is_dense, 0.0, free.score))
    coins = learned(max_mismatch_rate=0.1, is_stochastic=True).rule(batch)
    assert not (coins.keep_draft & is_dense).any()


def test_the_guard_is_saved_and_can_be_switched_off(folder, tmp_path) -> None:
    assert LearnedArbiter.load(folder).max_mismatch_rate == math.inf
    learned(max_mismatch_rate=0.125).save(tmp_path / "guarded")
    spec = str(tmp_path / "guarded")
    assert load_arbiter(spec).max_mismatch_rate == 0.125
    assert load_arbiter(spec).name == "guarded:threshold=0.5"
    off = load_arbiter(f"{spec}:max_mismatch_rate=inf")
    assert off.max_mismatch_rate == math.inf
    assert off.name == "guarded:threshold=0.5,max_mismatch_rate=inf"


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


@pytest.mark.parametrize("text", ["[]", "3", '"arbiter"', "{}", '{"cospec_arbiter": 2}'])
def test_a_folder_of_something_else_is_refused(folder, text) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"not of a trained arbiter.*cospec_arbiter is not 1"):
        LearnedArbiter.load(folder)


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
        change_config(folder, policy=PolicyConfig(hidden_size=7).to_dict())
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
        change_config(folder, policy=PolicyConfig().to_dict() | {"width": 3})
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


# --- on a pair ---------------------------------------------------------------------------------


def test_a_pair_that_it_was_not_trained_on_is_noted_and_its_tokens_are_looked_up(
    folder, llama_pair, tokenizer
) -> None:
    pair = ModelPair(llama_pair.target, llama_pair.draft, tokenizer)
    for trained_on in (None, {"fingerprint": "0" * 16}, {"target": "a", "draft": "b"}):
        change_config(folder, pair=trained_on)
        it = LearnedArbiter.load(folder, pair)
        assert it.notes == ("the arbiter arbiter was not trained on this pair",)
        expected = ScalarFeatures.for_tokenizer(tokenizer, VOCAB).kinds
        assert torch.equal(it.features.kinds, expected)
    saved = load_file(folder / "model.safetensors")["kinds"].long()
    assert not torch.equal(saved, expected)
    change_config(folder, pair={"fingerprint": pair.fingerprint})
    it = LearnedArbiter.load(folder, pair)
    assert it.notes == () and torch.equal(it.features.kinds, saved)
    assert LearnedArbiter.load(folder).notes == (), "no pair, nothing to note"


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
    change_config(folder, pair=None)
    assert len(notes_on(LearnedArbiter.load(folder, llama_pair), at_16)) == 2, "and another pair"
    assert notes_on(load_arbiter("gap:max_gap=1"), at_16) == ()


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


@pytest.mark.parametrize(("k", "batch_size"), [(1, 1), (4, 3), (9, 8)])
def test_an_arbiter_with_hidden_states_that_keeps_nothing_is_lossless(k, batch_size) -> None:
    """Catching the states changes nothing of what the models say."""
    pair = family_pair("llama")
    prompts, sampling = some_prompts(5), SamplingConfig(max_new_tokens=24)
    it = hidden(pair).with_threshold(1.0)
    engine = Engine(pair, it, num_speculative_tokens=k, batch_size=batch_size)
    done = engine.generate(prompts, sampling)
    alone = Engine.target_only(pair).generate(prompts, sampling)
    assert [one.token_ids for one in done] == [one.token_ids for one in alone]
    assert sum(one.stats.num_mismatches for one in done) > 0


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


# --- by spec -----------------------------------------------------------------------------------


def test_a_spec_names_the_folder_and_how_boldly_it_is_used(folder) -> None:
    for knobs, threshold in [("", 0.625), (":threshold=0.7", 0.7), (":point=bold", 0.125),
                             (":point=default", 0.625), (":threshold=1", 1.0)]:  # fmt: skip
        it = load_arbiter(f"{folder}{knobs}")
        assert isinstance(it, LearnedArbiter) and it.threshold == threshold
        assert it.name == f"arbiter:threshold={threshold:g}"
    assert load_arbiter(f"{folder}:point=bold,threshold=0.3").threshold == 0.3


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
