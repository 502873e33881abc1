"""Each rule against its formula, worked by hand on small tensors, and the specs that name them."""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from cospec import Engine, SamplingConfig, load_arbiter
from cospec.arbiters import (
    RULES,
    Agreement,
    AlwaysDraft,
    AlwaysTarget,
    FLy,
    LogProbGap,
    RandomOverride,
)
from cospec.errors import ArbiterError, ConfigError
from cospec.models import ModelPair
from cospec.types import Arbiter, Completion, MismatchBatch, Needs
from tests.arbiters.trained import Together
from tests.conftest import TableModel, disturbed, random_table, some_prompts

LN2 = math.log(2)


def mismatches(num: int, *, k: int = 4, **fields: object) -> MismatchBatch:
    """A batch of `num` mismatches; the draft says 1 and the target 0 unless told otherwise."""
    default = dict(
        rows=torch.arange(num),
        block_positions=torch.zeros(num, dtype=torch.int64),
        positions=torch.arange(num),
        num_overrides=torch.zeros(num, dtype=torch.int64),
        num_mismatches=torch.zeros(num, dtype=torch.int64),
        block_lengths=torch.full((num,), k),
        draft_ids=torch.ones(num, dtype=torch.int64),
        target_ids=torch.zeros(num, dtype=torch.int64),
    )
    return MismatchBatch(**default | fields)


def logits_of(probs: list[list[float]]) -> torch.Tensor:
    """Logits of these distributions, shifted: only their differences may count."""
    return torch.tensor(probs).log() + torch.arange(len(probs))[:, None] - 3.0


def test_always_target_keeps_no_draft_and_always_draft_keeps_all():
    batch = mismatches(3)
    assert AlwaysTarget().rule(batch).keep_draft.tolist() == [False] * 3
    assert AlwaysDraft().rule(batch).keep_draft.tolist() == [True] * 3
    assert AlwaysTarget().needs == AlwaysDraft().needs == Needs.NOTHING


def test_random_override_keeps_the_draft_where_the_uniform_is_below_the_rate():
    uniforms = torch.tensor([0.0, 0.29, 0.3, 0.31, 0.999], dtype=torch.float64)
    by_hand = {
        0.0: [False, False, False, False, False],
        0.3: [True, True, False, False, False],
        1.0: [True, True, True, True, True],
    }
    for rate, expected in by_hand.items():
        ruling = RandomOverride(rate).rule(mismatches(5, uniforms=uniforms))
        assert ruling.keep_draft.tolist() == expected
        assert ruling.score is None
    assert RandomOverride().needs == Needs.UNIFORMS


def test_the_gap_is_that_of_log_probabilities_under_the_target():
    """By hand: log(p0 / p1) is ln 2, ln 8, 0 and -ln 2."""
    logits = logits_of(
        [[0.5, 0.25, 0.25], [0.8, 0.1, 0.1], [0.4, 0.4, 0.2], [0.25, 0.5, 0.25]],
    )
    batch = mismatches(4, target_logits=logits)
    ruling = LogProbGap(1.0).rule(batch)
    assert ruling.score.tolist() == pytest.approx([1 - LN2, 1 - 3 * LN2, 1, 1 + LN2], abs=1e-6)
    assert ruling.keep_draft.tolist() == [True, False, True, True]
    assert LogProbGap(LN2 - 0.01).rule(batch).keep_draft.tolist() == [False, False, True, True]
    assert LogProbGap(3 * LN2 + 0.01).rule(batch).keep_draft.tolist() == [True] * 4
    assert LogProbGap(0.0).rule(batch).keep_draft.tolist()[:3] == [False] * 3, "a tie is no gap"
    assert LogProbGap().needs == Needs.TARGET_LOGITS


def test_the_gap_of_an_impossible_token_is_never_kept():
    batch = mismatches(1, target_logits=torch.tensor([[1.0, float("-inf"), 0.0]]))
    ruling = LogProbGap(1e9).rule(batch)
    assert not ruling.keep_draft.any() and ruling.score.tolist() == [-math.inf]


def fly_batch(probs: list[list[float]], **fields: object) -> MismatchBatch:
    """Mismatches at the first place of a block of 5 behind which all drafted tokens match."""
    num = len(probs)
    default = dict(
        k=5,
        target_logits=logits_of(probs),
        lookahead_matches=torch.ones(num, 4, dtype=torch.bool),
    )
    return mismatches(num, **default | fields)


def test_flys_entropy_is_the_top_three_terms_of_the_full_softmax():
    """By hand, in units of ln 2: 1/2 * 1 + 1/4 * 2 + 1/8 * 3, without the fourth term, and not
    renormalized over the three.
    """
    batch = fly_batch([[0.125, 0.5, 0.125, 0.25], [1.0, 0.0, 0.0, 0.0], [0.5, 0.0, 0.5, 0.0]])
    ruling = FLy(window=2, min_entropy=0.0).rule(batch)
    assert ruling.score.tolist() == pytest.approx([1.375 * LN2, 0, LN2], abs=1e-6)
    ruling = FLy(window=2, min_entropy=0.3).rule(batch)
    assert ruling.score.tolist() == pytest.approx([1.375 * LN2 - 0.3, -0.3, LN2 - 0.3], abs=1e-6)
    assert ruling.keep_draft.tolist() == [True, False, True]
    just_above = FLy(window=2, min_entropy=1.375 * LN2 + 1e-4).rule(batch)
    just_below = FLy(window=2, min_entropy=1.375 * LN2 - 1e-4).rule(batch)
    assert not just_above.keep_draft[0] and just_below.keep_draft[0]
    assert FLy().needs == Needs.TARGET_LOGITS | Needs.LOOKAHEAD


def test_flys_entropy_of_two_tokens_is_their_own():
    ruling = FLy(window=1, min_entropy=0.0).rule(fly_batch([[0.5, 0.5]]))
    assert ruling.score.tolist() == pytest.approx([LN2])


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        (1, [True, True, True, True]),
        (2, [True, True, True, False]),
        (3, [True, True, False, False]),
        (4, [True, False, False, False]),
        (5, [False, False, False, False]),
    ],
)
def test_fly_wants_window_minus_one_matches_behind_the_mismatch(window, expected):
    """Four mismatches, behind which 4, 2, 1 and 0 drafted tokens match before the first that does
    not; the third has matches again after it, which do not help.
    """
    follows = [
        [True, True, True, True],
        [True, True, False, False],
        [True, False, True, True],
        [False, True, True, True],
    ]
    batch = fly_batch([[0.4, 0.3, 0.3]] * 4, lookahead_matches=torch.tensor(follows))
    assert FLy(window=window).rule(batch).keep_draft.tolist() == expected


@pytest.mark.parametrize(("window", "num_early"), [(1, 4), (2, 3), (3, 2), (4, 1), (5, 0), (9, 0)])
def test_fly_never_keeps_a_mismatch_in_the_last_window_of_a_block(window, num_early):
    places = torch.arange(5)
    inside = torch.arange(1, 5) + places[:, None] < 5
    batch = fly_batch(
        [[0.4, 0.3, 0.3]] * 5,
        block_positions=places,
        lookahead_matches=inside | (places[:, None] == 4),
    )
    expected = [place < num_early for place in range(5)]
    assert FLy(window=window).rule(batch).keep_draft.tolist() == expected


def test_agreement_is_the_share_of_matches_among_the_drafted_tokens_ahead():
    """In a block of 5, mismatches at 0, 2 and 4: 3 of 4, 1 of 2 and none of none match."""
    matches = [[True, False, True, True], [True, False, False, False], [False] * 4]
    batch = mismatches(
        3,
        k=5,
        block_positions=torch.tensor([0, 2, 4]),
        lookahead_matches=torch.tensor(matches),
    )
    ruling = Agreement(min_share=0.5).rule(batch)
    assert ruling.score.tolist() == pytest.approx([0.25, 0.0, -0.5])
    assert ruling.keep_draft.tolist() == [True, False, False], "more than the share, not as much"
    assert Agreement(min_share=0.0).rule(batch).keep_draft.tolist() == [True, True, False]
    assert Agreement().needs == Needs.LOOKAHEAD


NUM_NEW, K = 24, 4
GREEDY = SamplingConfig(max_new_tokens=NUM_NEW)
SAMPLED = SamplingConfig(max_new_tokens=NUM_NEW, temperature=1.0, seed=0)


def decode(pair: ModelPair, arbiter: Arbiter, sampling: SamplingConfig) -> list[Completion]:
    engine = Engine(pair, arbiter, num_speculative_tokens=K)
    return engine.generate(some_prompts(4), sampling)


EXACT_AND_LOOSEST = {
    "typical:threshold=1,alpha=1e9": "typical:threshold=0",
    "mars:theta=1": None,
    "top_k:delta=0": "top_k:k=256,delta=1",
    "top_k_ratio:ratio=1": "top_k_ratio:k=256,ratio=0",
    "sglang": "sglang:threshold_single=0",
    "bild:rollback=0": "bild:fallback=0,rollback=1000",
    "cascade_chow:alpha=0": "cascade_chow:alpha=1",
    "chow_average:min_log_q=0": "chow_average:min_log_q=-1000",
    "cascade_diff:alpha=-1": "cascade_diff:alpha=1",
    "cascade_opt:alpha=-2": "cascade_opt:alpha=1000",
    "fsd_js:threshold=0": "fsd_js:threshold=1",
    "fsd_kl:threshold=0": "fsd_kl:threshold=1000",
    "judi:threshold=0": "judi:threshold=1000,confidence=1",
    "mentored:max_kl=0": "mentored:max_kl=1000",
    "cosd:alpha=1,beta=0": "cosd:alpha=0",
    "ensemble:draft_weight=0": "ensemble:draft_weight=1",
}
"""Lossless setting of each rule of the literature, with one that keeps everything."""
LOOSEST = ["random:rate=1", "gap:max_gap=1000", *filter(None, EXACT_AND_LOOSEST.values())]
EXACT = [
    "random:rate=0",
    "gap:max_gap=-0.5",
    "agreement:min_share=1",
    f"fly:window={K}",
    "fly:window=1,min_entropy=5",
    *EXACT_AND_LOOSEST,
]


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_the_exact_setting_of_a_rule_is_lossless(llama_pair, sampling):
    """On a pair with caches, where all of them rule side by side; below each rules alone."""
    more = ["gap:max_gap=0", "gap:max_gap=-1"] if sampling is GREEDY else []
    rules = Together([load_arbiter(spec) for spec in [*EXACT, *more]])
    exact = decode(llama_pair, load_arbiter("lossless"), sampling)
    done = decode(llama_pair, rules, sampling)
    assert rules.kept == set()
    assert [c.token_ids for c in done] == [c.token_ids for c in exact]
    assert [c.origins for c in done] == [c.origins for c in exact]
    assert sum(c.stats.num_mismatches for c in done) > 20


TEMPERATURES = (0.0, 0.5, 1.0, 2.0)


@functools.cache
def table_pair() -> ModelPair:
    """A pair that often agrees. Its logits are above 0: Mars divides one by another."""
    target = TableModel(1e9 * random_table(256, seed=0, sharpness=3.0))
    return ModelPair(target, disturbed(target, 0.3))


@functools.cache
def table_texts(arbiter: str, temperatures: tuple[float, ...]) -> list[Completion]:
    """Texts of an arbiter at each temperature in turns, from many first tokens."""
    num = 32 * len(temperatures)
    engine = Engine(table_pair(), load_arbiter(arbiter), batch_size=num, num_speculative_tokens=K)
    sampling = [dataclasses.replace(SAMPLED, temperature=t) for t in temperatures * 32]
    return engine.generate([[256 // num * i] for i in range(num)], sampling)


@pytest.mark.parametrize("arbiter", EXACT)
def test_the_exact_setting_of_a_rule_is_lossless_at_any_temperature(arbiter):
    """Found: when sampling, the target's token may be less probable than the drafted one, so that
    the gap is negative itself and a threshold below 0 still overrode. The drafted token may also be
    the target's best one.
    """
    exact, done = (table_texts(one, TEMPERATURES) for one in ("lossless", arbiter))
    assert [c.token_ids for c in done] == [c.token_ids for c in exact]
    assert [c.origins for c in done] == [c.origins for c in exact]
    for first in range(len(TEMPERATURES)):
        assert sum(c.stats.num_mismatches for c in done[first :: len(TEMPERATURES)]) > 100


def test_the_loosest_setting_of_a_rule_is_always_draft():
    loose = table_texts("always_draft", (0.0,))
    for arbiter in LOOSEST:
        done = table_texts(arbiter, (0.0,))
        assert [c.token_ids for c in done] == [c.token_ids for c in loose], arbiter
    assert sum(c.stats.num_overrides for c in loose) > 100


GOOD_SPECS = {
    "lossless": AlwaysTarget(),
    "always_draft": AlwaysDraft(),
    "random": RandomOverride(0.5),
    "random:": RandomOverride(0.5),
    "random:rate=0.25": RandomOverride(0.25),
    "random:rate=1e-3": RandomOverride(1e-3),
    "gap": LogProbGap(1.0),
    "gap:max_gap=-2.5": LogProbGap(-2.5),
    "fly": FLy(6, 0.3),
    "fly:window=3": FLy(3, 0.3),
    "fly:min_entropy=0.1,window=2": FLy(2, 0.1),
}


@pytest.mark.parametrize("spec", GOOD_SPECS)
def test_a_spec_names_a_rule_with_its_knobs(spec):
    assert load_arbiter(spec) == GOOD_SPECS[spec]


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("lossles", "unknown arbiter 'lossles'; did you mean 'lossless'"),
        ("Random:rate=0.1", "unknown arbiter 'Random'; did you mean 'random'"),
        ("zzz", "unknown arbiter 'zzz'.*always_draft, bild, .*fly, .*gap, judi, lossless, "),
        ("", "unknown arbiter ''"),
        ("random:rat=0.1", "'rat'; did you mean 'rate'"),
        ("fly:windows=3", "'windows'; did you mean 'window'"),
        ("lossless:rate=1", "'rate'.*no settings"),
        ("random:rate=half", "rate of arbiter random is 'half'; it must be a number"),
        ("random:rate", "rate of arbiter random is ''; it must be a number"),
        ("fly:window=2.5", r"window of arbiter fly is '2\.5'; it must be a number \(int\)"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused_with_the_nearest_that_does(spec, sentence):
    with pytest.raises(ArbiterError, match=sentence):
        load_arbiter(spec)


@pytest.mark.parametrize(
    "spec",
    [
        "random:rate=1.5",
        "random:rate=-0.1",
        "random:rate=nan",
        "fly:window=0",
        "typical:threshold=2",
        "typical:alpha=-0.1",
        "mars:theta=1.1",
        "top_k:k=0",
        "top_k:delta=-0.1",
        "top_k_ratio:ratio=2",
        "sglang:threshold_acc=1.5",
        "bild:fallback=-1",
        "bild:rollback=-1",
        "cascade_chow:alpha=-0.1",
        "chow_average:min_log_q=0.1",
        "cascade_diff:alpha=-1.5",
        "cascade_opt:alpha=inf",
        "fsd_js:threshold=-1",
        "fsd_kl:threshold=-1",
        "judi:threshold=-1",
        "judi:confidence=1.1",
        "mentored:max_kl=-0.1",
        "cosd:beta=-1",
        "ensemble:draft_weight=1.1",
        "gap:max_gap=inf",
        "gap:max_gap=nan",
        "fly:min_entropy=nan",
    ],
)
def test_a_knob_out_of_its_range_is_refused(spec):
    """Found: an infinite gap makes every score infinite, which the engine rules for the target, so
    that the loosest setting was silently the strictest.
    """
    with pytest.raises(ConfigError, match="it must be"):
        load_arbiter(spec)


def test_a_refusal_tells_the_setting_its_value_and_what_is_allowed():
    with pytest.raises(ConfigError, match=r"^theta is 1\.1; it must be in \[0, 1\]\.$"):
        load_arbiter("mars:theta=1.1")
    with pytest.raises(ConfigError, match=r"^k is 0; it must be at least 1\.$"):
        load_arbiter("top_k:k=0")


RULE_EXAMPLES = [
    *(rule() for rule in RULES.values()),
    RandomOverride(0.0),
    RandomOverride(0.125),
    LogProbGap(0.75),
    LogProbGap(-3.0),
    FLy(3, 0.45),
]
LONG_NUMBERS = [RandomOverride(1 / 3), LogProbGap(1.23456789), FLy(10**6)]


@pytest.mark.parametrize("rule", [*RULE_EXAMPLES, *LONG_NUMBERS], ids=lambda rule: rule.name)
def test_the_name_of_a_rule_is_its_spec(rule):
    """Found: names kept six digits, and a window of 1000000 became 1e+06, which is no int."""
    assert load_arbiter(rule.name) == rule


@pytest.mark.parametrize("kind", RULES)
def test_every_rule_is_an_arbiter_with_a_docstring(kind):
    rule = RULES[kind]()
    assert isinstance(rule, Arbiter)
    assert rule.name.partition(":")[0] == kind
    assert type(rule).__doc__ and isinstance(rule.needs, Needs)


@pytest.mark.parametrize("kind", RULES)
def test_the_page_of_rules_lists_each_with_its_defaults(kind):
    page = Path(__file__).parents[2] / "docs" / "arbiters.md"
    (row, *_) = [row for row in page.read_text().splitlines() if row.startswith(f"| `{kind}` |")]
    for knob in filter(None, RULES[kind]().name.partition(":")[2].split(",")):
        assert f"`{knob}`" in row.split("|")[-3]


def test_an_object_without_a_rule_is_no_arbiter():
    assert not isinstance(object(), Arbiter)


def test_rules_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        LogProbGap().max_gap = 2.0


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        (LogProbGap(np.float64(0.5)), "gap:max_gap=0.5"),
        (LogProbGap(np.float32(2)), "gap:max_gap=2"),
        (FLy(np.int64(3), 1), "fly:window=3,min_entropy=1"),
    ],
)
def test_a_knob_of_numpys_is_a_number(rule, name):
    """Found: ``gap:max_gap=np.float64(0.5)``, which `load_arbiter` refuses."""
    assert rule.name == name
    assert load_arbiter(rule.name) == rule


@pytest.mark.parametrize("value", ["0.5", None, [1], pytest.param(10**400, id="large")])
def test_a_knob_that_is_no_number_is_refused(value):
    """Found: a string passed, and ended the first generation; 400 digits were an OverflowError."""
    with pytest.raises(ConfigError, match=r"max_gap is .*; it must be a finite number"):
        LogProbGap(value)
