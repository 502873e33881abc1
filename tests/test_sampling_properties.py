"""Sampling, for any settings that are allowed and any logits that a model can give."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cospec import SamplingConfig
from cospec.sampling import Warper, draw, residual

CPU = torch.device("cpu")
NEVER = float("-inf")
LARGEST = 3.4e38  # about that of float32
AMPLE = settings(max_examples=60, deadline=None)

configs = st.builds(
    SamplingConfig,
    temperature=st.floats(0, 1e300) | st.sampled_from([1e-300, 1e-30, 1e39, 10**400]),
    top_k=st.integers(0, 20) | st.just(2**70),
    top_p=st.floats(1e-12, 1),
    min_p=st.floats(0, 1),
)
logits = st.lists(
    st.floats(-50, 50) | st.sampled_from([NEVER, NEVER, 0.0, -0.0, -LARGEST, LARGEST]),
    min_size=2,
    max_size=8,
).filter(lambda row: max(row) > NEVER)
weights = st.lists(st.floats(0, 1, width=32), min_size=5, max_size=5).filter(lambda w: sum(w) > 0.1)


def probabilities(values: list[float]) -> torch.Tensor:
    found = torch.tensor(values, dtype=torch.float64)
    return found / found.sum()


@AMPLE
@given(configs, logits)
def test_any_settings_give_a_distribution_that_keeps_the_most_probable_token(config, row):
    raw = torch.tensor(row)[None, None]  # (1, 1, V)
    p = Warper([config], CPU).probs(raw)[0, 0]
    assert p.isfinite().all() and (p >= 0).all()
    assert float(p.sum()) == pytest.approx(1, abs=1e-5)
    assert (p[raw[0, 0] == NEVER] == 0).all(), "a token that the model forbids stays forbidden"
    below = (raw.max() - raw[0, 0]).double()  # a high temperature makes near tokens equal
    is_best = below <= (0 if config.is_greedy else 1e-6 * min(config.temperature, 1e300))
    assert p[is_best].max() == p.max()
    if config.is_greedy or config.top_k == 1:
        assert p[raw[0, 0] == raw.max()].sum() == pytest.approx(1)
    distances = (raw.max() - raw[0, 0]).tolist()  # in float32, in which near tokens can be tied
    if config.top_k and len(set(distances)) == len(row):  # tied tokens are kept together
        assert int((p > 0).sum()) <= config.top_k


@AMPLE
@given(st.lists(configs, min_size=2, max_size=4), logits)
def test_the_settings_of_one_row_do_not_reach_another(rows, row):
    raw = torch.tensor(row).expand(len(rows), 1, -1)
    together = Warper(rows, CPU).probs(raw)
    for config, p in zip(rows, together, strict=True):
        torch.testing.assert_close(p[None], Warper([config], CPU).probs(raw[:1]))


@AMPLE
@given(weights, st.floats(0, 1, exclude_max=True))
def test_a_token_of_probability_0_is_never_drawn(values, uniform):
    p = probabilities(values)
    token = int(draw(p[None], torch.tensor([uniform], dtype=torch.float64)))
    assert p[token] > 0
    before = float(p[:token].sum())
    assert before - 1e-9 <= uniform <= before + float(p[token]) + 1e-9


@AMPLE
@given(weights, weights)
def test_accepting_and_drawing_from_the_residual_adds_up_to_the_target(target, draft):
    p, q = probabilities(target), probabilities(draft)
    accepted = torch.minimum(p, q)  # q(x) * min(1, p(x) / q(x))
    rest = residual(p, q)
    emitted = accepted + (1 - accepted.sum()) * rest / rest.sum()
    torch.testing.assert_close(emitted, p, atol=1e-9, rtol=1e-9)
