"""vLLM's first runner decodes as our engine does: same tokens, same rulings, same law.

vLLM takes the first token of a text from the prompt's own forward, and its first block begins one
token later than ours. Our engine is therefore started behind that token: from the prompt on, blocks
lie elsewhere, an arbiter that looks ahead sees other places, and a few texts differ rightly.
"""

from __future__ import annotations

import importlib.util
import itertools
from collections import Counter

import pytest
import torch
from scipy.stats import chi2, chi2_contingency

import cospec
from cospec.arbiters import load_arbiter
from cospec.types import Stats
from tests.vllm_plugin.conftest import (
    ARBITERS,
    HIDDEN,
    LEARNED,
    MAX_TOKENS,
    NUM_OPTED_OUT,
    K,
    Later,
    run,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

NUM_SAMPLES, NUM_OURS, NUM_TOKENS = 600, 300, 3
NEVER_KEEPS = f"{LEARNED},threshold=1"
HIDDEN_KEEPS_NOTHING = f"{HIDDEN},threshold=1"
DIVERGENCE = "fsd_js:threshold=0.1"
"""A rule that needs the draft's logits and does not ask what the draft's token stands against,
which is a sample in our engine and the most probable other token in vLLM."""
LAWS = {
    "plain": dict(temperature=1.0, drafts_are_sampled=False),
    "warm, top-k": dict(temperature=1.4, top_k=5, drafts_are_sampled=False),
    "warm, top-p": dict(temperature=1.4, top_p=0.9, drafts_are_sampled=True),
}
OVERRIDDEN = dict(temperature=1.0, drafts_are_sampled=True, arbiter=DIVERGENCE)
FALSE_ALARM = 1e-4
"""Odds of each test of a law to fail although all is well."""


@pytest.fixture(scope="module")
def stock(job, tmp_path_factory):
    return run("off", job, tmp_path_factory.mktemp("off"))


@pytest.fixture(scope="module")
def judged(job, tmp_path_factory):
    return run("on", job, tmp_path_factory.mktemp("on"))


@pytest.fixture(scope="module")
def sampled(job, tmp_path_factory):
    """Samples by arbiter and law."""
    some = dict(max_tokens=NUM_TOKENS, ignore_eos=True)
    laws = {
        "lossless": LAWS,
        NEVER_KEEPS: LAWS | {"overridden": OVERRIDDEN},
        HIDDEN_KEEPS_NOTHING: {"warm, top-p": LAWS["warm, top-p"]},
    }
    return {
        arbiter: run(
            "laws",
            job
            | dict(
                law_arbiter=arbiter,
                law_prompt=law_prompt(job),
                laws={name: law | some for name, law in these.items()},
                num_samples=NUM_SAMPLES,
            ),
            tmp_path_factory.mktemp("laws"),
        )
        for arbiter, these in laws.items()
    }


def law_prompt(job):
    """In the middle of a question: what follows is open."""
    return job["prompts"][0][:20]


@pytest.mark.parametrize("spec", ARBITERS, ids=["learned", "gap", "lossless", "guarded"])
def test_tokens_and_rulings_are_those_of_our_engine(spec, pair, job, judged):
    assert_like_ours(spec, pair, job, judged)
    if spec != ARBITERS[0]:
        assert judged[spec]["texts"] != judged[ARBITERS[0]]["texts"], "the guard turns some down"


def test_hidden_states_are_those_of_our_engine(pair, job, stock, tmp_path):
    judged = run("on", job | dict(arbiters=[HIDDEN, HIDDEN_KEEPS_NOTHING]), tmp_path)
    assert_like_ours(HIDDEN, pair, job, judged)
    assert judged[HIDDEN_KEEPS_NOTHING]["texts"] == stock["texts"]


@pytest.mark.parametrize(
    "settings",
    [
        {"end_blocks_at_stop": True},
        {"end_blocks_at_stop": True, "max_corrections": 1},
        {"draft_confidence_threshold": 0.3},
    ],
    ids=["at stops", "after a correction", "by confidence"],
)
def test_blocks_end_where_those_of_our_engine_do(settings, pair, job, tmp_path):
    arbiters = ["chow_average:min_log_q=-0.1", "agreement:min_share=0.7", "lossless"]
    job = job | dict(k=40, settings=settings, arbiters=arbiters, prompts=job["prompts"][:30])
    judged = run("on", job, tmp_path)
    for spec in arbiters:
        assert_like_ours(spec, pair, job, judged, num_speculative_tokens=40, **settings)
    assert len({str(judged[spec]["texts"]) for spec in arbiters}) == len(arbiters)


@pytest.mark.parametrize(
    "settings",
    [{}, {"end_blocks_at_stop": True, "max_corrections": 1}],
    ids=["whole blocks", "after a correction"],
)
def test_with_guesses_the_draft_writes_the_same_in_fewer_forwards(settings, pair, job, tmp_path):
    arbiters = ["chow_average:min_log_q=-0.1", "lossless"]
    job = job | dict(k=40, arbiters=arbiters, prompts=job["prompts"][:30])
    job |= dict(batch_size=4)  # with more rows guesses do not pay
    settings = {"end_blocks_at_stop": False} | settings
    plain, guessing = (
        run("on", job | dict(settings=settings | {"cascade": is_on}), tmp_path)
        for is_on in (False, True)
    )
    for spec in arbiters:
        decode = dict(num_speculative_tokens=40, cascade=True, **settings)
        assert_like_ours(spec, pair, job, guessing, **decode)
        assert guessing[spec]["texts"] == plain[spec]["texts"]
        assert guessing[spec]["forwards"] < 0.8 * plain[spec]["forwards"]


def test_blocks_are_as_long_as_vllms_schedule_says(pair, job, stock, tmp_path):
    """With so many requests in a step; a schedule of one length is an engine of that length."""
    arbiters = ["agreement:min_share=0.7", "lossless"]
    job = job | dict(k=40, settings={"end_blocks_at_stop": True}, arbiters=arbiters)
    judged = run("on", scheduled(job, [(1, 16, 3)]), tmp_path)
    for spec in arbiters:
        decode = dict(num_speculative_tokens=3, end_blocks_at_stop=True)
        assert_like_ours(spec, pair, job, judged, **decode)
    under_load = run("on", scheduled(job, [(1, 2, 40), (3, 16, 3)]), tmp_path)
    assert under_load["lossless"]["texts"] == judged["lossless"]["texts"] == stock["texts"]
    num_drafts = [one["lossless"]["counts"]["num_drafts"] for one in (under_load, judged)]
    assert num_drafts[0] < num_drafts[1], "the last requests have longer blocks"


def scheduled(job, schedule):
    """A job with block lengths by the number of requests: (first, last, tokens) of each range."""
    return job | {"speculative": {"num_speculative_tokens_per_batch_size": schedule}}


def assert_like_ours(spec, pair, job, judged, least=10, **decode):
    """vLLM's tokens and counts under an arbiter are our engine's."""
    texts = judged[spec]["texts"]
    behind = [ids + text[:1] for ids, text in zip(job["prompts"], texts, strict=True)]
    arbiter = Later(load_arbiter(spec, pair))
    settings = {"num_speculative_tokens": K, "batch_size": 16} | decode
    engine = cospec.Engine(pair, arbiter, **settings)
    sampling = cospec.SamplingConfig(max_new_tokens=MAX_TOKENS - 1)
    completions = engine.generate(behind, sampling)
    differ = [c.index for c in completions if c.token_ids != texts[c.index][1:]]
    assert differ == []
    total = sum((c.stats for c in completions), start=Stats())
    ours = {name: getattr(total, name) for name in judged[spec]["counts"]}
    assert judged[spec]["counts"] == ours
    assert total.num_overrides > least or spec == "lossless", "the test has something to see"


def test_without_settings_vllm_is_not_touched(stock):
    assert stock["touched"] == []


def test_the_lossless_arbiter_gives_the_text_of_stock_vllm(stock, judged):
    assert judged["lossless"]["texts"] == stock["texts"]


def test_a_request_that_opts_out_gets_the_text_of_stock_vllm(stock, judged):
    assert judged["opted out"] == stock["texts"][:NUM_OPTED_OUT]


def test_a_request_with_a_penalty_is_decoded_losslessly(stock, judged):
    """The penalty is too small to change a token."""
    assert judged["penalised"] == stock["texts"][:NUM_OPTED_OUT]


def warped(logits, temperature, top_k=0, top_p=1.0):
    """The law that vLLM's sampling parameters stand for, (N, V) float64."""
    logits = logits.double() / temperature
    if top_k:
        kth = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < kth, float("-inf"))
    probs, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)
    is_cut = probs.cumsum(dim=-1) - probs >= top_p
    probs = torch.zeros_like(probs).scatter(1, order, probs.masked_fill(is_cut, 0.0))
    return probs / probs.sum(dim=-1, keepdim=True)


@torch.no_grad()
def joint_law(model, prompt, settings, least):
    """Probability of every beginning of `NUM_TOKENS` tokens that has at least `least`."""
    law = {(): 1.0}
    for _ in range(NUM_TOKENS):
        starts = list(law)
        logits = [model(torch.tensor([[*prompt, *start]])).logits[0, -1] for start in starts]
        longer = {}
        for start, probs in zip(starts, warped(torch.stack(logits), **settings), strict=True):
            joint = probs * law[start]
            for token in (joint >= least).nonzero()[:, 0].tolist():
                longer[*start, token] = float(joint[token])
        law = longer
    return law


@pytest.mark.parametrize(
    ("arbiter", "name"),
    [
        *itertools.product(["lossless", NEVER_KEEPS], LAWS),
        (HIDDEN_KEEPS_NOTHING, "warm, top-p"),
    ],
)
def test_lossless_sampling_follows_the_target(arbiter, name, pair, job, sampled):
    """Stock vLLM 0.32 does not, on a CPU: it divides by temperatures that were never written."""
    assert_follows_the_target(sampled[arbiter][name], name, pair, job)


def test_so_it_does_in_blocks_that_end_by_themselves(pair, job, tmp_path):
    name = "warm, top-p"
    law = LAWS[name] | dict(max_tokens=NUM_TOKENS, ignore_eos=True)
    ends = {"draft_confidence_threshold": 0.7}
    asked = dict(law_arbiter="lossless", law_prompt=law_prompt(job), laws={name: law})
    found = run("laws", job | asked | dict(settings=ends, num_samples=NUM_SAMPLES), tmp_path)
    assert_follows_the_target(found[name], name, pair, job)


def assert_follows_the_target(texts, name, pair, job):
    """Texts sampled under a law are from the target's distribution."""
    settings = {k: v for k, v in LAWS[name].items() if k != "drafts_are_sampled"}
    law = joint_law(pair.target, law_prompt(job), settings, least=10 / NUM_SAMPLES)
    assert len(law) >= 8, "the law has something to get wrong"
    seen = Counter(map(tuple, texts))
    expected = [p * NUM_SAMPLES for p in law.values()]
    observed = [seen[tokens] for tokens in law]
    rest = NUM_SAMPLES - sum(expected)
    if rest >= 5:
        expected, observed = [*expected, rest], [*observed, NUM_SAMPLES - sum(observed)]
    statistic = sum((o - e) ** 2 / e for o, e in zip(observed, expected, strict=True))
    assert statistic < chi2.ppf(1 - FALSE_ALARM, len(expected) - 1), (expected, observed)


def test_sampling_with_overrides_follows_our_engine(pair, job, sampled):
    theirs = [tuple(text) for text in sampled[NEVER_KEEPS]["overridden"]]
    behind = [[*law_prompt(job), first] for first, *_ in theirs[:NUM_OURS]]
    arbiter = Later(load_arbiter(DIVERGENCE))
    engine = cospec.Engine(pair, arbiter, num_speculative_tokens=K, batch_size=64)
    sampling = cospec.SamplingConfig(max_new_tokens=NUM_TOKENS - 1, temperature=1.0, seed=0)
    completions = engine.generate(behind, sampling)
    assert sum(c.stats.num_overrides for c in completions) > 50, "the test has something to see"
    ours = Counter((c.prompt_ids[-1], *c.token_ids) for c in completions)
    theirs = Counter(theirs[NUM_OURS:])
    common = [text for text, n in (ours + theirs).items() if n >= 10]
    table = [
        [*(seen[text] for text in common), seen.total() - sum(seen[text] for text in common)]
        for seen in (ours, theirs)
    ]
    assert len(common) >= 8, "the law has something to get wrong"
    assert chi2_contingency(table).pvalue > FALSE_ALARM, table
