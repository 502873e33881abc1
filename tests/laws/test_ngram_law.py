"""The laws of the n-gram drafter: its tokens are verified as a model's would be."""

from __future__ import annotations

import torch

from cospec import Engine, ModelPair, SamplingConfig, load_arbiter
from cospec.engine import Branch
from cospec.types import Origin
from tests.conftest import TableModel
from tests.laws.decoding import PROMPTS
from tests.laws.known_law import (
    FALSE_ALARM_RATE,
    NUM_DRAWS,
    SETTINGS,
    TARGET,
    law,
    p_value,
    text_counts,
)

COPYING = [prompt + prompt for prompt in PROMPTS]
"""Prompts whose end occurred before."""
START = [0, 1, 2, 3, 1, 0, 2]
"""Has each token, and ends in one that others follow."""


def test_lossless_sampling_from_looked_up_tokens_follows_the_targets_law():
    """With q on one token, it is accepted with p(token), and else drawn from p without it."""
    engine = Engine(
        ModelPair(TableModel(TARGET)),
        load_arbiter("lossless"),
        drafter="ngram",
        num_speculative_tokens=3,
        batch_size=512,
        prompt_lookup_min=1,
        keep_trace=False,
    )
    chosen = {name: SETTINGS[name] for name in ("plain", "top_p")}
    settings = list(chosen.values()) * NUM_DRAWS
    done = engine.generate([START] * len(settings), settings)
    assert sum(c.stats.num_strict_accepts for c in done) > NUM_DRAWS
    assert sum(c.origins.count(Origin.CORRECTION) for c in done) > NUM_DRAWS
    for i, (name, config) in enumerate(chosen.items()):
        counts = text_counts(done[i :: len(chosen)])
        assert p_value(counts, law(TARGET, config, START[-1])) > FALSE_ALARM_RATE, name


def test_an_arbiter_rules_on_looked_up_tokens_and_branches_leave_them(llama_pair):
    engine = Engine(
        ModelPair(llama_pair.target), load_arbiter("always_draft"), drafter="ngram", batch_size=3
    )
    rollouts = engine.rollouts(COPYING, SamplingConfig(max_new_tokens=12, ignore_eos=True))
    done = [rollout.completion for rollout in rollouts]
    assert any(Origin.OVERRIDE in c.origins for c in done)
    mismatch = next(m for c in done for step in c.trace for m in step.mismatches)
    assert torch.tensor(mismatch.q_draft_id).isnan(), "no model, no probability"
    (end,) = engine.branches([Branch(rollouts[0], 3, 7)])
    assert end.completion.token_ids[:4] == [*done[0].token_ids[:3], 7]
    assert len(end.completion.token_ids) == 12
