"""Non-finite logits of the draft, and tokens that one model cannot read, leave the output exact."""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import replace

import pytest
import torch

from cospec import Engine, SamplingConfig
from cospec.arbiters import AlwaysDraft, AlwaysTarget
from cospec.errors import (
    NonFiniteError,
)
from cospec.models import ModelPair
from cospec.types import Completion, Origin
from tests.conftest import (
    TableModel,
    disturbed,
    random_model,
    some_prompts,
)
from tests.engine.helpers import (
    GREEDY,
    INF,
    NAN,
    SAMPLED,
    Spoilt,
    decode,
    ids,
    table_pair,
    total,
)
from tests.laws.known_law import DRAFT as DRAFT_TABLE
from tests.laws.known_law import (
    FALSE_ALARM_RATE,
    NUM_DRAWS,
    SETTINGS,
    law,
    p_value,
    sample,
    text_counts,
)
from tests.laws.known_law import TARGET as TARGET_TABLE

BAD_DRAFTS = {
    "all nan": (NAN, slice(None)),
    "one nan": (NAN, 1),
    "all inf": (INF, slice(None)),
    "one inf": (INF, 2),
    "all -inf": (-INF, slice(None)),
}


@pytest.mark.parametrize("bad", BAD_DRAFTS)
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_a_draft_of_non_finite_logits_leaves_greedy_output_exact(k, bad, threshold):
    value, place = BAD_DRAFTS[bad]
    pair = ModelPair(TableModel(TARGET_TABLE), Spoilt(DRAFT_TABLE, 0, value, place))
    done = decode(pair, num_speculative_tokens=k, draft_confidence_threshold=threshold)
    assert ids(done) == ids(Engine.target_only(pair).generate([[0], [1], [2], [3]], GREEDY))
    stats = total(done)
    assert stats.num_non_finite_drafts == stats.num_draft_tokens > 0


@pytest.mark.parametrize("bad", ["all nan", "one inf"])
def test_a_draft_of_non_finite_logits_leaves_the_sampled_law_exact(bad):
    """All kinds are drawn from alike, so two will do."""
    value, place = BAD_DRAFTS[bad]
    settings = [SETTINGS["top_p"]] * NUM_DRAWS
    draft = Spoilt(DRAFT_TABLE, 0, value, place)
    done = sample(TableModel(TARGET_TABLE), draft, settings, k=2)
    probs = law(TARGET_TABLE, SETTINGS["top_p"])
    assert p_value(text_counts(done), probs) > FALSE_ALARM_RATE
    stats = total(done)
    assert stats.num_non_finite_drafts == stats.num_draft_tokens > 0
    overlap = float(probs.view(4, 16).sum(dim=1).clamp(max=0.25).sum())
    share = sum(c.origins[0] is Origin.MATCH for c in done) / NUM_DRAWS
    sigma = (overlap * (1 - overlap) / NUM_DRAWS) ** 0.5
    assert abs(share - overlap) < 5 * sigma, "it draws uniformly, and is accepted accordingly"


@pytest.mark.parametrize("threshold", [0.0, 0.45])
def test_only_the_drafted_tokens_of_non_finite_logits_are_counted(threshold):
    """The draft is bad from position 10 on: all of its tokens behind it, and no other."""
    pair = ModelPair(TableModel(TARGET_TABLE), Spoilt(DRAFT_TABLE, 10, NAN))
    settings = dict(num_speculative_tokens=4, draft_confidence_threshold=threshold)
    for done in decode(pair, **settings):
        places = [step.position + j for step in done.trace for j in range(step.num_draft_tokens)]
        expected = sum(place >= 10 for place in places)
        assert 0 < done.stats.num_non_finite_drafts == expected < done.stats.num_draft_tokens
    assert decode(table_pair())[2].stats.num_non_finite_drafts == 0


def test_what_a_non_finite_draft_proposes_does_not_depend_on_the_batch():
    """Found: beside a row that samples, a greedy row of NaN logits drafted token 0, and alone the
    place of the NaN.
    """
    pair = ModelPair(TableModel(TARGET_TABLE), Spoilt(DRAFT_TABLE, 0, NAN))
    prompts = [[0], [1]]
    alone = decode(pair, AlwaysDraft(), prompts=prompts[:1])
    mixed = decode(pair, AlwaysDraft(), prompts=prompts, sampling=[GREEDY, SAMPLED])
    assert mixed[0].token_ids == alone[0].token_ids


def unreadable(model: torch.nn.Module, token_id: int) -> torch.nn.Module:
    """A copy for which one token is NaN, as where half precision overflows on a rare token."""
    twin = copy.deepcopy(model)
    twin.model.embed_tokens.weight.data[token_id] = NAN
    return twin


POISON_PROMPTS = some_prompts(8)
POISON_SAMPLING = SamplingConfig(max_new_tokens=20, ignore_eos=True)
POISON = 26
"""Drafted now and then, and in no prompt and no completion of the pair below."""


@functools.cache
def poisoned(role: str) -> tuple[list[Completion], ModelPair]:
    """Completions of a sound pair, and the pair in which one model cannot read POISON."""
    target = random_model("llama")
    draft = disturbed(target, 0.12)
    sound = decode(ModelPair(target, draft), prompts=POISON_PROMPTS, sampling=POISON_SAMPLING)
    seen = {token for c in sound for token in c.prompt_ids + c.token_ids}
    drafted = {m.draft_id for c in sound for step in c.trace for m in step.mismatches}
    assert POISON in drafted - seen, "choose another token"
    models = {"target": target, "draft": draft}
    return sound, ModelPair(**models | {role: unreadable(models[role], POISON)})


def test_a_token_that_the_draft_cannot_read_leaves_the_output_exact_where_blocks_end_early():
    sound, pair = poisoned("draft")
    done = decode(
        pair,
        prompts=POISON_PROMPTS,
        sampling=POISON_SAMPLING,
        draft_confidence_threshold=0.1,
    )
    assert ids(done) == ids(sound)
    assert total(done).num_non_finite_drafts > 0


def test_plain_decoding_never_meets_a_token_that_is_only_drafted():
    sound, pair = poisoned("target")
    assert ids(Engine.target_only(pair).generate(POISON_PROMPTS, POISON_SAMPLING)) == ids(sound)


@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_a_rejected_token_that_the_target_cannot_read_does_no_harm(threshold):
    sound, pair = poisoned("target")
    done = decode(
        pair,
        prompts=POISON_PROMPTS,
        sampling=POISON_SAMPLING,
        draft_confidence_threshold=threshold,
    )
    assert ids(done) == ids(sound)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cascade": True, "batch_size": 1},
        {"cascade": True, "batch_size": 3},
        {"end_blocks_at_stop": True, "num_speculative_tokens": 12},
    ],
    ids=str,
)
def test_a_rejected_token_that_the_draft_cannot_read_is_forgotten(options):
    """At most the rest of the block is lost, so that no block begins with a lost token."""
    sound, pair = poisoned("draft")
    done = decode(pair, prompts=POISON_PROMPTS, sampling=POISON_SAMPLING, **options)
    assert ids(done) == ids(sound) and total(done).num_non_finite_drafts > 0
    assert not lost_places(done)


def test_what_the_model_drafted_beside_a_searched_block_is_forgotten():
    """A row whose text was searched grows by another block than the model's last one."""
    target = random_model("llama")
    draft = disturbed(target, 0.12)
    prompts = [prompt * 3 for i, prompt in enumerate(some_prompts(8)) if i != 5]
    sound, spoilt = (
        decode(
            ModelPair(target, one),
            prompts=prompts,
            sampling=SamplingConfig(max_new_tokens=30, ignore_eos=True),
            drafter="ngram+model",
            prompt_lookup_min=1,
            num_speculative_tokens=6,
        )
        for one in (draft, unreadable(draft, POISON))
    )
    assert not any(POISON in c.prompt_ids + c.token_ids for c in sound), "choose other prompts"
    assert ids(spoilt) == ids(sound) and total(spoilt).num_non_finite_drafts > 0
    assert lost_places(spoilt) == lost_places(sound), "those of searched tokens"


def lost_places(done: list[Completion]) -> set[tuple[int, int]]:
    """Blocks whose first token has no probability of the draft's."""
    return {
        (i, step.position)
        for i, completion in enumerate(done)
        for step in completion.trace
        for mismatch in step.mismatches
        if mismatch.block_position == 0 and math.isnan(mismatch.q_draft_id)
    }


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_text_that_the_draft_cannot_read_spoils_no_other(batch_size):
    """The row of a finished text goes to the next prompt, with what was stored there."""
    _, pair = poisoned("draft")
    prompts = [[7, 9, 11, 9, 7, 9, POISON, 9, 7], *POISON_PROMPTS[:3]]
    sampling = replace(POISON_SAMPLING, max_new_tokens=12)
    done = decode(pair, prompts=prompts, sampling=sampling, batch_size=batch_size)
    lost = [c.stats.num_non_finite_drafts == c.stats.num_draft_tokens for c in done]
    assert lost == [True, False, False, False]
    alone = [decode(pair, prompts=[one], sampling=sampling)[0] for one in prompts]
    assert [c.stats.num_non_finite_drafts for c in done] == [
        c.stats.num_non_finite_drafts for c in alone
    ]


def test_a_prompt_that_the_target_cannot_read_is_an_error():
    """Replacing NaN keys and values by 0 would decode as if the token were not there."""
    _, pair = poisoned("target")
    prompts = [[7, 9, 11, 9, 7], [7, POISON, 9, 11]]
    engine = Engine.target_only(pair, batch_size=1)
    (sound,) = engine.generate(prompts[:1], GREEDY)
    with pytest.raises(NonFiniteError, match="for prompt 1 at generated token 0") as caught:
        engine.generate(prompts, GREEDY)
    assert ids(list(caught.value.completions.values())) == [sound.token_ids]


@pytest.mark.parametrize("value", [NAN, INF])
def test_values_that_overflow_in_one_layer_are_an_error(value):
    """Replaced by 0 they would leave finite logits, and text would come out of a broken target."""
    target = copy.deepcopy(random_model("llama"))
    target.model.layers[1].self_attn.v_proj.weight.data[3, 5] = value
    assert target(torch.tensor([[7, 9, 11]])).logits.isnan().any()
    pair = ModelPair(target, random_model("llama"))
    for engine in (Engine(pair, AlwaysTarget()), Engine.target_only(pair)):
        with pytest.raises(NonFiniteError, match="for prompt 0 at generated token 0"):
            engine.generate([[7, 9, 11]], GREEDY)


@pytest.mark.parametrize("role", ["target", "draft"])
def test_the_padding_of_short_prompts_need_not_be_readable(role):
    """Prompts of unlike length are padded with token 0, which counts for nothing."""
    models = {"target": random_model("llama")}
    models["draft"] = disturbed(models["target"], 0.12)
    prompts = [[7, 9], [9] * 12, [11, 7, 8]]
    sound = decode(ModelPair(**models), prompts=prompts)
    assert all(0 not in c.token_ids for c in sound), "choose other prompts"
    pair = ModelPair(**models | {role: unreadable(models[role], 0)})
    done = decode(pair, prompts=prompts)
    assert ids(done) == ids(sound)
    assert [c.origins for c in done] == [c.origins for c in sound]
