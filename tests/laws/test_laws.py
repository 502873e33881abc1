"""The laws of the engine, in float32: lossless is exact, and nothing else leaks between rows."""

from __future__ import annotations

import pytest
import torch

from cospec import Engine, SamplingConfig, load_arbiter
from cospec.arbiters import AlwaysDraft, AlwaysTarget
from cospec.config import DecodeConfig
from cospec.drafters import ModelDrafter
from cospec.engine.reference import reference_decode
from cospec.engine.rows import Row
from cospec.engine.speculative import SpeculativeBatch
from cospec.evaluation.audit.auditor import reached
from cospec.models import ModelPair
from cospec.models.cache import CachedModel
from cospec.models.prefill import plan_prefill
from cospec.types import Completion, Needs, Origin, Ruling, Stats
from tests.conftest import EOS, FAMILIES, VOCAB, family_pair, some_prompts

NUM_NEW = 30
PROMPTS = some_prompts(8)
SHARING = [[*range(6, 30), *prompt] for prompt in PROMPTS]
"""Prompts with the same beginning, as a system prompt makes them."""
GREEDY = SamplingConfig(max_new_tokens=NUM_NEW, seed=0)
UNSURE = 0.25
"""A quarter of what the drafts of these pairs propose is less probable to them."""
ARBITERS = [
    "lossless",
    "always_draft",
    "random:rate=0.4",
    "gap:max_gap=2",
    "fly:window=2,min_entropy=0.1",
]


def expected_ids(pair: ModelPair, prompt: list[int], **settings: object) -> list[int]:
    """What transformers generates with the target alone."""
    output = pair.target.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        **{"max_new_tokens": NUM_NEW, "do_sample": False} | settings,
    )
    return output[0, len(prompt) :].tolist()


def decode(
    pair: ModelPair, arbiter: str, k: int, batch: int, threshold: float = 0.0, **kwargs: object
) -> list[Completion]:
    engine = Engine(
        pair,
        load_arbiter(arbiter),
        num_speculative_tokens=k,
        batch_size=batch,
        draft_confidence_threshold=threshold,
    )
    return engine.generate(**{"prompts": PROMPTS, "sampling": GREEDY} | kwargs)


@pytest.fixture(scope="module", params=FAMILIES)
def pair_and_expected(request: pytest.FixtureRequest) -> tuple[ModelPair, list[list[int]]]:
    pair = family_pair(request.param)
    return pair, [expected_ids(pair, prompt) for prompt in PROMPTS]


@pytest.mark.parametrize(("k", "batch"), [(1, 8), (2, 3), (4, 1), (4, 8), (8, 3)])
def test_lossless_greedy_output_is_what_transformers_generates(pair_and_expected, k, batch):
    pair, expected = pair_and_expected
    done = decode(pair, "lossless", k, batch)
    assert [c.token_ids for c in done] == expected
    stats = sum((c.stats for c in done), Stats())
    assert stats.num_overrides == 0
    assert stats.num_tokens == sum(map(len, expected))
    assert 1.1 < stats.mean_acceptance_length < k + 1, "the pair should agree now and then"


@pytest.mark.parametrize(("k", "batch"), [(1, 3), (4, 8), (8, 1)])
@pytest.mark.parametrize("threshold", [UNSURE, 1.0], ids=["unsure", "any"])
def test_lossless_stays_exact_where_the_draft_stops_early(pair_and_expected, k, batch, threshold):
    pair, expected = pair_and_expected
    done = decode(pair, "lossless", k, batch, threshold)
    assert [c.token_ids for c in done] == expected
    stats = sum((c.stats for c in done), Stats())
    assert stats.num_tokens == sum(map(len, expected))
    lengths = [step.num_draft_tokens for c in done for step in c.trace]
    assert stats.num_draft_forwards == stats.num_draft_tokens == sum(lengths)
    if threshold == 1:
        assert set(lengths) == {1}, "no token is certain"
    elif k > 1:
        assert len(set(lengths)) > 1 and max(lengths) <= k
    assert stats.mean_acceptance_length > 1.1


def test_plain_decoding_is_what_transformers_generates(pair_and_expected):
    pair, expected = pair_and_expected
    done = Engine.target_only(pair, batch_size=3).generate(PROMPTS, GREEDY)
    assert [c.token_ids for c in done] == expected
    assert all(set(c.origins) == {Origin.BONUS} for c in done)
    assert all(c.stats.num_target_forwards == len(c.token_ids) for c in done)


@pytest.mark.parametrize("num_new", [1, 2, 5, 17])
def test_lossless_stops_at_any_length(llama_pair, num_new):
    done = decode(llama_pair, "lossless", 4, 3, sampling=SamplingConfig(max_new_tokens=num_new))
    expected = [expected_ids(llama_pair, p, max_new_tokens=num_new) for p in PROMPTS]
    assert [c.token_ids for c in done] == expected


@pytest.mark.parametrize("k", [1, 4])
def test_lossless_stops_at_the_given_stop_tokens(llama_pair, k):
    free = [expected_ids(llama_pair, p) for p in PROMPTS]
    stops = (free[1][4], free[2][9])
    done = decode(
        llama_pair,
        "lossless",
        k,
        3,
        sampling=SamplingConfig(max_new_tokens=NUM_NEW, stop_token_ids=stops),
    )
    eos = [EOS, *stops]
    assert [c.token_ids for c in done] == [
        expected_ids(llama_pair, p, eos_token_id=eos) for p in PROMPTS
    ]
    assert {c.finish_reason for c in done} == {"stop", "length"}


def test_ignoring_end_of_sequence_runs_to_the_length(llama_pair):
    sampling = SamplingConfig(max_new_tokens=NUM_NEW, ignore_eos=True)
    done = decode(llama_pair, "lossless", 4, 3, sampling=sampling)
    expected = [expected_ids(llama_pair, p, eos_token_id=-1) for p in PROMPTS]
    assert [c.token_ids for c in done] == expected
    assert any(EOS in c.token_ids for c in done), "no text reached end-of-sequence: choose others"


@pytest.mark.parametrize("k", [1, 3, 8])
def test_lossless_stops_where_transformers_finds_a_stop_string(llama_pair, tokenizer, k):
    pair = ModelPair(llama_pair.target, llama_pair.draft, tokenizer)
    full = [c.text for c in decode(pair, "lossless", 4, 8)]
    stops = (full[0][9:12], full[3][14:15], full[2][20:22])
    sampling = SamplingConfig(max_new_tokens=NUM_NEW, stop=stops)
    done = decode(pair, "lossless", k, 3, sampling=sampling)
    for completion, prompt, text in zip(done, PROMPTS, full, strict=True):
        expected = expected_ids(pair, prompt, stop_strings=list(stops), tokenizer=tokenizer)
        assert completion.token_ids == expected
        cut = min((text.find(s) for s in stops if s in text), default=len(text))
        assert completion.text == text[:cut]


def test_a_prompt_may_fill_the_context_to_the_last_position():
    for family in ("llama", "gpt2", "opt"):
        pair = family_pair(family)
        prompt = (some_prompts(8)[2] * 10)[: pair.context_length - 6]
        sampling = SamplingConfig(max_new_tokens=6, ignore_eos=True)
        (done,) = decode(pair, "lossless", 8, 1, prompts=[prompt], sampling=sampling)
        assert done.token_ids == expected_ids(pair, prompt, max_new_tokens=6, eos_token_id=-1)


def test_always_draft_emits_the_drafts_own_choices(pair_and_expected):
    pair, _ = pair_and_expected
    sampling = SamplingConfig(max_new_tokens=NUM_NEW, override_stop_tokens=True)
    done = decode(pair, "always_draft", 4, 3, sampling=sampling)
    assert any(Origin.OVERRIDE in c.origins for c in done)
    for completion in done:
        ids = completion.prompt_ids + completion.token_ids
        with torch.inference_mode():
            choice = pair.draft(torch.tensor([ids]), use_cache=False).logits[0].argmax(-1).tolist()
        start = len(completion.prompt_ids)
        assert len(completion.origins) == len(completion.token_ids)
        for i, origin in enumerate(completion.origins, start):
            assert origin is not Origin.CORRECTION
            if origin is not Origin.BONUS:
                assert ids[i] == choice[i - 1]


SAMPLED = [
    SamplingConfig(max_new_tokens=NUM_NEW, temperature=t, top_p=p, top_k=k, min_p=m, seed=s)
    for t, p, k, m, s in [
        (1.0, 1.0, 0, 0.0, 0),
        (0.7, 0.9, 0, 0.0, 1),
        (0.0, 1.0, 0, 0.0, 2),
        (1.3, 1.0, 9, 0.0, 3),
        (1.0, 1.0, 0, 0.1, 4),
        (0.9, 0.8, 12, 0.05, 5),
        (1.0, 1.0, 0, 0.0, 6),
        (0.0, 1.0, 0, 0.0, 7),
    ]
]


@pytest.mark.parametrize("arbiter", ARBITERS)
@pytest.mark.parametrize("family", ["llama", "gemma2", "opt"])
@pytest.mark.parametrize("sampling", [[GREEDY] * 8, SAMPLED], ids=["greedy", "sampled"])
def test_the_engine_agrees_with_the_reference_decoder(family, arbiter, sampling):
    pair = family_pair(family)
    done = decode(pair, arbiter, 4, 3, sampling=sampling)
    for i, (prompt, config) in enumerate(zip(PROMPTS, sampling, strict=True)):
        expected = reference_decode(
            pair, load_arbiter(arbiter), prompt, config, num_speculative_tokens=4, index=i
        )
        assert (done[i].token_ids, done[i].origins) == expected


@pytest.mark.parametrize("arbiter", ARBITERS)
@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("sampling", [[GREEDY] * 8, SAMPLED], ids=["greedy", "sampled"])
def test_and_does_where_the_draft_stops_early(family, arbiter, sampling):
    """Each row stops for itself: no row knows how long the others' blocks are."""
    pair = family_pair(family)
    expected = [
        reference_decode(
            pair,
            load_arbiter(arbiter),
            prompt,
            config,
            num_speculative_tokens=5,
            draft_confidence_threshold=UNSURE,
            index=i,
        )
        for i, (prompt, config) in enumerate(zip(PROMPTS, sampling, strict=True))
    ]
    for batch in (1, 3, 8):
        done = decode(pair, arbiter, 5, batch, UNSURE, sampling=sampling)
        assert [(c.token_ids, c.origins) for c in done] == expected
        lengths = [step.num_draft_tokens for c in done for step in c.trace]
        assert min(lengths) < max(lengths)


class Seeing:
    """Rules by everything that there is to see, and tells what that was."""

    name, needs = "seeing", Needs.LOGITS | Needs.LOOKAHEAD | Needs.HIDDEN

    def rule(self, batch):
        ahead = batch.lookahead_matches.sum(dim=1), batch.lookahead_log_p.sum(dim=1)
        states = batch.target_hidden, batch.target_hidden_after, batch.draft_hidden
        seen = [batch.block_lengths, batch.block_positions, *ahead, *(s.sum(1) for s in states)]
        features = torch.stack([number.double() for number in seen], dim=1)
        return Ruling(ahead[0] % 2 == 1, features[:, 3], features)


@pytest.mark.parametrize("sampling", [[GREEDY] * 8, SAMPLED], ids=["greedy", "sampled"])
def test_an_arbiter_sees_of_a_row_that_stops_early_what_it_sees_of_it_alone(llama_pair, sampling):
    settings = dict(num_speculative_tokens=5, draft_confidence_threshold=UNSURE)
    together, alone = (
        Engine(llama_pair, Seeing(), batch_size=size, **settings).generate(PROMPTS, sampling)
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


class Counting:
    """Rules by how many mismatches a text has had, and says so."""

    name, needs = "counting", Needs.NOTHING

    def rule(self, batch):
        return Ruling(batch.num_mismatches % 3 != 1, batch.num_mismatches.double())


@pytest.mark.parametrize("sampling", [[GREEDY] * 8, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("k", [1, 4, 8])
def test_an_arbiter_is_told_how_many_mismatches_a_text_has_had(llama_pair, k, sampling):
    engine = Engine(llama_pair, Counting(), num_speculative_tokens=k, batch_size=3)
    done = engine.generate(PROMPTS, sampling)
    for i, (prompt, config) in enumerate(zip(PROMPTS, sampling, strict=True)):
        told = [m.score for m in reached(done[i])]
        assert told == list(range(len(told)))
        expected = reference_decode(
            llama_pair, Counting(), prompt, config, num_speculative_tokens=k, index=i
        )
        assert (done[i].token_ids, done[i].origins) == expected
    assert sum(len(reached(c)) for c in done) > 20


@pytest.mark.parametrize(
    ("family", "arbiter"),
    [
        *((family, "random:rate=0.4") for family in FAMILIES),
        *(("llama", arbiter) for arbiter in ARBITERS if arbiter != "random:rate=0.4"),
    ],
)
@pytest.mark.parametrize("sampling", [[GREEDY] * 8, SAMPLED], ids=["greedy", "sampled"])
def test_a_batch_gives_what_each_prompt_gives_alone(family, arbiter, sampling):
    """Every family with an arbiter that keeps some tokens, and every arbiter with one family."""
    pair = family_pair(family)
    together = decode(pair, arbiter, 4, 8, sampling=sampling)
    in_turn = decode(pair, arbiter, 4, 1, sampling=sampling)
    assert [c.token_ids for c in together] == [c.token_ids for c in in_turn]
    assert [c.origins for c in together] == [c.origins for c in in_turn]


def test_admission_order_changes_nothing(llama_pair):
    order = [5, 2, 7, 0, 3, 6, 1, 4]
    done = decode(llama_pair, "gap:max_gap=2", 4, 3)
    shuffled = decode(llama_pair, "gap:max_gap=2", 4, 3, prompts=[PROMPTS[i] for i in order])
    assert [c.token_ids for c in shuffled] == [done[i].token_ids for i in order]


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_completions_come_back_in_the_order_of_the_prompts(llama_pair, batch):
    engine = Engine(llama_pair, AlwaysTarget(), batch_size=batch)
    rollouts = [rollout.completion for rollout in engine.rollouts(PROMPTS, GREEDY)]
    for done in (engine.generate(PROMPTS, GREEDY), rollouts):
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
    assert orders["stream"] == list(range(9))
    assert orders["generate"] == orders["rollouts"] == [2, 7, 4, 6, 1, 8, 3, 5, 0]


@pytest.mark.parametrize("sampling", [[GREEDY] * 8, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("stop", [(), ("e", "th")])
def test_streaming_equals_not_streaming(llama_pair, tokenizer, sampling, stop):
    pair = ModelPair(llama_pair.target, llama_pair.draft, tokenizer)
    sampling = [SamplingConfig.from_dict(s.to_dict() | {"stop": stop}) for s in sampling]
    engine = Engine(pair, AlwaysTarget(), batch_size=3, keep_trace=False)
    done = engine.generate(PROMPTS, sampling)  # other rows beside each: traces differ by rounding
    texts, ids, origins = [""] * 8, [[] for _ in range(8)], [[] for _ in range(8)]
    finished = {}
    for delta in engine.stream(PROMPTS, sampling):
        assert delta.index not in finished, "nothing may follow the completion"
        texts[delta.index] += delta.text
        ids[delta.index] += delta.token_ids
        origins[delta.index] += delta.origins
        if delta.completion:
            finished[delta.index] = delta.completion
    assert [finished[i] for i in range(8)] == done
    assert texts == [c.text for c in done]
    assert ids == [c.token_ids for c in done]
    assert origins == [c.origins for c in done]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("arbiter", ["lossless", "random:rate=0.5"])
@pytest.mark.parametrize("prompts", [PROMPTS, SHARING], ids=["apart", "sharing"])
def test_after_any_step_both_caches_equal_a_fresh_prefill(family, arbiter, prompts):
    pair = family_pair(family)
    config, ruler = DecodeConfig(4, keep_trace=False), load_arbiter(arbiter)
    drafter = ModelDrafter(pair, config, ruler.needs)
    batch = SpeculativeBatch(pair, ruler, drafter, config)
    waiting = [Row(i, p, GREEDY, frozenset({EOS}), None) for i, p in enumerate(prompts)]
    batch.admit([waiting.pop() for _ in range(4)])
    while batch.rows:
        batch.step()
        batch.drop_finished()
        while waiting and len(batch.rows) < 4:
            batch.admit([waiting.pop()])
        for cached in batch._stores:
            for r, row in enumerate(batch.rows):
                lags = cached is drafter and row.origins[-1:] == [Origin.BONUS]
                num_live = len(row) - 1 - lags
                tokens = (row.prompt_ids + row.generated)[:num_live]
                assert_strip_equals_prefill(cached, r, tokens)


@pytest.mark.parametrize("batch", [1, 3, 9])
def test_prompts_that_begin_alike_are_read_once_and_lossless_stays_exact(llama_pair, batch):
    prompts = [*SHARING, SHARING[0]]
    widths = []
    hook = llama_pair.target.register_forward_pre_hook(
        lambda _, args, kwargs: widths.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    done = decode(llama_pair, "lossless", 4, batch, prompts=prompts)
    hook.remove()
    assert [c.token_ids for c in done] == [expected_ids(llama_pair, p) for p in prompts]
    num_whole = sum(width > 24 for _, width in widths)
    assert num_whole == (sum(len(p) - 1 > 24 for p in prompts) if batch == 1 else 0)
    if batch == 9:
        assert widths[0] == (1, 24)
        assert widths[1][0] < 9 and widths[1][1] == max(map(len, PROMPTS)) - 1, "twins are copied"


@pytest.mark.parametrize("batch", [3, 9])
def test_a_prompt_that_begins_otherwise_is_exact_beside_those_that_share(llama_pair, batch):
    prompts = [*SHARING, [7, *SHARING[1]]]
    done = decode(llama_pair, "lossless", 4, batch, prompts=prompts)
    assert [c.token_ids for c in done] == [expected_ids(llama_pair, p) for p in prompts]


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_share_hold_what_reading_them_alone_would_store(family):
    model = family_pair(family).target
    generator = torch.Generator().manual_seed(3)
    first, second, *ends = torch.randint(6, VOCAB, (4, 70), generator=generator).tolist()
    held = first[:20] + ends[0]
    longer = [first + second[:30] + end for end in ends]  # share more than with row 0, and the rest
    apart = [second + ends[0], second + ends[1][:1]]  # shares with each other alone
    both = [longer[1], apart[1], held[:30] + ends[1], longer[0], ends[1], apart[0], longer[0], [7]]
    for prompts in (longer, apart, both):
        cached = CachedModel(model)
        cached.reserve(9, 180)
        with torch.inference_mode():
            cached.prefill([held], 0)
            cached.prefill(prompts, 1, [held])
        for r, tokens in enumerate([held, *prompts]):
            assert_strip_equals_prefill(cached, r, tokens)


def test_a_plan_reads_the_fewest_tokens():
    a, b, c = ([i] * 40 for i in (1, 2, 3))
    prompts = [[*a, 4], [*b, 5], c, [*a, 6, 7], [*b, 8], [*a, 6, 9]]
    plan = {tuple(sorted(g.places)): g for g in plan_prefill(prompts, [[9] * 50, b[:30]])}
    assert set(plan) == {(0, 3, 5), (1, 4), (2,)}
    assert plan[0, 3, 5][1:] == (40, 0, 0)
    assert plan[1, 4][1:] == (40, 1, 30)
    assert plan[2,][1:] == (40, 0, 0)


def assert_strip_equals_prefill(cached, r, tokens):
    if not tokens:
        return
    fresh = CachedModel(cached.model)
    fresh.reserve(1, len(tokens))
    with torch.inference_mode():
        fresh.prefill([tokens], 0)
    for ours, theirs in zip(cached._cache.buffers, fresh._cache.buffers, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(
                a[r, : len(tokens)], b[0, : len(tokens)], rtol=1e-3, atol=1e-4
            )


def test_every_token_and_mismatch_is_accounted_for(pair_and_expected):
    pair, _ = pair_and_expected
    for completion in decode(pair, "random:rate=0.5", 4, 3):
        stats, origins = completion.stats, completion.origins
        assert stats.num_tokens == len(completion.token_ids) == len(origins)
        assert stats.num_strict_accepts == origins.count(Origin.MATCH)
        assert stats.num_overrides == origins.count(Origin.OVERRIDE)
        assert stats.num_drafts == len(completion.trace)
        assert stats.num_draft_tokens == 4 * stats.num_drafts
        assert sum(stats.num_accepted_tokens_per_pos) == stats.num_accepted_tokens
        reached = [m for step in completion.trace for m in step.mismatches if m.is_reached]
        assert stats.num_mismatches == len(reached)
        for m in reached:
            is_override = origins[m.position] is Origin.OVERRIDE
            assert m.keep_draft == is_override
            kept = m.draft_id if is_override else m.target_id
            assert completion.token_ids[m.position] == kept
            assert 0 < m.p_draft_id <= m.p_target_id <= 1, "greedy: the target's is its argmax"
            assert 0 < m.q_target_id <= m.q_draft_id <= 1


def test_a_trace_changes_no_token(llama_pair):
    plain = Engine(llama_pair, AlwaysDraft(), keep_trace=False).generate(PROMPTS, GREEDY)
    traced = Engine(llama_pair, AlwaysDraft()).generate(PROMPTS, GREEDY)
    assert [c.token_ids for c in plain] == [c.token_ids for c in traced]
    assert not any(c.trace for c in plain)


def test_trace_probabilities_are_those_of_the_models(llama_pair):
    (done,) = decode(llama_pair, "gap:max_gap=1", 4, 1, prompts=PROMPTS[2:3])
    ids = done.prompt_ids + done.token_ids
    with torch.inference_mode():
        p, q = (
            m(torch.tensor([ids]), use_cache=False).logits[0].softmax(-1)
            for m in (llama_pair.target, llama_pair.draft)
        )
    reached = [m for step in done.trace for m in step.mismatches if m.is_reached]
    assert len(reached) > 3
    for m in reached:
        at = len(done.prompt_ids) + m.position - 1
        seen = [m.p_draft_id, m.p_target_id, m.q_draft_id, m.q_target_id]
        expected = [p[at, m.draft_id], p[at, m.target_id], q[at, m.draft_id], q[at, m.target_id]]
        assert seen == pytest.approx([float(x) for x in expected], rel=1e-4)


def test_an_arbiter_gets_the_hidden_states_it_asks_for(llama_pair):
    seen = []

    class Spy(AlwaysTarget):
        needs = Needs.HIDDEN | Needs.LOGITS

        def rule(self, batch):
            seen.append(batch)
            return super().rule(batch)

    Engine(llama_pair, Spy(), batch_size=3).generate(PROMPTS, GREEDY)
    heads = llama_pair.target.lm_head, llama_pair.draft.lm_head
    for batch in seen:
        with torch.inference_mode():
            torch.testing.assert_close(heads[0](batch.target_hidden), batch.target_logits)
            torch.testing.assert_close(heads[1](batch.draft_hidden), batch.draft_logits)
        assert batch.target_hidden_after.shape == batch.target_hidden.shape
        assert batch.lookahead_matches is None, "only what was asked for"
        assert batch.target_logits.shape == (len(batch), VOCAB)


def test_the_exact_prefix_equals_the_target(llama_pair):
    exact = decode(llama_pair, "lossless", 4, 3)
    sampling = SamplingConfig(max_new_tokens=NUM_NEW, exact_prefix_tokens=11)
    prefixed = decode(llama_pair, "always_draft", 4, 3, sampling=sampling)
    for a, b in zip(exact, prefixed, strict=True):
        assert a.token_ids[:11] == b.token_ids[:11]
        assert Origin.OVERRIDE not in b.origins[:11]
    assert any(Origin.OVERRIDE in c.origins for c in prefixed)


def test_stop_tokens_are_overridden_only_when_allowed(llama_pair):
    """An arbiter may neither end a text nor keep it from ending unless the settings say so."""

    def vetoes(override_stop_tokens: bool) -> set[str | None]:
        sampling = SamplingConfig(
            max_new_tokens=60,
            stop_token_ids=tuple(range(20)),
            override_stop_tokens=override_stop_tokens,
        )
        done = decode(llama_pair, "always_draft", 4, 3, sampling=sampling)
        return {m.veto for c in done for step in c.trace for m in step.mismatches}

    assert vetoes(False) == {None, "stop_token"}
    assert vetoes(True) == {None}
