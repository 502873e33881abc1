"""A draft with prompts of its own: lossless texts stay the target's, rulings see what it says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cospec import Engine, PairPrompt, SamplingConfig, load_arbiter
from cospec.drafters.chained import NgramFirst
from cospec.engine import Branch
from cospec.engine.reference import reference_decode
from cospec.errors import PromptError
from tests.conftest import FAMILIES, family_pair
from tests.laws.decoding import (
    ARBITERS,
    BOTH,
    GREEDY,
    NUM_NEW,
    PROMPTS,
    SHARING,
    assert_it_rules,
    expected_ids,
)

OWN = [prompt[: 1 + i % 3] if i % 2 else [9, 8, 7, *prompt, 5] for i, prompt in enumerate(PROMPTS)]
"""Shorter and longer than the target's, with other last tokens."""
OWNS = [OWN, SHARING[::-1], PROMPTS]
TWO = [PairPrompt(prompt, own) for prompt, own in zip(PROMPTS, OWN, strict=True)]


@pytest.mark.parametrize("family", FAMILIES)
def test_lossless_texts_stay_the_targets(family):
    pair = family_pair(family)
    expected = [expected_ids(family, prompt) for prompt in PROMPTS[:4]]
    engine = Engine(pair, load_arbiter("lossless"), num_speculative_tokens=4, batch_size=3)
    done = engine.generate(TWO[:4], GREEDY)
    assert [c.token_ids for c in done] == expected


WAYS = [
    {"num_speculative_tokens": 1, "batch_size": 1},
    {"num_speculative_tokens": 8, "batch_size": 8, "draft_confidence_threshold": 0.25},
    {"drafter": "ngram+model", "batch_size": 3},
    {"drafter": "suffix+model", "batch_size": 2},
    {"cascade": True, "batch_size": 2},
    {"num_speculative_tokens": 32, "end_blocks_at_stop": True, "max_corrections": 1},
    {"enable_prefix_caching": True, "batch_size": 2},
]


@pytest.mark.parametrize(("turn", "options"), list(enumerate(WAYS)))
def test_so_they_do_however_is_drafted(turn, options):
    """Each way meets the target's prompts with the draft's in turns; kept caches meet all."""
    engine = Engine(family_pair("llama"), load_arbiter("lossless"), **options)
    most = 3 if options.get("batch_size") == 1 else 4
    calls = [PROMPTS, SHARING, *[SHARING] * options.get("enable_prefix_caching", False)]
    for i, prompts in enumerate(calls, turn):
        done = engine.generate(list(map(PairPrompt, prompts, OWNS[i % 3]))[-most:], GREEDY)
        assert [c.token_ids for c in done] == [expected_ids("llama", p) for p in prompts[-most:]]


@pytest.mark.usefixtures("texts_are_read_once")
@pytest.mark.parametrize(
    ("arbiter", "sampling"),
    [(arbiter, list(BOTH)[(i + 1) % 2]) for i, arbiter in enumerate(ARBITERS)],
)
def test_the_engine_agrees_with_the_reference_decoder(arbiter, sampling):
    pair = family_pair("llama")
    sampling = [replace(one, max_new_tokens=16) for one in BOTH[sampling]]
    engine = Engine(pair, load_arbiter(arbiter), num_speculative_tokens=4, batch_size=3)
    done = engine.generate(TWO, sampling)
    expected = [
        reference_decode(
            pair,
            load_arbiter(arbiter),
            prompt,
            config,
            num_speculative_tokens=4,
            draft_prompt_ids=own,
            index=i,
        )
        for i, (prompt, config, own) in enumerate(zip(PROMPTS, sampling, OWN, strict=True))
    ]
    assert [(c.token_ids, c.origins) for c in done] == expected
    assert_it_rules(arbiter, done)


@pytest.mark.usefixtures("texts_are_read_once")
def test_branches_go_on_with_the_drafts_prompt():
    """A branch is what a reader of the same texts, prompts and all, makes of them."""
    pair, arbiter = family_pair("llama"), load_arbiter("gap:max_gap=1")
    engine = Engine(pair, arbiter, num_speculative_tokens=4, batch_size=3)
    sampling = SamplingConfig(max_new_tokens=NUM_NEW, ignore_eos=True, seed=0)
    left = engine.rollouts(TWO[:4], sampling)

    def same_again(rollouts, place):
        given = [(one, one.completion.token_ids, one.completion.origins) for one in rollouts]
        return [Branch(one, place, ids[place], origins[place]) for one, ids, origins in given]

    ends = engine.branches(same_again(left, 5), keep_caches=True)
    for some, place in ((ends, 5), (engine.branches(same_again(ends, 9)), 9)):
        for one, prompt, own in zip(some, PROMPTS[:4], OWN[:4], strict=True):
            ids = one.completion.token_ids
            rest, _ = reference_decode(
                pair,
                arbiter,
                [*prompt, *ids[: place + 1]],
                replace(sampling, max_new_tokens=NUM_NEW - place - 1),
                num_speculative_tokens=4,
                draft_prompt_ids=[*own, *ids[: place + 1]],
            )
            assert ids[place + 1 :] == rest
    without = engine.rollouts(PROMPTS[:4], sampling)
    assert [r.completion.token_ids for r in left] != [r.completion.token_ids for r in without]


def test_a_search_before_the_model_forgets_by_the_drafts_own_prompt(monkeypatch):
    """Else tokens that were rejected stay read where a search drafts the next blocks."""
    propose, forget, told = NgramFirst.propose, NgramFirst.forget_drafted, []

    def noted(self, row, length):
        told.append(length)
        forget(self, row, length)

    def checked(self, rows, chance):
        wanted = [len(row.drafted) - 1 for row in rows]
        told.clear()
        found = propose(self, rows, chance)
        assert told[: len(rows)] == wanted
        return found

    monkeypatch.setattr(NgramFirst, "forget_drafted", noted)
    monkeypatch.setattr(NgramFirst, "propose", checked)
    engine = Engine(family_pair("llama"), load_arbiter("lossless"), drafter="ngram+model")
    engine.generate(TWO, GREEDY)


def test_who_has_one_prompt_reads_one():
    pair = family_pair("llama")
    searching = Engine(pair, load_arbiter("lossless"), drafter="ngram")
    for engine, prompts in (
        (searching, PROMPTS[:3]),
        (Engine.target_only(pair), PROMPTS[:3]),
        (Engine.draft_only(pair), OWN[:3]),
    ):
        done = engine.generate(TWO[:3], GREEDY)
        assert [one.prompt_ids for one in done] == prompts
        assert [one.token_ids for one in done] == [
            one.token_ids for one in engine.generate(prompts, GREEDY)
        ]


def test_a_stream_reads_both_prompts():
    engine = Engine(family_pair("llama"), load_arbiter("gap:max_gap=1"), batch_size=2)
    ends = {d.index: d.completion for d in engine.stream(TWO[:3], GREEDY) if d.completion}
    done = engine.generate(TWO[:3], GREEDY)
    assert [ends[i].token_ids for i in range(3)] == [one.token_ids for one in done]


def test_a_prompt_that_the_draft_cannot_read_is_refused():
    engine = Engine(family_pair("llama"), load_arbiter("lossless"))
    with pytest.raises(PromptError, match="prompt 1 is empty"):
        engine.generate([TWO[0], PairPrompt(PROMPTS[0], [])], GREEDY)
