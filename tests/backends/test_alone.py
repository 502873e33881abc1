"""The draft alone beside a rollout backend, here in one process and in `test_ray` on replicas."""

from __future__ import annotations

import pickle

import pytest

from cospec import Engine, SamplingConfig, load_arbiter
from cospec.backends.alone import DraftAlone, RemoteDraft, WithDraft
from cospec.backends.base import Item
from cospec.types import Arbiter
from tests.backends.tiny import tiny_backend, tiny_with_draft
from tests.conftest import some_prompts

PROMPTS = some_prompts(6)
SAMPLED = [SamplingConfig(max_new_tokens=12, temperature=1.0, seed=3)] * len(PROMPTS)


def test_the_draft_writes_what_it_does_in_an_engine_of_its_own() -> None:
    backend, streams = tiny_with_draft(), range(4, 4 + len(PROMPTS))
    remote = RemoteDraft(backend.backend.pair, backend, batch_size=4)
    engine = Engine.draft_only(backend.backend.pair, batch_size=4)
    assert remote.context_length == engine.context_length
    for given in (None, streams):
        ours = remote.generate(PROMPTS, SAMPLED, streams=given)
        theirs = engine.generate(PROMPTS, SAMPLED, streams=given)
        assert [one.token_ids for one in ours] == [one.token_ids for one in theirs]
        assert [one.stats for one in ours] == [one.stats for one in theirs]


def test_all_other_arbiters_rule_in_the_backend_and_no_draft_is_made_for_them() -> None:
    def never() -> None:
        pytest.fail("nobody asked for the draft")

    plain, arbiter = tiny_backend(), load_arbiter("gap")
    items = [Item(*each, 0) for each in zip(PROMPTS, SAMPLED, strict=True)]
    both = WithDraft(plain, never)
    ours, theirs = (it.complete(items, arbiter, keep_handles=True) for it in (both, plain))
    assert [one.completion.token_ids for one in ours] == [
        one.completion.token_ids for one in theirs
    ]
    assert all(one.handle is not None for one in ours)


def test_what_stands_for_an_arbiter_travels_to_a_replica() -> None:
    assert isinstance(pickle.loads(pickle.dumps(DraftAlone())), DraftAlone)
    assert isinstance(DraftAlone(), Arbiter)
