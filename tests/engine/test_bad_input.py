"""What cannot be decoded is refused with a sentence, and what goes wrong spoils nothing else."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    MambaConfig,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.modeling_outputs import CausalLMOutput

from cospec import Engine, SamplingConfig, load_arbiter
from cospec.arbiters import AlwaysDraft, AlwaysTarget
from cospec.errors import (
    ArbiterError,
    ConfigError,
    GenerationInterrupted,
    NonFiniteError,
    PairError,
    PromptError,
    UnsupportedModelError,
)
from cospec.models import ModelPair
from cospec.models.support import context_length
from cospec.types import Completion, MismatchBatch, Needs, Origin, Ruling, Stats
from tests.conftest import (
    CONTEXT,
    VOCAB,
    TableModel,
    disturbed,
    last_logits,
    random_model,
    random_table,
    some_prompts,
)
from tests.engine.test_sampled_law import DRAFT as DRAFT_TABLE
from tests.engine.test_sampled_law import (
    FALSE_ALARM_RATE,
    NUM_DRAWS,
    SETTINGS,
    law,
    p_value,
    sample,
    text_counts,
)
from tests.engine.test_sampled_law import TARGET as TARGET_TABLE

NUM_NEW = 16
GREEDY = SamplingConfig(max_new_tokens=NUM_NEW)
SAMPLED = SamplingConfig(max_new_tokens=NUM_NEW, temperature=1.0, seed=0)
NAN, INF = math.nan, math.inf


def table_pair(target: torch.Tensor = TARGET_TABLE, draft: torch.Tensor = DRAFT_TABLE) -> ModelPair:
    return ModelPair(TableModel(target), TableModel(draft))


def decode(
    pair: ModelPair,
    arbiter: Any = None,
    prompts: list[list[int]] | None = None,
    sampling: Any = GREEDY,
    **settings: Any,
) -> list[Completion]:
    """Completions of `prompts`, by default one from each token of a table pair."""
    engine = Engine(pair, arbiter or AlwaysTarget(), **settings)
    return engine.generate(prompts or [[0], [1], [2], [3]], sampling)


def ids(completions: list[Completion]) -> list[list[int]]:
    return [c.token_ids for c in completions]


def total(completions: list[Completion]) -> Stats:
    return sum((c.stats for c in completions), Stats())


class FromFunction(AlwaysTarget):
    """An arbiter whose ruling a test supplies."""

    def __init__(self, rule: Any, needs: Needs = Needs.NOTHING) -> None:
        object.__setattr__(self, "_rule", rule)
        object.__setattr__(self, "needs", needs)

    def rule(self, batch: MismatchBatch) -> Ruling:
        return self._rule(batch)


def kept(batch: MismatchBatch) -> torch.Tensor:
    return torch.ones(len(batch), dtype=torch.bool)


# --- prompts and settings ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompts", "sentence"),
    [
        ([], "list of prompts is empty"),
        ("hello", r"one string; pass a list of prompts: \[prompt\]"),
        ([[]], "prompt 0 is empty"),
        ([[7, 8], []], "prompt 1 is empty"),
        ([[7, VOCAB]], f"prompt 0 holds token id {VOCAB}; allowed are 0 to {VOCAB - 1}"),
        ([[7], [-1]], "prompt 1 holds token id -1"),
        (["hello"], "prompt 0 is a text, and this pair has no tokenizer"),
        ([[7] * (CONTEXT + 1)], f"prompt 0 has {CONTEXT + 1} tokens.*context holds {CONTEXT}"),
        (
            [[7], [7] * (CONTEXT - NUM_NEW + 1)],
            f"prompt 1 has .* max_new_tokens is {NUM_NEW}: together {CONTEXT + 1}, but",
        ),
    ],
)
def test_a_prompt_that_cannot_be_decoded_is_refused_before_the_first_token(
    llama_pair, prompts, sentence
):
    asked = []
    spy = FromFunction(asked.append)
    engine = Engine(llama_pair, spy)
    with pytest.raises(PromptError, match=sentence) as caught:
        engine.generate(prompts, GREEDY)
    assert isinstance(caught.value, ValueError)
    assert caught.value.completions == {}
    assert not asked
    with pytest.raises(PromptError, match=sentence):
        next(iter(engine.stream(prompts, GREEDY)))


@pytest.mark.parametrize(
    "prompts",
    [[7, 8, 9], [None], [[[7, 8]]], [["seven"]], [[7.5]], [7.0], torch.tensor([[7, 8], [9, 7]])],
    ids=["one prompt", "none", "too deep", "words", "fractions", "a number", "a tensor"],
)
def test_a_prompt_of_an_unknown_kind_is_refused_with_a_sentence(llama_pair, prompts):
    """Found: bare TypeErrors and ValueErrors from inside, and token 7.5 was read as 7."""
    with pytest.raises(PromptError):
        Engine(llama_pair, AlwaysTarget()).generate(prompts, GREEDY)


def test_an_empty_text_is_refused(llama_pair, tokenizer):
    pair = ModelPair(llama_pair.target, llama_pair.draft, tokenizer)
    with pytest.raises(PromptError, match="prompt 1 is empty"):
        Engine(pair, AlwaysTarget()).generate(["an", ""], GREEDY)


def test_a_tensor_of_ids_is_a_prompt(llama_pair):
    prompt = some_prompts(2)[1]
    done = decode(llama_pair, prompts=[torch.tensor(prompt), tuple(prompt), prompt])
    assert len({tuple(c.token_ids) for c in done}) == 1


def test_the_context_is_that_of_the_model_with_the_shorter_one():
    target, draft = random_model("llama"), random_model("llama", max_position_embeddings=40)
    for pair in (ModelPair(target, draft), ModelPair(draft, target)):
        assert pair.context_length == 40
        with pytest.raises(PromptError, match="context holds 40"):
            decode(pair, prompts=[[7] * (41 - NUM_NEW)])
        (done,) = decode(pair, prompts=[[7] * (40 - NUM_NEW)])
        assert done.token_ids


def test_stop_strings_without_a_tokenizer_are_refused(llama_pair):
    with pytest.raises(ConfigError, match="stop strings need a tokenizer"):
        decode(llama_pair, prompts=[[7]], sampling=SamplingConfig(stop=("x",)))


@pytest.mark.parametrize("k", [0, -1])
def test_a_draft_length_below_one_is_refused(llama_pair, k):
    with pytest.raises(ConfigError, match=rf"num_speculative_tokens is {k}.*target_only"):
        Engine(llama_pair, AlwaysTarget(), num_speculative_tokens=k)


@pytest.mark.parametrize("size", [0, -4])
def test_a_batch_size_below_one_is_refused(llama_pair, size):
    with pytest.raises(ConfigError, match=f"max_batch_size is {size}; it must be at least 1"):
        Engine(llama_pair, AlwaysTarget(), max_batch_size=size)
    with pytest.raises(ConfigError, match="max_batch_size"):
        Engine.target_only(llama_pair, max_batch_size=size)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, NAN])
def test_a_confidence_that_is_no_probability_is_refused(threshold):
    with pytest.raises(ConfigError, match=f"draft_confidence_threshold is {threshold}; it is a"):
        Engine(table_pair(), AlwaysTarget(), draft_confidence_threshold=threshold)


@pytest.mark.parametrize("num_configs", [0, 1, 3])
def test_another_number_of_settings_than_prompts_is_refused(llama_pair, num_configs):
    sentence = f"{num_configs} sampling configs for 2 prompts"
    with pytest.raises(ConfigError, match=sentence):
        decode(llama_pair, prompts=[[7], [8]], sampling=[GREEDY] * num_configs)


# --- logits of the target ----------------------------------------------------------------------


class Spoilt(TableModel):
    """A table model whose logits hold one bad value from position `limit` on."""

    def __init__(self, table: torch.Tensor, limit: int, value: float, place: Any = 1) -> None:
        super().__init__(table)
        self.limit, self.value, self.place = limit, value, place

    def forward(self, input_ids, position_ids=None, logits_to_keep=0, **kwargs):
        logits = self.table[input_ids].clone()
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        spoilt = torch.zeros_like(logits)
        spoilt[..., self.place] = 1
        is_bad = (spoilt > 0) & (position_ids >= self.limit)[..., None]
        logits = logits.masked_fill(is_bad, self.value)
        return CausalLMOutput(logits=last_logits(logits, logits_to_keep))


FIRST_BAD = 30


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("k", [1, 3, 8])
def test_a_target_that_turns_non_finite_is_named_by_prompt_and_position(k, sampling, value):
    """The logits from position 30 on are bad, hence token 31 - 18 = 13 of a prompt of 18.

    Longer prompts come first and end before that; shorter ones never come.
    """
    pair = ModelPair(Spoilt(TARGET_TABLE, FIRST_BAD, value), TableModel(DRAFT_TABLE))
    prompts = [[0] * 20, [1] * 19, [2] * 18, [3]]
    short = replace(sampling, max_new_tokens=2)
    settings = [short, short, sampling, sampling]
    sound = decode(table_pair(), prompts=prompts, sampling=settings, num_speculative_tokens=k)
    engine = Engine(pair, AlwaysTarget(), num_speculative_tokens=k, max_batch_size=1)
    with pytest.raises(NonFiniteError, match="for prompt 2 at generated token 13;") as caught:
        engine.generate(prompts, settings)
    assert isinstance(caught.value, FloatingPointError)
    assert caught.value.completions == {0: sound[0], 1: sound[1]}
    again = engine.generate(prompts[:2], short)
    assert again == sound[:2], "the engine is as good as new"


@pytest.mark.parametrize("k", [1, 3, 8])
def test_plain_decoding_names_the_same_position(k):
    pair = ModelPair(Spoilt(TARGET_TABLE, FIRST_BAD, NAN), TableModel(DRAFT_TABLE))
    with pytest.raises(NonFiniteError, match="for prompt 0 at generated token 11;"):
        Engine.target_only(pair).generate([[0] * 20], GREEDY)


def test_a_prompt_whose_own_logits_are_non_finite_fails_at_token_zero():
    pair = ModelPair(Spoilt(TARGET_TABLE, FIRST_BAD, NAN), TableModel(DRAFT_TABLE))
    with pytest.raises(NonFiniteError, match="for prompt 0 at generated token 0;"):
        decode(pair, prompts=[[0] * 40])


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("k", [1, 4, 8])
def test_non_finite_logits_behind_the_last_token_do_no_harm(k, sampling):
    """The last block of a row reads on behind its end; what it says there counts for nothing."""
    prompts = [[2] * (FIRST_BAD + 1 - NUM_NEW)]
    spoilt = ModelPair(Spoilt(TARGET_TABLE, FIRST_BAD, NAN), TableModel(DRAFT_TABLE))
    expected = decode(table_pair(), prompts=prompts, sampling=sampling, num_speculative_tokens=k)
    done = decode(spoilt, prompts=prompts, sampling=sampling, num_speculative_tokens=k)
    assert ids(done) == ids(expected)


@pytest.mark.parametrize("bad_first", [False, True])
def test_rows_that_finish_in_the_block_that_fails_are_handed_over(bad_first):
    """Found: the error left the block before its finished rows were collected."""
    pair = ModelPair(Spoilt(TARGET_TABLE, FIRST_BAD, NAN), TableModel(DRAFT_TABLE))
    sampling = SamplingConfig(max_new_tokens=1)
    prompts = [[0], [2] * 40]
    (expected,) = decode(table_pair(), prompts=[[0]], sampling=sampling)
    with pytest.raises(NonFiniteError) as caught:
        decode(pair, prompts=prompts[::-1] if bad_first else prompts, sampling=sampling)
    assert ids(list(caught.value.completions.values())) == [expected.token_ids]


def test_a_stream_gives_what_was_finished_before_the_target_turned_non_finite():
    """It takes the prompts in their order: the longest one is not the first to fail."""
    pair = ModelPair(Spoilt(TARGET_TABLE, FIRST_BAD, NAN), TableModel(DRAFT_TABLE))
    (expected,) = decode(table_pair(), prompts=[[0]])
    stream = Engine(pair, AlwaysTarget(), max_batch_size=1).stream([[0], [2] * 40], GREEDY)
    deltas = []
    with pytest.raises(NonFiniteError, match="for prompt 1 at generated token 0;"):
        deltas.extend(stream)
    assert ids([d.completion for d in deltas if d.completion]) == [expected.token_ids]


# --- logits of the draft -----------------------------------------------------------------------

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


@pytest.mark.parametrize("bad", BAD_DRAFTS)
def test_a_draft_of_non_finite_logits_leaves_the_sampled_law_exact(bad):
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
POISON = 18
"""Drafted now and then, and in no prompt and no completion of the pair below."""


def poisoned(role: str) -> tuple[list[Completion], ModelPair]:
    """What a sound pair gives, and the pair in which one model cannot read POISON."""
    target = random_model("llama")
    draft = disturbed(target, 0.12)
    sound = decode(ModelPair(target, draft), prompts=POISON_PROMPTS, sampling=POISON_SAMPLING)
    seen = {token for c in sound for token in c.prompt_ids + c.token_ids}
    drafted = {m.draft_id for c in sound for step in c.trace for m in step.mismatches}
    assert POISON in drafted - seen, "choose another token"
    models = {"target": target, "draft": draft}
    return sound, ModelPair(**models | {role: unreadable(models[role], POISON)})


@pytest.mark.parametrize("threshold", [0.0, 0.1])
def test_a_token_that_the_draft_cannot_read_leaves_the_output_exact(threshold):
    sound, pair = poisoned("draft")
    done = decode(
        pair,
        prompts=POISON_PROMPTS,
        sampling=POISON_SAMPLING,
        draft_confidence_threshold=threshold,
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


def test_a_rejected_token_that_the_draft_cannot_read_is_forgotten():
    """At most the rest of the block is lost, so that no block begins with a lost token."""
    _, pair = poisoned("draft")
    done = decode(pair, prompts=POISON_PROMPTS, sampling=POISON_SAMPLING)
    first = [m for c in done for s in c.trace for m in s.mismatches if m.block_position == 0]
    assert not any(math.isnan(m.q_draft_id) for m in first)


def test_a_prompt_that_the_target_cannot_read_is_an_error():
    """Replacing NaN keys and values by 0 would decode as if the token were not there."""
    _, pair = poisoned("target")
    prompts = [[7, 9, 11, 9, 7], [7, POISON, 9, 11]]
    engine = Engine.target_only(pair, max_batch_size=1)
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


# --- arbiters ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_scores_that_are_not_finite_rule_for_the_target_and_are_counted(
    llama_pair, sampling, value
):
    broken = FromFunction(lambda batch: Ruling(kept(batch), torch.full((len(batch),), value)))
    prompts = some_prompts(5)
    done = decode(llama_pair, broken, prompts, sampling)
    exact = decode(llama_pair, prompts=prompts, sampling=sampling)
    assert ids(done) == ids(exact)
    assert [c.origins for c in done] == [c.origins for c in exact]
    stats = total(done)
    assert stats.num_overrides == 0
    assert stats.num_non_finite_scores == stats.num_mismatches > 0
    for mismatch in (m for c in done for s in c.trace for m in s.mismatches):
        assert mismatch.veto == "non_finite" and not mismatch.keep_draft


def test_one_score_that_is_not_finite_spoils_no_other(llama_pair):
    """Scores are NaN at even positions of the text: overrides happen at odd ones only."""

    def rule(batch: MismatchBatch) -> Ruling:
        is_even = batch.positions % 2 == 0
        return Ruling(kept(batch), torch.where(is_even, NAN, 1.0))

    done = decode(llama_pair, FromFunction(rule), some_prompts(8))
    overrides = [i for c in done for i, o in enumerate(c.origins) if o is Origin.OVERRIDE]
    assert overrides and all(i % 2 for i in overrides)
    corrections = [i for c in done for i, o in enumerate(c.origins) if o is Origin.CORRECTION]
    assert total(done).num_non_finite_scores == sum(i % 2 == 0 for i in corrections)


@pytest.mark.parametrize(
    "keep",
    [
        lambda m: torch.ones(m, dtype=torch.int64),
        torch.ones,
        lambda m: torch.ones(m + 1, dtype=torch.bool),
        lambda m: torch.ones(m, 1, dtype=torch.bool),
        lambda m: torch.tensor(True),
    ],
    ids=["ints", "floats", "too many", "a column", "a scalar"],
)
def test_a_ruling_of_the_wrong_shape_or_dtype_is_refused(keep):
    broken = FromFunction(lambda batch: Ruling(keep(len(batch))))
    with pytest.raises(ArbiterError, match=r"lossless ruled .* torch\.bool of shape") as caught:
        decode(table_pair(), broken)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "answer",
    [
        lambda batch: Ruling(kept(batch), torch.ones(len(batch), 2)),
        lambda batch: Ruling(kept(batch), torch.ones(len(batch) + 1)),
        lambda batch: Ruling(kept(batch), [0.5] * len(batch)),
        lambda batch: Ruling([True] * len(batch)),
        lambda batch: None,
    ],
    ids=["wide scores", "too many scores", "a list of scores", "a list", "nothing"],
)
def test_an_answer_that_is_no_ruling_is_refused_with_a_sentence(answer):
    """Found: RuntimeError and AttributeError from inside the engine."""
    with pytest.raises(ArbiterError):
        decode(table_pair(), FromFunction(answer))


def test_what_an_arbiter_raises_comes_out_as_it_is():
    def rule(batch: MismatchBatch) -> Ruling:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        decode(table_pair(), FromFunction(rule))


@pytest.mark.parametrize("keep_trace", [True, False])
def test_an_arbiter_sees_what_it_declared_and_nothing_else(keep_trace):
    """Found: with a trace the logits of both models are there undeclared, so that an arbiter that
    forgot to declare them works until the trace is turned off.
    """
    seen = []

    def rule(batch: MismatchBatch) -> Ruling:
        seen.append((batch.target_logits, batch.draft_logits, batch.lookahead_matches))
        return Ruling(~kept(batch))

    decode(table_pair(), FromFunction(rule), keep_trace=keep_trace)
    assert seen and all(fields == (None, None, None) for fields in seen)


GAPPY = torch.tensor(
    [[0.0, 0.6, 0.4, 0.0], [0.5, 0.0, 0.0, 0.5], [0.3, 0.7, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]
)
"""Seven steps are impossible. The draft wants two of them, and two that are second best."""
WANTING = torch.tensor(
    [[0.1, 0.1, 0.7, 0.1], [0.1, 0.7, 0.1, 0.1], [0.7, 0.1, 0.1, 0.1], [0.7, 0.1, 0.1, 0.1]]
)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_token_of_target_probability_zero_is_never_emitted(sampling):
    prompts = [[i % 4] for i in range(32)]
    done = decode(table_pair(GAPPY, WANTING), AlwaysDraft(), prompts, sampling)
    for completion in done:
        path = completion.prompt_ids + completion.token_ids
        assert all(GAPPY[a, b] > 0 for a, b in itertools.pairwise(path))
    found = [m for c in done for s in c.trace for m in s.mismatches]
    forbidden = [m for m in found if m.p_draft_id == 0]
    assert forbidden and all(m.veto == "forbidden" for m in forbidden)
    allowed = [m for m in found if m.p_draft_id > 0]
    assert allowed and all(m.veto is None and m.keep_draft for m in allowed)


@pytest.mark.parametrize(
    "cut", [dict(top_p=0.6), dict(top_k=2), dict(min_p=0.4)], ids=lambda cut: next(iter(cut))
)
def test_an_override_stays_within_what_sampling_leaves(cut):
    """A token that truncation removed from the target's distribution has probability 0."""
    sampling = SamplingConfig(max_new_tokens=NUM_NEW, temperature=1.0, seed=0, **cut)
    texts = law(TARGET_TABLE, sampling).view(4, 4, 4)
    is_left = torch.stack([law(TARGET_TABLE, sampling, s).view(4, 16).sum(1) > 0 for s in range(4)])
    assert texts.sum() == pytest.approx(1) and not is_left.all()
    flat = torch.full((4, 4), 0.25)
    done = decode(table_pair(draft=flat), AlwaysDraft(), [[i % 4] for i in range(32)], sampling)
    for completion in done:
        path = completion.prompt_ids + completion.token_ids
        assert all(is_left[a, b] for a, b in itertools.pairwise(path))
    assert {m.veto for c in done for s in c.trace for m in s.mismatches} >= {"forbidden"}


CYCLE = torch.eye(4)[[1, 2, 0, 0]] * 0.9 + 0.025
"""0, 1, 2, 0, 1, ...; token 3 ends a text and is on no path."""
ENDING = torch.eye(4)[[1, 3, 0, 0]] * 0.9 + 0.025
"""0, 1, 3: the same, but the text ends after 1."""


@pytest.mark.parametrize(
    ("target", "draft", "is_allowed", "expected"),
    [
        (CYCLE, ENDING, False, [1, 2, 0, 1, 2, 0, 1, 2]),
        (CYCLE, ENDING, True, [1, 3]),
        (ENDING, CYCLE, False, [1, 3]),
        (ENDING, CYCLE, True, [1, 2, 0, 1, 2, 0, 1, 2]),
    ],
    ids=["may not end", "may end", "may not go on", "may go on"],
)
def test_an_arbiter_ends_no_text_and_prolongs_none_unless_allowed(
    target, draft, is_allowed, expected
):
    """By hand, with k = 8: no bonus token comes in between."""
    sampling = SamplingConfig(
        max_new_tokens=8, stop_token_ids=(3,), override_stop_tokens=is_allowed
    )
    pair = table_pair(target, draft)
    (done,) = decode(pair, AlwaysDraft(), [[0]], sampling, num_speculative_tokens=8)
    assert done.token_ids == expected
    vetoes = {m.veto for step in done.trace for m in step.mismatches if m.is_reached}
    assert vetoes == ({None} if is_allowed else {"stop_token"})


# --- interrupts --------------------------------------------------------------------------------


def test_an_interrupt_in_the_middle_of_a_batch_hands_over_the_finished_rows(llama_pair):
    prompts = some_prompts(6)
    sampling = [SamplingConfig(max_new_tokens=n, ignore_eos=True) for n in (40, 5, 3, 40, 40, 40)]
    whole = decode(llama_pair, prompts=prompts, sampling=sampling, max_batch_size=2)
    calls = []

    def rule(batch: MismatchBatch) -> Ruling:
        calls.append(len(batch))
        if len(calls) == 9:
            raise KeyboardInterrupt
        return Ruling(~kept(batch))

    engine = Engine(llama_pair, FromFunction(rule), max_batch_size=2)
    with pytest.raises(KeyboardInterrupt) as caught:
        engine.generate(prompts, sampling)
    error = caught.value
    assert isinstance(error, GenerationInterrupted) and not isinstance(error, Exception)
    assert error.completions == {i: whole[i] for i in (1, 2)}
    assert "2 prompts had finished" in str(error)
    assert engine.generate(prompts, sampling) == whole, "the engine is as good as new"


def test_an_interrupted_stream_raises_where_it_is_read(llama_pair):
    def rule(batch: MismatchBatch) -> Ruling:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(Engine(llama_pair, FromFunction(rule)).stream(some_prompts(2), GREEDY))


# --- pairs -------------------------------------------------------------------------------------


def drafted_ids(completion: Completion) -> set[int]:
    """All tokens that the draft is known to have proposed."""
    stood = zip(completion.token_ids, completion.origins, strict=True)
    ruled = {m.draft_id for step in completion.trace for m in step.mismatches}
    return ruled | {i for i, origin in stood if origin in (Origin.MATCH, Origin.OVERRIDE)}


@pytest.mark.parametrize("width", [40, 60, 62, 90])
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_padded_vocabularies_of_another_width_are_exact_and_in_range(llama_pair, sampling, width):
    """Greedy is the target's own; sampled and overridden stay within the target's vocabulary."""
    pair = ModelPair(llama_pair.target, random_model("llama", seed=7, vocab_size=width))
    prompts = [*some_prompts(6), [VOCAB - 1, VOCAB - 2, VOCAB - 1]]
    done = decode(pair, prompts=prompts, sampling=sampling)
    if sampling is GREEDY:
        assert ids(done) == ids(Engine.target_only(pair).generate(prompts, sampling))
    loose = decode(pair, load_arbiter("random:rate=0.7"), prompts, sampling)
    assert total(loose).num_overrides > 0
    for completion in done + loose:
        assert all(0 <= i < VOCAB for i in completion.token_ids)
        assert all(i < width for i in drafted_ids(completion))
        assert completion.stats.num_non_finite_drafts == 0


@pytest.mark.parametrize("width", [3, 7])
def test_padded_vocabularies_of_another_width_leave_the_sampled_law_exact(width):
    settings = [SETTINGS["temperature"]] * NUM_DRAWS
    draft = TableModel(random_table(width, seed=2))
    done = sample(TableModel(TARGET_TABLE), draft, settings, k=3)
    assert p_value(text_counts(done), law(TARGET_TABLE, SETTINGS["temperature"])) > FALSE_ALARM_RATE
    assert all(i < width for completion in done for i in drafted_ids(completion))


def both_ways(llama_pair: ModelPair, model: torch.nn.Module, sentence: str) -> None:
    for models in ((model, llama_pair.draft), (llama_pair.target, model)):
        with pytest.raises(UnsupportedModelError, match=sentence) as caught:
            ModelPair(*models)
        assert isinstance(caught.value, PairError)


def test_a_recurrent_model_is_refused(llama_pair):
    config = MambaConfig(vocab_size=VOCAB, hidden_size=16, state_size=4, num_hidden_layers=1)
    both_ways(llama_pair, AutoModelForCausalLM.from_config(config), "Mamba.*recurrent state")


def test_an_encoder_decoder_model_is_refused(llama_pair):
    config = T5Config(vocab_size=VOCAB, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    both_ways(llama_pair, T5ForConditionalGeneration(config), "T5.*encoder-decoder")


def test_a_model_with_layers_of_an_unknown_type_is_refused(llama_pair):
    model = copy.deepcopy(llama_pair.target)
    model.config.layer_types = ["full_attention", "chunked_attention", "linear_attention"]
    both_ways(llama_pair, model, "type chunked_attention, linear_attention; allowed are full_att")


def rope_config(family: str, rope: dict[str, Any], **settings: Any) -> Any:
    sizes = dict(hidden_size=32, num_attention_heads=4, num_hidden_layers=2, vocab_size=VOCAB)
    return AutoConfig.for_model(family, rope_parameters=rope, pad_token_id=0, **sizes | settings)


LONGROPE = dict(rope_type="longrope", rope_theta=1e4, short_factor=[1.0] * 4, long_factor=[2.0] * 4)


def test_a_rotary_scaling_that_switches_counts_up_to_the_switch():
    """Behind it all positions change, and what is cached would be of the old ones."""
    long = dict(max_position_embeddings=512)
    dynamic = dict(rope_type="dynamic", rope_theta=1e4, factor=4.0)
    yarn = dict(rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=128)
    default = dict(rope_type="default", rope_theta=1e4)
    original = dict(original_max_position_embeddings=64)
    assert context_length(rope_config("phi3", LONGROPE, **long | original)) == 64
    assert context_length(rope_config("llama", LONGROPE | original, **long)) == 64
    assert context_length(rope_config("llama", dynamic, **long)) == 512
    assert context_length(rope_config("llama", dynamic | original, **long)) == 64
    assert context_length(rope_config("llama", yarn, **long)) == 512
    assert context_length(rope_config("llama", default, **long)) == 512


def test_one_layer_type_with_a_switching_scaling_is_enough():
    nested = dict(
        full_attention=dict(
            rope_type="dynamic",
            rope_theta=1e4,
            factor=2.0,
            original_max_position_embeddings=96,
        ),
        sliding_attention=dict(rope_type="default", rope_theta=1e4),
    )
    config = rope_config("gemma3_text", nested, max_position_embeddings=512, head_dim=8)
    assert context_length(config) == 96


def test_a_model_without_a_length_limit_has_none():
    config = AutoConfig.for_model("bloom", vocab_size=VOCAB, hidden_size=32, n_layer=1, n_head=4)
    assert context_length(config) > 10**9


def test_a_prompt_beyond_the_switch_of_a_rotary_scaling_is_refused():
    config = rope_config(
        "phi3",
        LONGROPE,
        max_position_embeddings=512,
        original_max_position_embeddings=64,
        intermediate_size=64,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    pair = ModelPair(model, model)
    with pytest.raises(PromptError, match="context holds 64"):
        decode(pair, prompts=[[7] * (65 - NUM_NEW)])
    (done,) = decode(pair, prompts=[[7] * (64 - NUM_NEW)], sampling=GREEDY)
    assert len(done.token_ids) <= NUM_NEW
