"""Branches: what leaves a rollout goes on as if the whole text had been read afresh."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from cospec.arbiters import load_arbiter
from cospec.config import SamplingConfig
from cospec.engine import Branch, Engine, Rollout
from cospec.engine.branches import branch_row
from cospec.engine.prompts import make_row
from cospec.errors import ConfigError, PromptError
from cospec.types import Completion, Origin
from tests.conftest import CONTEXT, EOS, VOCAB, family_pair, some_prompts

if TYPE_CHECKING:
    from cospec.models import ModelPair

CONFIG = SamplingConfig(max_new_tokens=24)


def lossless(pair: ModelPair) -> Engine:
    return Engine(pair, load_arbiter("lossless"))


def mismatches(completion: Completion) -> list[tuple[int, int, int]]:
    """(Position, the draft's token, the target's token) of the mismatches that were reached."""
    return [
        (m.position, m.draft_id, m.target_id)
        for step in completion.trace
        for m in step.mismatches
        if m.is_reached
    ]


def read_afresh(engine: Engine, places: list[tuple[Rollout, int, int]]) -> list[list[int]]:
    """The completions from prompts that hold all that each branch shares, decoded in one batch."""
    kept = [[*r.completion.token_ids[:position], token] for r, position, token in places]
    rooms = [CONFIG.max_new_tokens - len(ids) for ids in kept]
    is_open = [ids[-1] != EOS and room > 0 for ids, room in zip(kept, rooms, strict=True)]
    prompts = [
        [*place[0].completion.prompt_ids, *ids] for place, ids in zip(places, kept, strict=True)
    ]
    done = engine.generate(
        list(itertools.compress(prompts, is_open)),
        [SamplingConfig(max_new_tokens=room) for room in itertools.compress(rooms, is_open)],
    )
    more = iter(done)
    return [
        ids + next(more).token_ids if opened else ids
        for ids, opened in zip(kept, is_open, strict=True)
    ]


@pytest.mark.parametrize(
    ("family", "batch_size", "num_prompts"), [("llama", 5, 4), ("gemma2", 1, 2), ("gpt2", 5, 4)]
)
def test_a_branch_continues_as_the_target_alone_would(
    family: str, batch_size: int, num_prompts: int
) -> None:
    pair = family_pair(family)
    engine = Engine(pair, load_arbiter("lossless"), batch_size=batch_size)
    rollouts = engine.rollouts(some_prompts(num_prompts), CONFIG)
    places = [(r, *m) for r in rollouts for m in mismatches(r.completion)]
    assert len(places) > 10
    done = engine.branches([Branch(r, position, draft) for r, position, draft, _ in places])
    afresh = read_afresh(Engine.target_only(pair, batch_size=64), [place[:3] for place in places])
    for (rollout, position, *_), branch, expected in zip(places, done, afresh, strict=True):
        completion = branch.completion
        assert completion.token_ids == expected
        assert completion.origins[:position] == rollout.completion.origins[:position]
        assert completion.origins[position] is Origin.OVERRIDE
        assert branch.caches is None


def test_the_targets_own_token_leads_back_to_the_rollout_at_every_place() -> None:
    pair = family_pair("llama")
    engine = Engine(pair, load_arbiter("lossless"), batch_size=12)
    (rollout,) = engine.rollouts(some_prompts(1), CONFIG)
    ids = rollout.completion.token_ids
    places = [Branch(rollout, i, ids[i], Origin.CORRECTION) for i in range(len(ids))]
    for branch in engine.branches(places):
        assert branch.completion.token_ids == ids


def test_a_branch_of_a_branch_under_a_rule_is_what_the_rule_makes_of_the_whole_prefix() -> None:
    pair = family_pair("qwen2")
    first = Engine(pair, load_arbiter("lossless"), batch_size=3)
    rollouts = first.rollouts(some_prompts(3), CONFIG)
    starts = [Branch(r, *mismatches(r.completion)[0][:2]) for r in rollouts]
    branches = first.branches(starts, keep_caches=True)
    places = [(b, *m[:2]) for b in branches for m in mismatches(b.completion)[::2]]
    engine = Engine(pair, load_arbiter("always_draft"), batch_size=4)
    done = engine.branches([Branch(*place) for place in places])
    assert any(r.completion.origins.count(Origin.OVERRIDE) > 2 for r in done)
    assert [branch.completion.token_ids for branch in done] == read_afresh(engine, places)


def test_the_draft_reads_what_it_lags_behind_before_it_goes_on() -> None:
    """A rollout that stops at a bonus token leaves the draft one token short.

    Under always_draft a hole in the draft's cache shows in the output.
    """
    engine = Engine(family_pair("llama"), load_arbiter("always_draft"))
    num_tried = 0
    for prompt in some_prompts(8):
        if num_tried > 4:
            break
        (whole,) = engine.generate([prompt], replace(CONFIG, override_stop_tokens=True))
        for position, origin in enumerate(whole.origins):
            stop = whole.token_ids[position]
            if origin is not Origin.BONUS or stop in whole.token_ids[:position]:
                continue
            config = replace(CONFIG, override_stop_tokens=True, stop_token_ids=(stop,))
            (rollout,) = engine.rollouts([prompt], config)
            other = 7 if stop != 7 else 8
            assert len(rollout.completion.token_ids) == position + 1
            (branch,) = engine.branches([Branch(rollout, position, other)])
            kept = [*whole.token_ids[:position], other]
            config = replace(config, max_new_tokens=24 - len(kept))
            (more,) = engine.generate([prompt + kept], config)
            assert branch.completion.token_ids == kept + more.token_ids
            num_tried += 1
    assert num_tried > 3


@pytest.mark.parametrize("make", [Engine.target_only, lossless])
def test_a_branch_that_the_context_does_not_hold_is_refused(make) -> None:
    """Found: positions past the end were read as the last one, and the text went on."""
    engine = make(family_pair("llama"))
    (rollout,) = engine.rollouts(some_prompts(1), CONFIG)
    longer = replace(rollout, config=SamplingConfig(max_new_tokens=2 * CONTEXT))
    with pytest.raises(PromptError, match=f"the context holds {CONTEXT}"):
        engine.branches([Branch(longer, 3, 7)])


def test_a_branch_into_the_end_of_the_text_is_finished_at_once() -> None:
    engine = Engine(family_pair("llama"), load_arbiter("lossless"))
    (rollout,) = engine.rollouts(some_prompts(1), CONFIG)
    (branch,) = engine.branches([Branch(rollout, 2, EOS)])
    assert branch.completion.token_ids == [*rollout.completion.token_ids[:2], EOS]
    assert branch.completion.stats.num_drafts == 0
    assert branch.completion.stats.num_tokens == len(branch.completion.token_ids) > 1


def test_a_branch_behind_the_longest_text_ends_with_its_token() -> None:
    engine = Engine(family_pair("llama"), load_arbiter("lossless"))
    (rollout,) = engine.rollouts(some_prompts(1), CONFIG)
    short = replace(rollout, config=SamplingConfig(max_new_tokens=3))
    (end,) = engine.branches([Branch(short, 5, 7)])
    assert end.completion.token_ids == [*rollout.completion.token_ids[:5], 7]
    assert end.completion.finish_reason == "length"


def test_texts_of_the_draft_alone_keep_no_caches_for_branches() -> None:
    """Found: branches loaded the draft's cache as the target's, and went on with garbage."""
    pair = family_pair("llama")
    (rollout,) = Engine.draft_only(pair).rollouts(some_prompts(1), CONFIG)
    assert rollout.caches is None and len(rollout.completion.token_ids) > 1
    lossless = load_arbiter("lossless")
    others = Engine(pair, lossless), Engine(pair, lossless, drafter="ngram")
    for engine in (Engine.target_only(pair), *others):
        with pytest.raises(ConfigError, match="has not kept both models' caches"):
            engine.branches([Branch(rollout, 0, 7)])
    (kept,) = Engine.target_only(pair).rollouts(some_prompts(1), CONFIG)
    (branch,) = Engine.target_only(pair).branches([Branch(kept, 0, 7)])
    assert kept.caches is not None and branch.completion.token_ids[0] == 7


def test_what_cannot_be_branched_from_is_refused() -> None:
    pair = family_pair("llama")
    engine = Engine(pair, load_arbiter("lossless"))
    (rollout,) = engine.rollouts(some_prompts(1), CONFIG)
    (branch,) = engine.branches([Branch(rollout, 0, 7)])
    with pytest.raises(ConfigError, match="keep_caches"):
        engine.branches([Branch(branch, 0, 7)])
    (plain,) = Engine.target_only(pair).rollouts(some_prompts(1), CONFIG)
    with pytest.raises(ConfigError, match="both models"):
        engine.branches([Branch(plain, 0, 7)])
    with pytest.raises(ConfigError, match="token 99"):
        engine.branches([Branch(rollout, 99, 7)])
    for token_id in (-1, VOCAB):
        with pytest.raises(ConfigError, match=f"a branch has token {token_id}; the target has"):
            engine.branches([Branch(rollout, 0, token_id)])
    with pytest.raises(ConfigError, match="draft-only"):
        Engine.draft_only(pair).branches([Branch(rollout, 0, 7)])
    with pytest.raises(ConfigError, match=r"position of a branch is 1\.0"):
        engine.branches([Branch(rollout, 1.0, 7)])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"token_id of a branch is 9\.0"):
        engine.branches([Branch(rollout, 1, 9.0)])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="stream of a branch is -1"):
        engine.branches([Branch(rollout, 0, 7, stream=-1)])


def test_a_branch_takes_numpys_numbers_and_is_json() -> None:
    pair = family_pair("llama")
    engine = lossless(pair)
    (rollout,) = engine.rollouts(some_prompts(1), CONFIG)
    places = [Branch(rollout, np.int64(1), np.int64(9)), Branch(rollout, 1, 9)]
    ours, plain = (branch.completion.to_dict() for branch in engine.branches(places))
    assert json.loads(json.dumps(ours))["token_ids"] == plain["token_ids"]


def test_a_branch_that_ends_with_its_own_token_counts_as_finished() -> None:
    pair, done = family_pair("llama"), list[int]()
    (rollout,) = lossless(pair).rollouts(some_prompts(1), CONFIG)
    engine = Engine(pair, load_arbiter("lossless"), on_finished=done.append)
    engine.branches([Branch(rollout, 1, EOS), Branch(rollout, 1, 7)])
    assert sum(done) == 2


def test_a_prompt_after_a_branch_copies_nothing_that_the_draft_has_not_read() -> None:
    """Found: the search had drafted for the branch, and the draft had read nothing of it."""
    pair, beginning = family_pair("llama"), [*range(6, 46)]
    greedy = SamplingConfig(max_new_tokens=20, ignore_eos=True)
    slow = Engine(pair, load_arbiter("lossless"), adaptive=True, adaptive_cost=5.0)
    (rollout,) = slow.rollouts([beginning + [7, 8] * 4], replace(greedy, max_new_tokens=2))

    def searching(**options: bool) -> Engine:
        return Engine(
            pair,
            load_arbiter("always_draft"),
            num_speculative_tokens=4,
            drafter="ngram+model",
            prompt_lookup_min=1,
            **options,
        )

    keeping = searching(enable_prefix_caching=True)
    keeping.branches([Branch(rollout, 0, 7)])
    (after,), (fresh,) = (e.generate([[*beginning, 9]], greedy) for e in (keeping, searching()))
    assert after.token_ids == fresh.token_ids


def test_a_sampled_branch_draws_numbers_that_its_rollout_has_not_drawn() -> None:
    """Found: by default it drew those again that had decided where it leaves."""
    pair, config = family_pair("llama"), replace(CONFIG, temperature=1.0, seed=5)
    engine = Engine(pair, load_arbiter("lossless"))
    (rollout,) = engine.rollouts(some_prompts(1), config)
    rows = [
        make_row(pair, 0, rollout.completion.prompt_ids, config),
        *(branch_row(pair, 0, Branch(rollout, i, 7), needs_draft=True) for i in (3, 4)),
        branch_row(pair, 0, Branch(rollout, 3, 7, stream=0), needs_draft=True),
    ]
    seeds = [row.generator.initial_seed() for row in rows]
    assert len(set(seeds[:3])) == 3
    assert seeds[3] == seeds[0], "if that stream is asked for"
