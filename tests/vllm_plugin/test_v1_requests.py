"""vLLM's first runner with requests of several kinds, too little memory, or the wrong arbiter."""

from __future__ import annotations

import importlib.util
import types

import pytest
import torch

import cospec
from cospec.arbiters import load_arbiter
from cospec.types import Origin
from cospec.vllm_plugin.adapter import Adapter
from cospec.vllm_plugin.bridge import RowArbiter
from cospec.vllm_plugin.requests import RequestTable
from cospec.vllm_plugin.v1_drafter import keep_draft_logits
from tests.vllm_plugin.conftest import ARBITERS, LEARNED, MAX_TOKENS, OTHER_PAIRS, K, Later, run
from tests.vllm_plugin.test_adapter import params
from tests.vllm_plugin.test_v1_offline import warped

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

NUM_MIXED_TOKENS, NUM_PREEMPTED, NUM_BLOCKS = 60, 12, 30
GREEDY, SEEDED, FREE = (
    dict(temperature=0.0),
    dict(temperature=1.0, top_k=20, seed=1),
    dict(temperature=1.2, top_p=0.95),
)
KINDS = [GREEDY, SEEDED, GREEDY, FREE] * 2
LOGPROBS_MODES = ["raw_logprobs", "raw_logits", "processed_logprobs", "processed_logits"]


def ours(pair, prompts, arbiter, max_tokens):
    """Greedy completions of prompts by our engine."""
    engine = cospec.Engine(pair, arbiter, num_speculative_tokens=K, batch_size=16)
    return engine.generate(prompts, cospec.SamplingConfig(max_new_tokens=max_tokens))


def beginnings(job):
    """Prompts that break off within a question: what follows is open."""
    return [prompt[:20] for prompt in job["prompts"][: len(KINDS)]]


@pytest.fixture(scope="module")
def mixed(job, tmp_path_factory):
    params = [kind | {"max_tokens": NUM_MIXED_TOKENS} for kind in KINDS]
    extra = dict(mixed=params, mixed_prompts=beginnings(job), logprobs_modes=LOGPROBS_MODES)
    return run("mixed", job | extra, tmp_path_factory.mktemp("mixed"))


@pytest.mark.parametrize("drafts", ["chosen", "sampled"])
def test_greedy_requests_among_sampled_ones_are_those_of_our_engine(drafts, pair, job, mixed):
    pairs = zip(beginnings(job), mixed[drafts]["texts"], KINDS, strict=True)
    greedy = [(prompt, text) for prompt, text, kind in pairs if kind == GREEDY]
    behind = [prompt + text[:1] for prompt, text in greedy]
    completions = ours(pair, behind, Later(load_arbiter(ARBITERS[0], pair)), NUM_MIXED_TOKENS - 1)
    assert [c.token_ids for c in completions] == [text[1:] for _, text in greedy]
    assert mixed[drafts]["num_overrides"] > sum(c.stats.num_overrides for c in completions)


@pytest.mark.parametrize("drafts", ["chosen", "sampled"])
def test_a_seed_gives_one_text_wherever_its_request_lies_in_the_batch(drafts, mixed):
    """vLLM 0.32 samples drafts without regard to seeds."""
    texts, again = mixed[drafts]["texts"], mixed[drafts]["again"]
    differ = [i for i, kind in enumerate(KINDS) if texts[i] != again[i]]
    assert [KINDS[i] for i in differ if KINDS[i] != FREE] == []
    assert differ, "what has no seed is sampled anew"


@torch.no_grad()
@pytest.mark.parametrize("mode", LOGPROBS_MODES)
def test_an_overridden_token_has_the_probability_that_the_target_gives_it(mode, pair, job, mixed):
    num_overridden = 0
    for prompt, told, kind in zip(beginnings(job), mixed[mode], KINDS, strict=True):
        tokens, values, ranks = zip(*told, strict=True)
        ids = torch.tensor([[*prompt, *tokens]])
        logits = pair.target(ids).logits[0, len(prompt) - 1 : -1].double()
        if mode.startswith("processed") and kind != GREEDY:
            settings = {name: value for name, value in kind.items() if name != "seed"}
            cut = warped(logits, **settings) == 0
            logits = (logits / kind["temperature"]).masked_fill(cut, float("-inf"))
        expected = logits if mode.endswith("logits") else logits.log_softmax(dim=-1)
        own = expected.gather(1, torch.tensor(tokens)[:, None])[:, 0]
        assert own.isfinite().all(), kind
        assert torch.tensor(values, dtype=torch.float64).allclose(own, atol=1e-3), kind
        num_overridden += sum(rank > 1 for rank in ranks) if kind == GREEDY else 0
    assert num_overridden > 5, "the test has something to see"


@pytest.fixture(scope="module")
def preempted(job, tmp_path_factory):
    extra = dict(seed_arbiter=LEARNED, num_blocks=NUM_BLOCKS)
    extra["prompts"] = job["prompts"][:NUM_PREEMPTED]
    return run("preempted", job | extra, tmp_path_factory.mktemp("preempted"))


@pytest.fixture(scope="module")
def plain(pair, job):
    """The target's own texts by our engine."""
    engine = cospec.Engine.target_only(pair, batch_size=16)
    sampling = cospec.SamplingConfig(max_new_tokens=MAX_TOKENS)
    return [c.token_ids for c in engine.generate(job["prompts"][:NUM_PREEMPTED], sampling)]


def test_preempted_requests_go_on_losslessly(plain, preempted):
    """Stock vLLM's greedy texts are the target's: see test_v1_offline."""
    assert preempted["lossless"]["num_preemptions"] >= 4
    assert preempted["lossless"]["texts"] == plain


def test_preempted_requests_go_on_as_in_our_engine(pair, job, preempted):
    """A new beginning is like a prompt's end: the next token is the target's, then come blocks.

    So our engine is started anew behind that token, and told what was before it.
    """
    found = preempted["learned"]
    assert found["num_preemptions"] >= 4
    arbiter = load_arbiter(LEARNED, pair)
    num_overrides = 0
    for index, text in enumerate(found["texts"]):
        resumed = [n for request, n in found["resumed"] if request == index]
        starts, before = [0, *resumed], 0
        for start, end in zip(starts, [*resumed, len(text)], strict=True):
            behind = job["prompts"][index] + text[: start + 1]
            later = Later(arbiter, start + 1, before)
            (completion,) = ours(pair, [behind], later, MAX_TOKENS - start - 1)
            num_new = end - start - 1
            assert completion.token_ids[:num_new] == text[start + 1 : end], (index, start)
            before += completion.origins[:num_new].count(Origin.OVERRIDE)
        num_overrides += before
    assert num_overrides > 2, "the test has something to see"


def test_an_engine_refuses_an_arbiter_with_hidden_states_of_another_pair(job, tmp_path):
    told = run("refused", job | dict(hidden_arbiter=OTHER_PAIRS), tmp_path)
    assert told["error"] == "ArbiterError"
    assert "hidden states of the pair that it was trained on" in told["message"]


def test_what_a_finished_request_had_is_let_go() -> None:
    """Found: the ids of its text were kept until as many requests had come as run at once."""
    from cospec.vllm_plugin.v1 import ArbiterSampler

    runner = types.SimpleNamespace(requests={"here": None})
    sampler = ArbiterSampler(types.SimpleNamespace(), None, runner)
    sampler._slots = {"old": (0, None, None), "here": (1, None, None)}
    assert sampler._free_slot() == 0
    assert list(sampler._slots) == ["here"]


@pytest.mark.parametrize(
    ("steps", "drafted", "expected"),
    [
        ([], [0, 0, 0], [True, True, True]),
        ([("ab", True)], [0, 7, -1], [True, True, False]),
        ([("ab", False)], [0, 0, 0], [False, False, False]),
        ([("ab", False)], [0, 7, -1], [False, True, False]),
        ([("ab", False), ("b", True)], [0, 0, 7], [False, False, True]),
        ([("b", False)], [0, 7, 0], [True, True, True]),
        ([("ab", False), ("ab", True)], [0, 7, 0], [True, True, True]),
    ],
)
def test_token_0_is_a_draft_unless_nothing_was_drafted(steps, drafted, expected) -> None:
    """Found: where all drafts of a step were token 0, nothing was ruled on or counted.

    Each step has some of the requests a and b. The row is of a.
    """
    from cospec.vllm_plugin.v1 import ArbiterSampler, follow_drafting

    known = types.SimpleNamespace(
        lora_request=None, prompt_token_ids=[5, 6], sampling_params=params()
    )
    asked: list[bool] = []
    runner = types.SimpleNamespace(
        requests={"a": known, "b": known},
        input_batch=types.SimpleNamespace(req_ids=["a"], num_prompt_tokens=torch.tensor([2])),
        positions=torch.arange(1, 5),
        input_ids=types.SimpleNamespace(gpu=torch.tensor([6, *drafted])),
        _input_fits_in_drafter=lambda fits: asked.append(fits) or fits,
    )
    row_arbiter = RowArbiter(load_arbiter("lossless"), 3)
    table = RequestTable(1, torch.device("cpu"), has_thresholds=False)
    sampler = ArbiterSampler(types.SimpleNamespace(), Adapter(row_arbiter, table), runner)
    follow_drafting(runner, sampler)
    for ids, fits in steps:
        runner.input_batch.req_ids = list(ids)
        assert runner._input_fits_in_drafter(fits) is fits and asked.pop() is fits
    runner.input_batch.req_ids = ["a"]
    metadata = types.SimpleNamespace(
        num_draft_tokens=[3],
        cu_num_draft_tokens=torch.tensor([3]),
        draft_token_ids=torch.tensor(drafted),
        logits_indices=torch.arange(4),
        target_logits_indices=torch.arange(3),
    )
    greedy = types.SimpleNamespace(all_greedy=True)
    rows, _ = sampler._rows(torch.randn(3, 9), greedy, metadata)
    assert rows.is_drafted.tolist() == expected
    runner.requests = {}
    runner.input_batch.req_ids = []
    runner._input_fits_in_drafter(True)
    assert not sampler.undrafted, "ended requests are forgotten"


def test_a_placeholder_has_no_draft_probability(monkeypatch):
    """Then vLLM rejects it, and the residual that it draws from is the target's own law."""
    from cospec.vllm_plugin import cpu_repairs, v1

    name = "expand_batch_to_tokens"
    monkeypatch.setattr(v1.sampler_module, name, getattr(cpu_repairs, name))
    batch = types.SimpleNamespace(req_ids=["a", "b"])
    adapter = Adapter(
        RowArbiter(load_arbiter("lossless"), 3),
        RequestTable(1, torch.device("cpu"), has_thresholds=False),
    )
    runner = types.SimpleNamespace(input_batch=batch)
    sampler = v1.ArbiterSampler(types.SimpleNamespace(), adapter, runner)
    metadata = types.SimpleNamespace(
        num_draft_tokens=[2, 3], cu_num_draft_tokens=torch.tensor([2, 5])
    )
    sampling = types.SimpleNamespace(temperature=torch.tensor([1.0, 0.0]))
    logits = torch.randn(5, 4)
    sampler.placeholders = {"a"}
    probs = sampler._draft_probs(logits, metadata, sampling)
    assert probs[:2].eq(0).all() and probs[2:].equal(logits[2:].softmax(dim=-1))


@pytest.mark.parametrize("with_hidden", [False, True])
def test_a_drafter_that_samples_hands_out_its_logits_as_they_were(with_hidden):
    """Not divided by the temperature, as vLLM leaves them, and the states behind them."""
    states, logits = torch.randn(2, 3), torch.randn(2, 5)
    drafter = types.SimpleNamespace(
        model=types.SimpleNamespace(compute_logits=lambda _: logits.clone()),
        _enable_probabilistic_draft_probs=True,
        _sample_from_logits=lambda them, _: (them.div_(2.0).argmax(dim=-1), them),
    )
    runner = types.SimpleNamespace(
        drafter=drafter, discard_request_mask=types.SimpleNamespace(np=[True, False])
    )
    keep_draft_logits(runner, with_hidden=with_hidden)
    generators = {0: torch.Generator().manual_seed(1), 1: torch.Generator().manual_seed(1)}
    before = generators[0].get_state()
    metadata = types.SimpleNamespace(
        all_greedy=False, generators=generators, temperature=torch.ones(2)
    )
    ids, shown = drafter._sample_draft_tokens(states, metadata)
    assert generators[0].get_state().equal(before), "its prompt is not read yet"
    assert not generators[1].get_state().equal(before)
    assert ids[0] == logits[0].argmax()
    assert torch.equal(shown, torch.cat([logits, states], dim=1) if with_hidden else logits)
