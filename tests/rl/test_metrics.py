"""What is read off completions after a round."""

from __future__ import annotations

import pytest

from cospec import Engine, SamplingConfig, load_arbiter
from cospec.bench.audit import reached
from cospec.rl.metrics import highest_mismatch_rate
from tests.conftest import some_prompts


def test_the_guard_is_the_highest_rate_of_mismatches_at_which_an_override_did_no_harm(
    llama_pair,
) -> None:
    engine = Engine(llama_pair, load_arbiter("random:rate=0.5"), num_speculative_tokens=4)
    done = engine.generate(some_prompts(4), SamplingConfig(max_new_tokens=24))
    rates = []
    for completion in done:
        for num_earlier, m in enumerate(reached(completion)):
            if m.keep_draft:
                rates.append((num_earlier + 1) / (m.position + 5))
    last, highest = sorted(rates)[-2:]
    between = 0.99 * (len(rates) - 1) - (len(rates) - 2)  # linear, as torch's quantile is
    assert highest_mismatch_rate(done) == pytest.approx(last + between * (highest - last))
    assert 0.1 < highest < 1


def test_without_an_override_there_is_no_guard(llama_pair) -> None:
    engine = Engine(llama_pair, load_arbiter("lossless"), num_speculative_tokens=4)
    done = engine.generate(some_prompts(2), SamplingConfig(max_new_tokens=24))
    assert highest_mismatch_rate(done) is None
    assert highest_mismatch_rate([]) is None
