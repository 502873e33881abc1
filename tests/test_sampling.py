"""The settings of a generation, and the mathematics of speculative sampling, by hand."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from cospec import SamplingConfig
from cospec.errors import ConfigError
from cospec.sampling import Uniforms, Warper, accepts, draw, one_hot, residual, row_generator
from tests.laws.known_law import FALSE_ALARM_RATE, p_value, warpers

CPU = torch.device("cpu")
JUST_BELOW_1 = math.nextafter(1.0, 0.0)
WARPED = [
    SamplingConfig(temperature=t, top_k=k, top_p=p, min_p=m)
    for t, k, p, m in [
        (1.0, 0, 1.0, 0.0),
        (0.7, 0, 1.0, 0.0),
        (2.5, 0, 1.0, 0.0),
        (1.0, 1, 1.0, 0.0),
        (1.0, 7, 1.0, 0.0),
        (1.0, 1000, 1.0, 0.0),
        (1.0, 0, 0.8, 0.0),
        (1.0, 0, 0.01, 0.0),
        (1.0, 0, 0.999, 0.0),
        (1.0, 0, 1.0, 0.05),
        (1.0, 0, 1.0, 1.0),
        (0.6, 20, 0.95, 0.02),
        (1.5, 5, 0.5, 0.3),
    ]
]


def random_logits(*shape: int, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def expected_probs(config: SamplingConfig, logits: torch.Tensor) -> torch.Tensor:
    """Probabilities that transformers samples from, for (N, V) logits."""
    return warpers(config)(None, logits.float().clone()).softmax(dim=-1)


@pytest.mark.parametrize("config", WARPED, ids=repr)
def test_probs_are_those_of_the_warpers_of_transformers(config):
    logits = random_logits(6, 5, 50)
    probs = Warper([config] * 6, CPU).probs(logits)
    expected = expected_probs(config, logits.flatten(0, 1)).view_as(logits)
    torch.testing.assert_close(probs, expected)
    assert torch.equal(probs == 0, expected == 0)


def test_every_row_of_a_mixed_batch_has_its_own_settings():
    configs = [*WARPED, SamplingConfig(), *reversed(WARPED)]
    logits = random_logits(len(configs), 4, 50, seed=1)
    probs = Warper(configs, CPU).probs(logits)
    for row, config, row_logits in zip(probs, configs, logits, strict=True):
        if config.is_greedy:
            expected = one_hot(row_logits.argmax(dim=-1), 50)
        else:
            expected = expected_probs(config, row_logits)
        torch.testing.assert_close(row, expected)
        assert torch.equal(row == 0, expected == 0)
        alone = Warper([config], CPU).probs(row_logits[None])[0]
        assert torch.equal(row, alone), "a row may not depend on what else is in the batch"


@pytest.mark.parametrize(
    ("top_p", "num_left"), [(0.25, 1), (0.5, 2), (0.51, 3), (0.75, 3), (0.76, 4)]
)
def test_top_p_keeps_the_fewest_tokens_that_add_up_to_it(top_p, num_left):
    """Four tokens of 1/4 each, which binary fractions hold exactly."""
    config = SamplingConfig(temperature=1.0, top_p=top_p)
    probs = Warper([config], CPU).probs(torch.zeros(1, 1, 4))[0]
    assert (probs > 0).sum() == num_left
    torch.testing.assert_close(probs, expected_probs(config, torch.zeros(1, 4)))


@pytest.mark.parametrize(("min_p", "num_left"), [(0.5, 3), (0.51, 1), (0.26, 3), (0.25, 5)])
def test_min_p_is_a_share_of_the_most_probable_token(min_p, num_left):
    """By hand: 4, 2, 2, 1 and 1 tenths; a token at the limit stays."""
    logits = torch.tensor([[4.0, 2.0, 2.0, 1.0, 1.0]]).log2() * math.log(2)
    config = SamplingConfig(temperature=1.0, min_p=min_p)
    probs = Warper([config], CPU).probs(logits[None])[0]
    assert (probs > 0).sum() == num_left
    torch.testing.assert_close(probs, expected_probs(config, logits))


def test_greedy_rows_put_all_mass_on_the_first_argmax():
    logits = torch.tensor([[[0.0, 2.0, 2.0, 1.0], [-5.0, float("-inf"), -9.0, -5.5]]])
    probs = Warper([SamplingConfig()], CPU).probs(logits)
    assert probs.tolist() == [[[0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_probs_are_float32_and_sum_to_one_whatever_the_dtype_of_the_logits(dtype):
    logits = random_logits(len(WARPED), 2, 300).to(dtype)
    probs = Warper(WARPED, CPU).probs(logits)
    assert probs.dtype == torch.float32
    torch.testing.assert_close(probs.sum(dim=-1), torch.ones(len(WARPED), 2))
    torch.testing.assert_close(probs, Warper(WARPED, CPU).probs(logits.float()))


def test_a_token_of_logit_minus_infinity_has_probability_zero():
    logits = torch.tensor([[[1.0, float("-inf"), 0.5, float("-inf")]]])
    for config in WARPED:
        probs = Warper([config], CPU).probs(logits)[0, 0]
        assert probs[1] == probs[3] == 0 and probs[0] > 0 and probs.isfinite().all()


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-40, 1e-60])
def test_a_tiny_temperature_tends_to_greedy_and_never_to_nan(temperature):
    """Found: the quotient overflowed float32 (or the temperature was 0 there), and tokens came
    out of a distribution of NaN without a word.
    """
    logits = torch.tensor([[[1.0, 2.0, 0.0, -3.0]]])
    probs = Warper([SamplingConfig(temperature=temperature)], CPU).probs(logits)
    assert probs.tolist() == [[[0.0, 1.0, 0.0, 0.0]]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [0.05, 0.02, 1e-3, 1e-6, 1e-38])
def test_a_small_temperature_keeps_its_law_for_logits_in_half_precision(dtype, temperature):
    """Divided before they are float32, large logits would be infinite, and the rows NaN."""
    logits = (3 * random_logits(2, 3, 200)).to(dtype)
    logits[1] *= 1500
    config = SamplingConfig(temperature=temperature)
    probs = Warper([config] * 2, CPU).probs(logits)
    exact = logits.double()
    exact = ((exact - exact.amax(dim=-1, keepdim=True)) / temperature).softmax(dim=-1)
    torch.testing.assert_close(probs.double(), exact, rtol=1e-4, atol=1e-9)
    cut = SamplingConfig(temperature=temperature, top_k=5, top_p=0.9, min_p=0.05)
    probs = Warper([cut] * 2, CPU).probs(logits)
    torch.testing.assert_close(probs.sum(dim=-1), torch.ones(2, 3))


GAPPY = torch.tensor(
    [
        [0.0, 0.0, 0.5, 0.0, 0.25, 0.25, 0.0, 0.0],
        [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0],
        [0.0, 1e-30, 0.0, 1.0, 0.0, 1e-30, 0.0, 0.0],
        [0.0, 0.1, 0.0, 0.0, 0.2, 0.0, 0.7, 0.0],
    ]
)


@pytest.mark.parametrize("uniform", [0.0, 5e-324, 0.1, 0.3, 0.5, 0.75, 1 - 1e-9, JUST_BELOW_1])
def test_a_token_of_probability_zero_is_never_drawn(uniform):
    ids = draw(GAPPY, torch.full((len(GAPPY),), uniform, dtype=torch.float64))
    assert (GAPPY.gather(1, ids[:, None]) > 0).all()


def test_no_uniform_number_draws_a_token_of_probability_zero():
    generator = torch.Generator().manual_seed(0)
    probs = torch.rand(100, 1, 200, generator=generator)
    probs = probs.masked_fill(torch.rand(probs.shape, generator=generator) < 0.9, 0.0)
    uniforms = torch.rand(100, 300, generator=generator, dtype=torch.float64)
    uniforms[:, 0], uniforms[:, 1] = 0.0, JUST_BELOW_1
    ids = draw(probs.expand(100, 300, 200), uniforms)
    assert (probs.expand(100, 300, 200).gather(-1, ids[..., None]) > 0).all()


def test_draw_inverts_the_cumulative_distribution():
    """By hand: the first token whose cumulative probability exceeds the uniform number."""
    probs = torch.tensor([0.25, 0.0, 0.5, 0.25])
    by_hand = {0.0: 0, 0.2499: 0, 0.25: 2, 0.5: 2, 0.7499: 2, 0.75: 3, JUST_BELOW_1: 3}
    uniforms = torch.tensor(list(by_hand), dtype=torch.float64)
    assert draw(probs.expand(7, 4), uniforms).tolist() == list(by_hand.values())
    assert draw(8 * probs.expand(7, 4), uniforms).tolist() == list(by_hand.values())


def test_draw_follows_its_law():
    probs = random_logits(40, seed=2).softmax(dim=-1)
    uniforms = torch.rand(50_000, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    counts = torch.bincount(draw(probs.expand(50_000, 40), uniforms), minlength=40)
    assert p_value(counts, probs) > FALSE_ALARM_RATE
    assert p_value(counts, probs.flip(0)) < FALSE_ALARM_RATE


def test_residual_is_what_the_target_has_more_than_the_draft():
    p = torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.125, 0.375, 0.25, 0.25]])
    q = torch.tensor([[0.25, 0.5, 0.125, 0.125], [0.25, 0.25, 0.25, 0.25]])
    assert residual(p, q).tolist() == [[0.25, 0.0, 0.125, 0.0], [0.0, 0.125, 0.0, 0.0]]


def test_residual_of_equal_distributions_is_the_target():
    p = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.25, 0.5]])
    q = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.25, 0.25]])
    assert residual(p, q).tolist() == [[0.5, 0.5, 0.0], [0.0, 0.0, 0.25]]


def test_a_drafted_token_is_accepted_with_probability_p_over_q():
    """By hand: p(x) / q(x) is 1/2, 1, 3, 0 and (p > 0 = q) infinity."""
    p = torch.tensor([[[0.25, 0.75], [0.5, 0.5], [0.25, 0.75], [0.0, 1.0], [0.5, 0.5]]])
    q = torch.tensor([[[0.5, 0.5], [0.5, 0.5], [0.75, 0.25], [0.5, 0.5], [0.0, 1.0]]])
    ids = torch.tensor([[0, 1, 1, 0, 0]])
    by_hand = {
        0.0: [True, True, True, False, True],
        0.4999: [True, True, True, False, True],
        0.5: [False, True, True, False, True],
        JUST_BELOW_1: [False, True, True, False, True],
    }
    for uniform, expected in by_hand.items():
        uniforms = torch.full((1, 5), uniform, dtype=torch.float64)
        assert accepts(p, q, ids, uniforms).tolist() == [expected]


def test_accepting_and_resampling_together_give_the_target():
    """sum over x of q(x) [a(x) + (1 - a(x)) r] = p, with a measured on a grid of uniforms."""
    p = random_logits(3, 1, 12, seed=4).softmax(dim=-1)
    q = random_logits(3, 1, 12, seed=5).softmax(dim=-1)
    grid = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    ids = torch.arange(12)
    for p_row, q_row in zip(p, q, strict=True):
        shape = (len(grid), 12, 12)
        is_accepted = accepts(
            p_row.expand(shape),
            q_row.expand(shape),
            ids.expand(shape[:2]),
            grid[:, None].expand(shape[:2]),
        )
        kept = q_row[0] * is_accepted.double().mean(dim=0)
        rest = residual(p_row, q_row)[0]
        emitted = kept + (1 - kept.sum()) * rest / rest.sum()
        torch.testing.assert_close(emitted, p_row[0].double(), rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", -3),
        ("temperature", -0.1),
        ("temperature", math.inf),
        ("temperature", math.nan),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("min_p", math.nan),
        ("stop", ""),
        ("stop", ("x", "")),
        ("exact_prefix_tokens", -1),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=rf"^{name} is .*; it must be") as caught:
        SamplingConfig(**{name: value})
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 3.5),
        ("max_new_tokens", "3"),
        ("temperature", "hot"),
        ("temperature", None),
        ("top_k", 2.5),
        ("top_p", "0.9"),
        ("seed", 1.5),
        ("stop", (7,)),
        ("stop_token_ids", "12"),
        ("stop_token_ids", 12),
        ("stop_token_ids", (1.5,)),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_name(name, value):
    """Found: 3.5 new tokens were taken, a length that no completion ever has, so that decoding
    never ended; "12" became the stop tokens "1" and "2", which no token equals.
    """
    with pytest.raises(ConfigError, match=name):
        SamplingConfig.from_dict({name: value})


def test_the_limits_themselves_are_allowed():
    config = SamplingConfig(
        max_new_tokens=1, temperature=0, top_k=0, top_p=1, min_p=1, exact_prefix_tokens=0, seed=-1
    )
    assert config.is_greedy
    assert not SamplingConfig(temperature=1e-3).is_greedy


def test_an_unknown_setting_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match="'temprature'; did you mean 'temperature'"):
        SamplingConfig.from_dict({"temprature": 1.0})
    with pytest.raises(ConfigError, match=r"(?s)'zzz'.*max_new_tokens.*top_p"):
        SamplingConfig.from_dict({"max_new_tokens": 3, "zzz": 1})


def test_settings_round_trip_through_json():
    config = SamplingConfig(
        max_new_tokens=7,
        temperature=0.3,
        top_k=4,
        top_p=0.9,
        min_p=0.01,
        seed=11,
        stop=("a", "\n\n"),
        stop_token_ids=(3, 4),
        ignore_eos=True,
        exact_prefix_tokens=2,
        override_stop_tokens=True,
    )
    assert all(
        getattr(config, field.name) != field.default for field in dataclasses.fields(config)
    ), "a field was left at its default"
    assert SamplingConfig.from_dict(config.to_dict()) == config
    assert SamplingConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert SamplingConfig.from_dict({}) == SamplingConfig()


def test_one_stop_string_need_not_be_in_a_tuple():
    assert SamplingConfig(stop="end").stop == ("end",)
    assert SamplingConfig(stop=["a", "b"], stop_token_ids=[1]).stop == ("a", "b")


def test_settings_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SamplingConfig().temperature = 1.0


def stream(seed: int | None, index: int, num_numbers: int = 8) -> tuple[float, ...]:
    generator = row_generator(SamplingConfig(seed=seed), index)
    return tuple(torch.rand(num_numbers, generator=generator, dtype=torch.float64).tolist())


def test_a_seed_and_an_index_give_one_stream():
    assert stream(5, 3) == stream(5, 3)
    assert stream(0, 1) != stream(1, 0)
    names = [(seed, index) for seed in (-1, 0, 1, 2, 5, 2**31, 2**63) for index in range(50)]
    assert len({stream(*name) for name in names}) == len(names)


def test_wide_seeds_share_no_stream_with_narrow_ones():
    """Found: seed and index were joined without a fixed width, so that seed 5 with index 1 had the
    stream of seed 2**32 + 5 with index 0.
    """
    assert stream(5, 1) != stream(2**32 + 5, 0)
    assert stream(7, 3) != stream(3 * 2**32 + 7, 0)


def test_streams_of_neighbouring_prompts_are_unrelated():
    numbers = torch.tensor([stream(0, i, 400) for i in range(8)])
    correlations = torch.corrcoef(numbers).fill_diagonal_(0)
    assert correlations.abs().max() < 0.25, "5 sigma"


def test_no_seed_draws_one():
    assert stream(None, 0) != stream(None, 0)


def test_making_a_generator_leaves_the_global_one_alone():
    before = torch.random.get_rng_state()
    row_generator(SamplingConfig(seed=1), 0)
    assert torch.equal(before, torch.random.get_rng_state())


def test_settings_of_numpys_are_plain_numbers():
    """Found: they passed the checks, and an OverflowError or a TypeError came later."""
    config = SamplingConfig(
        max_new_tokens=np.int64(7),
        temperature=np.float64(0.5),
        top_k=np.int32(4),
        top_p=np.float32(0.5),
        seed=np.int64(3),
        stop_token_ids=np.array([3, 4]),
    )
    plain = SamplingConfig(7, 0.5, 4, 0.5, seed=3, stop_token_ids=(3, 4))
    assert json.dumps(config.to_dict()) == json.dumps(plain.to_dict())
    numbers = [torch.rand(1, generator=row_generator(each, 0)) for each in (config, plain)]
    assert torch.equal(*numbers)


def test_numbers_are_drawn_where_the_generator_is_whatever_the_default_device():
    """Found: with ``torch.set_default_device("cuda")`` no text could be sampled."""
    generators = [torch.Generator().manual_seed(3)]
    with torch.device("meta"):
        found = Uniforms.draw(generators, 2, torch.device("cpu"))
    assert found.draft.device.type == "cpu" and found.draft.shape == (1, 2)
