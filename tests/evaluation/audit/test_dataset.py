"""The data set of an audit: what it tells of its decoding."""

from __future__ import annotations

import json

import pytest

from cospec.arbiters.learned import decoding_of
from cospec.config import DECIDING, SamplingConfig
from cospec.evaluation.audit.config import AuditConfig
from cospec.evaluation.audit.dataset import (
    describe_decoding,
    notes_on_decoding,
    write_dataset,
)

CONFIG = AuditConfig(num_speculative_tokens=3)


def test_a_data_set_tells_of_the_settings_that_an_operating_point_holds_for() -> None:
    """Found: there were two lists, and only one of them had cascade."""
    told = describe_decoding(CONFIG)
    assert set(told) == {*DECIDING, "temperature"}
    changed = AuditConfig(
        num_speculative_tokens=3,
        max_corrections=2,
        end_blocks_at_stop=True,
        draft_confidence_threshold=0.5,
        drafter="ngram+model",
        cascade=True,
    )
    point = decoding_of(changed, SamplingConfig())
    assert set(point) - {"max_new_tokens"} <= set(told)
    for name, value in decoding_of(changed).items():
        assert json.loads(describe_decoding(changed)[name]) == value


@pytest.mark.parametrize("is_older", [False, True])
def test_another_cascade_is_noted_unless_the_file_is_older(tmp_path, is_older) -> None:
    path, about = tmp_path / "audit.safetensors", describe_decoding(CONFIG)
    if is_older:
        del about["cascade"]
    write_dataset(path, [], ["some"], about)
    assert notes_on_decoding(path, CONFIG) == ()
    notes = notes_on_decoding(path, CONFIG.with_options(cascade=True))
    assert len(notes) == (not is_older)
    assert all("decoded with cascade false (here true): its" in note for note in notes)
