"""The draft model's proposals: what they hold, by who looks at it."""

from __future__ import annotations

import pytest
import torch

from cospec import Engine, SamplingConfig, load_arbiter
from cospec.config import DecodeConfig
from cospec.drafters import ModelDrafter
from cospec.engine.rows import Row
from cospec.sampling import Chance
from cospec.types import Needs
from tests.conftest import some_prompts
from tests.laws.decoding import covering

K = 4
ARBITERS = ["lossless", "gap:max_gap=1", "chow_average:min_log_q=-1.3"]


def propose(pair, needs, **options):
    """Propose tokens after two prompts, greedily."""
    config = DecodeConfig(num_speculative_tokens=K, **options)
    prompts = some_prompts(3)[1:]
    rows = [Row(i, ids, SamplingConfig(), frozenset(), None) for i, ids in enumerate(prompts)]
    drafter = ModelDrafter(pair, config, needs)
    with torch.inference_mode():
        drafter.reserve(len(rows), max(map(len, rows)))
        drafter.prefill([ids[:-1] for ids in prompts], 0)
        return drafter.propose(rows, Chance(None, None))


@pytest.mark.parametrize("cascade", [False, True])
def test_logits_are_kept_where_a_trace_or_the_arbiter_wants_them(llama_pair, cascade):
    """Found: of 32 rows and 64 tokens they took gigabytes, and nobody looked at them."""
    kept = propose(llama_pair, Needs.NOTHING, cascade=cascade)
    assert len(kept.logits) == K
    for needs in (Needs.NOTHING, Needs.TARGET_LOGITS, Needs.LOOKAHEAD):
        bare = propose(llama_pair, needs, cascade=cascade, keep_trace=False)
        assert bare.logits is None and torch.equal(bare.token_ids, kept.token_ids)
    for needs in (Needs.LOGITS, Needs.DRAFT_LOGITS | Needs.BLOCK_LOG_Q):
        wanted = propose(llama_pair, needs, cascade=cascade, keep_trace=False)
        for ours, theirs in zip(wanted.logits, kept.logits, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("drafter", "arbiter", "temperature"),
    covering(["model", "ngram+model"], ARBITERS, [0.0, 1.0]),
)
def test_texts_are_the_same_without_a_trace(llama_pair, drafter, arbiter, temperature):
    sampling = SamplingConfig(max_new_tokens=16, temperature=temperature, seed=0)
    found, plain = (
        Engine(llama_pair, load_arbiter(arbiter), drafter=drafter, keep_trace=keep).generate(
            some_prompts(4), sampling
        )
        for keep in (True, False)
    )
    assert [c.token_ids for c in found] == [c.token_ids for c in plain]
    assert [c.stats for c in found] == [c.stats for c in plain]
    assert any(c.trace for c in found) and not any(c.trace for c in plain)
