"""vLLM's second runner decodes as our engine does: same tokens, same rulings, same law.

On a CPU, Triton interprets the runner's kernels (`tools/vllm_overlay.sh` makes an environment).
"""

from __future__ import annotations

import importlib.util

import pytest

import cospec
from cospec.arbiters import load_arbiter
from cospec.models.bundled import bundled_models
from cospec.models.load import load_tokenizer
from tests.vllm_plugin import test_backend
from tests.vllm_plugin.conftest import (
    HIDDEN,
    LEARNED,
    NUM_OPTED_OUT,
    Later,
    encoded_problems,
    run,
)
from tests.vllm_plugin.test_v1_offline import (
    HIDDEN_KEEPS_NOTHING,
    LAWS,
    NUM_SAMPLES,
    NUM_TOKENS,
    assert_follows_the_target,
    assert_like_ours,
    law_prompt,
    scheduled,
)

ARBITERS = [f"{LEARNED},threshold=0.03", "gap:max_gap=4", "lossless"]
"""They override often enough to be seen in few texts; the first needs the draft's logits."""

FEW_TOKENS = 60


def has_only_the_second_runner():
    """Return whether vLLM is there, 0.34 or later, and Triton."""
    if importlib.util.find_spec("vllm") is None or importlib.util.find_spec("triton") is None:
        return False
    return importlib.util.find_spec("vllm.v1.worker.gpu_model_runner") is None


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not has_only_the_second_runner(), reason="it needs vLLM 0.34 and Triton"),
]


@pytest.fixture(scope="module")
def job(job):
    return job | dict(is_second_runner=True, arbiters=ARBITERS, prompts=job["prompts"][:24])


@pytest.fixture(scope="module")
def stock(job, tmp_path_factory):
    return run("stock", job, tmp_path_factory.mktemp("stock"))


@pytest.fixture(scope="module")
def judged(job, tmp_path_factory):
    return run("on", job, tmp_path_factory.mktemp("on"))


@pytest.mark.parametrize("spec", ARBITERS, ids=["learned", "gap", "lossless"])
def test_tokens_and_rulings_are_those_of_our_engine(spec, pair, job, judged):
    assert_like_ours(spec, pair, job, judged)


def test_the_lossless_arbiter_gives_the_text_of_stock_vllm(stock, judged):
    assert stock["sampler"].startswith("vllm.")
    assert judged["lossless"]["texts"] == stock["texts"]
    assert judged[ARBITERS[1]]["texts"] != stock["texts"], "the test has something to see"


@pytest.mark.parametrize(
    "settings",
    [
        {"end_blocks_at_stop": True, "max_corrections": 1},
        {"draft_confidence_threshold": 0.3},
    ],
    ids=["after a correction", "by confidence"],
)
def test_blocks_end_where_those_of_our_engine_do(settings, pair, job, tmp_path):
    arbiters = ["chow_average:min_log_q=-0.1", "lossless"]
    some = dict(k=40, settings=settings, arbiters=arbiters, prompts=job["prompts"][:12])
    some |= dict(engine={"async_scheduling": False}, num_opted_out=1)
    judged = run("on", job | some, tmp_path)
    for spec in arbiters:
        decode = dict(num_speculative_tokens=40, **settings)
        assert_like_ours(spec, pair, job | some, judged, least=4, **decode)


def test_blocks_are_as_long_as_vllms_schedule_says(pair, job, tmp_path):
    arbiters = ["agreement:min_share=0.7", "lossless"]
    some = dict(k=40, settings={"end_blocks_at_stop": True}, arbiters=arbiters, num_opted_out=1)
    some |= dict(engine={"async_scheduling": False}, prompts=job["prompts"][:12])
    judged = run("on", scheduled(job | some, [(1, 16, 3)]), tmp_path)
    for spec in arbiters:
        decode = dict(num_speculative_tokens=3, end_blocks_at_stop=True)
        assert_like_ours(spec, pair, job | some, judged, least=4, **decode)


def test_with_async_scheduling_blocks_are_whole_and_the_texts_the_same(pair, job, tmp_path):
    """The arbiter looks no further than a stop token."""
    settings = {"end_blocks_at_stop": True, "max_corrections": 1}
    arbiters = ["chow_average:min_log_q=-0.1", "agreement:min_share=0.7"]
    some = dict(k=16, settings=settings, arbiters=arbiters, prompts=job["prompts"][:8])
    some |= dict(max_tokens=FEW_TOKENS, num_opted_out=1, engine={"async_scheduling": True})
    judged = run("on", job | some, tmp_path)
    texts = [judged[spec]["texts"] for spec in arbiters]
    assert texts[0] != texts[1], "the test has something to see"
    for spec, found in zip(arbiters, texts, strict=True):
        behind = [ids + text[:1] for ids, text in zip(some["prompts"], found, strict=True)]
        arbiter = Later(load_arbiter(spec, pair))
        engine = cospec.Engine(pair, arbiter, num_speculative_tokens=16, **settings)
        sampling = cospec.SamplingConfig(max_new_tokens=FEW_TOKENS - 1)
        ours = [completion.token_ids for completion in engine.generate(behind, sampling)]
        assert ours == [text[1:] for text in found]


def test_requests_that_opt_out_or_have_a_penalty_get_the_text_of_stock_vllm(stock, judged):
    assert judged["opted out"] == stock["texts"][:NUM_OPTED_OUT]
    assert judged["penalised"] == stock["texts"][:NUM_OPTED_OUT]


def test_lossless_sampling_follows_the_target(pair, job, tmp_path):
    """Without top-k and top-p, whose kernel Triton cannot interpret."""
    law = LAWS["plain"] | dict(max_tokens=NUM_TOKENS, ignore_eos=True)
    asked = dict(law_arbiter="lossless", law_prompt=law_prompt(job), num_samples=NUM_SAMPLES)
    found = run("laws", job | asked | dict(laws={"plain": law}), tmp_path)
    assert_follows_the_target(found["plain"], "plain", pair, job)


def test_hidden_states_are_those_of_our_engine(pair, job, stock, tmp_path):
    some = dict(arbiters=[HIDDEN, HIDDEN_KEEPS_NOTHING], num_opted_out=1)
    judged = run("on", job | some, tmp_path)
    assert_like_ours(HIDDEN, pair, job, judged, least=4)
    assert judged[HIDDEN_KEEPS_NOTHING]["texts"] == stock["texts"]


@pytest.mark.parametrize("decode", [{}, {"end_blocks_at_stop": True, "max_corrections": 1}])
def test_rollouts_and_branches_are_those_of_our_engine(decode, tmp_path):
    """With hidden states, and by chance."""
    learned = f"{test_backend.HOME / 'arbiters' / 'specialist'}:max_mismatch_rate=inf"
    arbiters = [["gap:max_gap=4", False], [learned, True]]
    prompts = encoded_problems(load_tokenizer(bundled_models("bundled:specialist")[0]), 16)
    job = test_backend.a_job("specialist", arbiters=arbiters, prompts=prompts, decode=decode)
    job |= dict(k=16, max_tokens=FEW_TOKENS, records="hidden", is_second_runner=True)
    found = test_backend.run("law", job, tmp_path)
    for spec, by_kind in found.items():
        for kind, told in by_kind.items():
            assert told["different"] == [], (spec, kind)
            assert told["largest"] < test_backend.ROUNDING, (spec, kind)
        assert by_kind["rollouts"]["num_decisions"] >= 8, spec
        assert by_kind["branches"]["num_decisions"], spec
