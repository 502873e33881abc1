"""Versions of the features: formulas that checkpoints rely on never change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cospec.arbiters.learned import LearnedArbiter
from cospec.features import HiddenFeatures, ScalarFeatures, saved_features, spec_hash
from cospec.features.spec import FeatureSpec
from cospec.features.table import HIDDEN, SCALARS, Feature
from cospec.types import MismatchBatch, Needs
from tests.arbiters.trained import learned

BUNDLED = Path(__file__).parents[2] / "src" / "cospec" / "bundled" / "arbiters"
PINNED = Path(__file__).parent / "pinned.json"
"""By spec and version, the features of `batch`. A row that is there is never edited: a formula that
changes is a new version, with a row of its own (run this file to add the rows that are missing)."""
M, V, K, H = 3, 7, 4, 2


def ramp(*shape: int, step: float) -> torch.Tensor:
    """Numbers without a pattern that the formulas could hide in."""
    number = torch.arange(int(torch.tensor(shape).prod()), dtype=torch.float64)
    return (3 * torch.sin(1 + step * number)).float().view(shape)


def batch() -> MismatchBatch:
    """Three mismatches, the same for ever."""
    return MismatchBatch(
        rows=torch.tensor([0, 0, 1]),
        block_positions=torch.tensor([0, 2, 1]),
        positions=torch.tensor([0, 2, 40]),
        num_overrides=torch.tensor([0, 1, 5]),
        num_mismatches=torch.tensor([0, 1, 7]),
        block_lengths=torch.tensor([4, 4, 3]),
        draft_ids=torch.tensor([1, 4, 6]),
        target_ids=torch.tensor([3, 0, 5]),
        target_logits=ramp(M, V, step=1.7),
        draft_logits=ramp(M, V, step=2.3),
        lookahead_matches=torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]]).bool(),
        lookahead_log_p=torch.tensor([[-0.5, -1.5, -30.0], [-0.25, 0.0, 0.0], [-2.0, 0.0, 0.0]]),
        target_hidden=ramp(M, H, step=0.3),
        target_hidden_after=ramp(M, H, step=0.7),
        draft_hidden=ramp(M, H, step=1.1),
        block_log_q=torch.tensor([[-0.1, -30.0, 0, -2], [-0.5, -0.5, -1, 0], [-0.2, -0.1, 0, 0]]),
    )


def every_version() -> dict[str, ScalarFeatures]:
    kinds = torch.arange(V) % 5
    found = {f"scalar {v}": ScalarFeatures(kinds, version=v) for v in SCALARS}
    for v in HIDDEN:
        embeddings = None if v == 1 else ramp(V, H, step=0.9)
        found[f"hidden {v}"] = HiddenFeatures(kinds, (H, H), embeddings, version=v)
    return found


def computed(features: ScalarFeatures) -> dict[str, list[float]]:
    columns = features(batch()).T.tolist()
    return dict(zip(features.names, columns, strict=True))


@pytest.mark.parametrize("version", every_version())
def test_a_formula_changes_only_with_a_new_version(version) -> None:
    pinned = json.loads(PINNED.read_text())
    assert version in pinned, "a new version: run this file to pin its values"
    found, expected = computed(every_version()[version]), pinned[version]
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=1e-5, abs=1e-5), name


def test_no_version_was_taken_away() -> None:
    assert set(json.loads(PINNED.read_text())) == set(every_version())


@pytest.mark.parametrize("name", sorted(path.name for path in BUNDLED.iterdir()))
def test_every_shipped_checkpoint_loads_when_features_are_added(name, monkeypatch) -> None:
    """A new version has a feature more, and one whose formula is another under the same name."""
    before = LearnedArbiter.load(BUNDLED / name).features
    extra = Feature("constant", Needs.NOTHING, lambda v: torch.ones(len(v.batch)))
    changed = Feature("gap_p", Needs.TARGET_LOGITS, lambda v: v.chosen[0])
    latest = [changed if one.name == "gap_p" else one for one in SCALARS[max(SCALARS)]]
    monkeypatch.setitem(SCALARS, 100, (*latest, extra))
    monkeypatch.setitem(SCALARS, 101, tuple(latest))
    monkeypatch.setitem(HIDDEN, 100, (100, HIDDEN[max(HIDDEN)][1]))
    monkeypatch.setitem(HIDDEN, 101, (101, HIDDEN[max(HIDDEN)][1]))
    after = LearnedArbiter.load(BUNDLED / name).features
    assert (after.version, after.names, after.scalars) == (
        *(before.version, before.names, before.scalars),
    )
    new = ScalarFeatures(before.kinds, version=100)
    assert new(batch())[:, -1].tolist() == [1.0] * M and new.names[:33] == before.names[:33]


@pytest.mark.parametrize("version", every_version())
def test_a_checkpoint_names_the_version_that_made_it(version) -> None:
    features = every_version()[version]
    saved = json.loads(json.dumps(features.to_dict()))
    again = saved_features(saved, features.kinds)
    assert again is not None and (again.names, again.version) == (features.names, features.version)
    del saved["version"]  # as in checkpoints of older versions
    older = saved_features(saved, features.kinds)
    assert older is not None and older.names == features.names
    assert saved_features(saved | {"hash": spec_hash(("a",))}, features.kinds) is None


@pytest.mark.parametrize("version", every_version())
def test_a_spec_needs_what_its_features_need(version) -> None:
    features = every_version()[version]
    hidden = Needs.HIDDEN if version.startswith("hidden") else Needs.NOTHING
    whole = Needs.BLOCK_LOG_Q if {"block_mean_log_q"} & set(features.names) else Needs.NOTHING
    assert features.needs == Needs.LOGITS | Needs.LOOKAHEAD | hidden | whole
    assert features.is_of_draft.shape == features.is_of_judge.shape == (len(features.names),)


def test_a_trained_arbiter_records_spec_and_version(tmp_path) -> None:
    learned().save(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["features"]
    assert (saved["spec"], saved["version"]) == ("scalar", max(SCALARS))
    assert "scalar" in FeatureSpec.__args__


if __name__ == "__main__":
    rows = json.loads(PINNED.read_text()) if PINNED.exists() else {}
    rows = {name: computed(features) for name, features in every_version().items()} | rows
    PINNED.write_text(json.dumps(rows, indent=1) + "\n")
