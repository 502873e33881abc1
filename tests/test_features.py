"""The scalar features, against a mismatch worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from cospec.features import FLOOR, KINDS, SCALAR_NAMES, ScalarFeatures, kind_of, spec_hash
from cospec.types import MismatchBatch

P = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.25, 0.25, 0.25, 0.25]])
Q = torch.tensor([[0.125, 0.75, 0.0625, 0.0625], [0.1, 0.2, 0.3, 0.4]])


def batch() -> MismatchBatch:
    """The draft wants 1 and then 3, the target 0; the first of a block of 4 and its last."""
    return MismatchBatch(
        rows=torch.tensor([0, 1]),
        block_positions=torch.tensor([0, 3]),
        positions=torch.tensor([10, 0]),
        num_overrides=torch.tensor([2, 0]),
        block_length=4,
        draft_ids=torch.tensor([1, 3]),
        target_ids=torch.tensor([0, 0]),
        target_logits=P.log(),
        draft_logits=Q.log() + 3.0,
        lookahead_matches=torch.tensor([[True, True, False], [False, False, False]]),
        lookahead_log_p=torch.tensor([[-0.1, -0.2, -100.0], [0.0, 0.0, 0.0]]),
    )


def values(row: int) -> dict[str, float]:
    features = ScalarFeatures(kinds=torch.tensor([0, 1, 2, 3]))(batch())
    assert features.shape == (2, len(SCALAR_NAMES)) and features.dtype == torch.float32
    return dict(zip(SCALAR_NAMES, features[row].tolist(), strict=True))


def test_the_features_of_a_mismatch_are_those_worked_by_hand() -> None:
    expected = {
        "log_p_draft": math.log(0.25),
        "log_p_target": math.log(0.5),
        "log_q_draft": math.log(0.75),
        "log_q_target": math.log(0.125),
        "gap_p": math.log(2),
        "gap_q": math.log(6),
        "log_rank_p_draft": math.log(2),
        "log_rank_q_target": math.log(2),
        "entropy_p": 1.75 * math.log(2),
        "margin_p": math.log(2),
        "margin_q": math.log(6),
        "kl_p_q": 0.5 * math.log(4) + 0.25 * math.log(1 / 3) + 0.25 * math.log(2),
        "overlap": 0.125 + 0.25 + 0.125,
        "lookahead_run": 2,
        "lookahead_share": 2 / 3,
        "lookahead_log_p": -0.3 + FLOOR,
        "lookahead_min_log_p": FLOOR,
        "lookahead_tokens": 3,
        "block_position": 0,
        "log_position": math.log(11),
        "log_num_overrides": math.log(3),
        "draft_punctuation": 1,
        "draft_digit": 0,
        "target_digit": 1,
    }
    found = values(0)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-6), name


def test_nothing_lies_ahead_of_the_last_place_of_a_block() -> None:
    found = values(1)
    ahead = [found[name] for name in SCALAR_NAMES if name.startswith("lookahead")]
    assert ahead == [0, 0, 0, 0, 0]


def test_impossible_tokens_give_finite_features() -> None:
    logits = torch.tensor([[0.0, float("-inf"), -1.0, -2.0]] * 2)
    one = batch()
    cut = MismatchBatch(
        **{f: getattr(one, f) for f in one.__dataclass_fields__}
        | {"target_logits": logits, "draft_logits": logits.flip(1)}
    )
    assert ScalarFeatures(torch.zeros(4, dtype=torch.int64))(cut).isfinite().all()


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("7", "digit"),
        (" 12", "digit"),
        (" +", "punctuation"),
        ("€", "punctuation"),
        ("\n", "space"),
        ("", "space"),
        (" plums", "word"),
        ("ums", "piece"),
        (" 3rd", "word"),
        ("é", "piece"),
    ],
)
def test_tokens_are_told_apart_by_kind(text: str, kind: str) -> None:
    assert kind_of(text) == kind and kind in KINDS


def test_the_spec_is_known_by_a_hash_that_orders_and_names_change() -> None:
    assert spec_hash(SCALAR_NAMES) == spec_hash(tuple(SCALAR_NAMES))
    assert spec_hash(SCALAR_NAMES) != spec_hash(SCALAR_NAMES[::-1])
    assert len(set(SCALAR_NAMES)) == len(SCALAR_NAMES)
