"""Requirements of every rollout backend; the engine of this package is the first."""

from __future__ import annotations

import pickle
from collections import deque
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from cospec import SamplingConfig
from cospec.arbiters import AlwaysTarget
from cospec.backends.base import BranchPoint, Item, Rollout
from cospec.backends.engine import EngineBackend
from cospec.backends.ray import Handle, Left, RayBackend
from cospec.config import DecodeConfig
from cospec.errors import ConfigError
from cospec.types import Origin
from tests.conftest import family_pair, some_prompts
from tests.rl.conftest import arbiter, coin

COIN = arbiter(coin(0.0))


@pytest.fixture(scope="module")
def backend(pair) -> EngineBackend:
    return EngineBackend(pair, DecodeConfig(num_speculative_tokens=4, batch_size=8))


def items(temperature: float = 0.0) -> list[Item]:
    sampling = SamplingConfig(max_new_tokens=16, temperature=temperature, seed=3)
    return [Item(prompt, sampling, stream) for stream, prompt in enumerate(some_prompts(6))]


def texts(rollouts: list[Rollout]) -> list[list[int]]:
    return [one.completion.token_ids for one in rollouts]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_item_has_one_text_in_any_order_and_any_batch(backend, temperature) -> None:
    some = items(temperature)[:4]
    all_at_once = texts(backend.complete(some, COIN))
    backwards = texts(backend.complete(some[::-1], COIN))[::-1]
    alone = [texts(backend.complete([item], COIN))[0] for item in some]
    assert all_at_once == backwards == alone
    other = [replace(item, stream=item.stream + 9) for item in some]
    assert texts(backend.complete(other, COIN)) != all_at_once


def points(rollouts: list[Rollout]) -> list[BranchPoint]:
    """The other ruling at the first mismatch of each."""
    found = []
    for stream, one in enumerate(rollouts):
        m = one.completion.reached[0]
        other = (m.target_id, Origin.CORRECTION) if m.keep_draft else (m.draft_id, Origin.OVERRIDE)
        found.append(BranchPoint(one, m.position, *other, seed=7, stream=stream))
    return found


def test_a_branch_has_one_text_whatever_is_played_beside_it(backend) -> None:
    rollouts = [
        one for one in backend.complete(items(), COIN, keep_handles=True) if one.completion.reached
    ]
    there = points(rollouts)
    assert len(there) >= 3
    ends = texts(backend.branch(there, COIN))
    assert texts(backend.branch(there[::-1], COIN))[::-1] == ends
    for point, end in zip(there, ends, strict=True):
        assert end[: point.position] == point.rollout.completion.token_ids[: point.position]
        assert end[point.position] == point.token_id
    other = [replace(point, seed=8) for point in there]
    assert texts(backend.branch(other, COIN)) != ends


def test_results_carry_every_decision_with_its_features(backend) -> None:
    (one,) = backend.complete(items()[:1], COIN)
    assert one.completion.reached and one.handle is None
    for m in one.completion.reached:
        assert m.is_reached and m.features.shape == COIN.policy.mean.shape
        assert torch.isfinite(m.features).all() and m.score == pytest.approx(0.5)
        assert 0 <= m.p_draft_id <= 1 and 0 <= m.q_target_id <= 1
        token = one.completion.token_ids[m.position]
        assert token == (m.draft_id if m.keep_draft else m.target_id) or m.veto is not None


@pytest.mark.parametrize("handle", [None, "of another backend"])
def test_a_rollout_without_a_handle_of_its_own_is_refused(backend, handle) -> None:
    (one,) = backend.complete(items()[:1], AlwaysTarget())
    point = BranchPoint(replace(one, handle=handle), 0, 7, Origin.OVERRIDE, seed=0, stream=0)
    with pytest.raises(ConfigError, match=r"needs its own; complete the item with keep_handles"):
        backend.branch([point], AlwaysTarget())


def test_a_rollout_of_another_pair_is_refused(backend) -> None:
    """Found: caches of the same shape were read as one's own."""
    other = EngineBackend(family_pair("mistral"), backend.config)
    (one,) = other.complete(items()[:1], AlwaysTarget(), keep_handles=True)
    point = BranchPoint(one, 0, 7, Origin.OVERRIDE, seed=0, stream=0)
    with pytest.raises(ConfigError, match=r"needs its own; complete the item with keep_handles"):
        backend.branch([point], AlwaysTarget())
    assert other.branch([point], AlwaysTarget())[0].completion.token_ids[0] == 7


def test_a_rollout_of_other_replicas_is_refused(backend) -> None:
    """Found: keys of all backends begin at 0, so that the branch left another text."""
    (item,) = items()[:1]
    (one,) = backend.complete([item], AlwaysTarget())
    held = replace(one, handle=Handle("theirs", 0, 0, (), item, None))
    point = BranchPoint(held, 0, 7, Origin.OVERRIDE, seed=0, stream=0)
    assert Left.of(point, "theirs").handle is held.handle
    with pytest.raises(ConfigError, match=r"needs its own; complete the item with keep_handles"):
        Left.of(point, "ours")


def test_a_long_path_of_branches_holds_none_of_the_rollouts_on_it() -> None:
    """Found: a handle held its parent's, so that replicas kept whole paths, and none pickled."""
    dead: deque[int] = deque()
    replicas = SimpleNamespace(_name="ours", _dead=[dead])
    one = SimpleNamespace(completion=SimpleNamespace(token_ids=[5] * 8))
    handle = RayBackend._handle(replicas, 0, 0, one, items()[0], None)
    for key in range(1, 301):
        left = Left(handle, key, 7, Origin.OVERRIDE, seed=1, stream=key)
        handle = RayBackend._handle(replicas, 0, key, one, left, None)
        del left
    assert list(dead) == list(range(300))
    again = pickle.loads(pickle.dumps(handle))
    assert (again.root, again.key) == (items()[0], 300)
    assert [step.position for step in again.steps] == list(range(1, 301))


def test_it_tells_how_many_completions_have_ended(pair) -> None:
    found: list[int] = []
    config = DecodeConfig(num_speculative_tokens=4, batch_size=2)
    EngineBackend(pair, config, on_finished=found.append).complete(items(), AlwaysTarget())
    assert sum(found) == 6
