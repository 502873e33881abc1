"""Nothing leaks between rows: a batch gives what each prompt gives alone, in any order."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cospec import Engine, SamplingConfig
from cospec.arbiters import AlwaysTarget
from cospec.engine.speculative import SpeculativeBatch
from cospec.models import ModelPair
from cospec.types import Needs, Ruling
from tests.conftest import FAMILIES, family_pair
from tests.laws.decoding import (
    ARBITERS,
    BOTH,
    GREEDY,
    PROMPTS,
    UNSURE,
    assert_it_rules,
    covering,
    decode,
)


@pytest.mark.parametrize(
    ("family", "arbiter", "sampling"),
    covering(FAMILIES, ["random:rate=0.4"], BOTH)
    + covering(["llama"], [arbiter for arbiter in ARBITERS if arbiter != "random:rate=0.4"], BOTH),
)
def test_a_batch_gives_what_each_prompt_gives_alone(family, arbiter, sampling):
    """Every family with an arbiter that keeps some tokens, and every arbiter with one family.

    The first prompts alone: one by one takes longest. In this order they have every cut.
    """
    sampling = [replace(one, max_new_tokens=16) for one in BOTH[sampling][::-1]]
    pair = family_pair(family)
    together = decode(pair, arbiter, 4, 8, sampling=sampling)
    in_turn = decode(pair, arbiter, 4, 1, prompts=PROMPTS[:3], sampling=sampling[:3])
    assert [c.token_ids for c in together[:3]] == [c.token_ids for c in in_turn]
    assert [c.origins for c in together[:3]] == [c.origins for c in in_turn]
    assert_it_rules(arbiter, together)


class Seeing:
    """Rules by everything that there is to see, and tells what that was."""

    name, needs = "seeing", Needs.LOGITS | Needs.LOOKAHEAD | Needs.HIDDEN

    def rule(self, batch):
        ahead = batch.lookahead_matches.sum(dim=1), batch.lookahead_log_p.sum(dim=1)
        states = batch.target_hidden, batch.target_hidden_after, batch.draft_hidden
        seen = [batch.block_lengths, batch.block_positions, *ahead, *(s.sum(1) for s in states)]
        features = torch.stack([number.double() for number in seen], dim=1)
        return Ruling(ahead[0] % 2 == 1, features[:, 3], features)


@pytest.mark.parametrize("sampling", BOTH.values(), ids=BOTH)
def test_an_arbiter_sees_of_a_row_that_stops_early_what_it_sees_of_it_alone(llama_pair, sampling):
    settings = dict(num_speculative_tokens=5, draft_confidence_threshold=UNSURE)
    together, alone = (
        Engine(llama_pair, Seeing(), batch_size=size, **settings).generate(
            PROMPTS[:4], sampling[:4]
        )
        for size in (8, 1)
    )
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
    steps = [step for c in together for step in c.trace]
    for ours, theirs in zip(steps, (step for c in alone for step in c.trace), strict=True):
        assert (ours.position, ours.num_overrides) == (theirs.position, theirs.num_overrides)
        for one, other in zip(ours.mismatches, theirs.mismatches, strict=True):
            assert one.block_position < ours.num_draft_tokens == one.features[0]
            torch.testing.assert_close(one.features, other.features, atol=1e-4, rtol=1e-4)
    assert any(m.keep_draft for step in steps for m in step.mismatches)


def test_admission_order_changes_nothing(llama_pair):
    order = [5, 2, 0, 3, 1, 4]
    done = decode(llama_pair, "gap:max_gap=2", 4, 3)
    shuffled = decode(llama_pair, "gap:max_gap=2", 4, 3, prompts=[PROMPTS[i] for i in order])
    assert [c.token_ids for c in shuffled] == [done[i].token_ids for i in order]


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_completions_come_back_in_the_order_of_the_prompts(llama_pair, batch):
    engine, few = (
        Engine(llama_pair, AlwaysTarget(), batch_size=batch),
        replace(GREEDY, max_new_tokens=6),
    )
    rollouts = [rollout.completion for rollout in engine.rollouts(PROMPTS, few)]
    for done in (engine.generate(PROMPTS, few), rollouts):
        assert [(c.index, c.prompt_ids) for c in done] == list(enumerate(PROMPTS))


def test_the_longest_prompts_are_decoded_first_and_a_stream_keeps_the_order(
    llama_pair, monkeypatch
):
    admitted, admit = [], SpeculativeBatch.admit
    monkeypatch.setattr(
        SpeculativeBatch, "admit", lambda *args: (admitted.extend(args[1]), admit(*args))
    )
    engine = Engine(llama_pair, AlwaysTarget(), batch_size=2)
    prompts = [*PROMPTS, PROMPTS[1]]
    orders = {}
    for name in ("generate", "rollouts", "stream"):
        list(getattr(engine, name)(prompts, SamplingConfig(max_new_tokens=4)))
        orders[name] = [row.index for row in admitted]
        admitted.clear()
    assert orders["stream"] == list(range(7))
    assert orders["generate"] == orders["rollouts"] == [2, 4, 1, 6, 3, 5, 0]


@pytest.mark.parametrize("sampling", BOTH.values(), ids=BOTH)
@pytest.mark.parametrize("stop", [(), ("e", "th")])
def test_streaming_equals_not_streaming(llama_pair, tokenizer, sampling, stop):
    pair = ModelPair(llama_pair.target, llama_pair.draft, tokenizer)
    sampling = [SamplingConfig.from_dict(s.to_dict() | {"stop": stop}) for s in sampling[:4]]
    prompts = PROMPTS[:4]
    engine = Engine(pair, AlwaysTarget(), batch_size=3, keep_trace=False)
    done = engine.generate(prompts, sampling)  # other rows beside each: traces differ by rounding
    texts, ids, origins = [""] * len(prompts), [[] for _ in prompts], [[] for _ in prompts]
    finished = {}
    for delta in engine.stream(prompts, sampling):
        assert delta.index not in finished, "nothing may follow the completion"
        texts[delta.index] += delta.text
        ids[delta.index] += delta.token_ids
        origins[delta.index] += delta.origins
        if delta.completion:
            finished[delta.index] = delta.completion
    assert [finished[i] for i in range(len(prompts))] == done
    assert texts == [c.text for c in done]
    assert ids == [c.token_ids for c in done]
    assert origins == [c.origins for c in done]
