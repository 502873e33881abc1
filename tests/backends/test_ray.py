"""Replicas as Ray actors: the results of one process, whoever dies."""

from __future__ import annotations

import gc
import importlib.util
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import torch

from cospec import SamplingConfig
from cospec.backends.base import BranchPoint, Item
from cospec.backends.engine import EngineBackend
from cospec.errors import BackendError, ConfigError, PromptError
from cospec.types import Origin
from tests.backends.tiny import (
    DOOMED,
    DiesOnce,
    failing_backend,
    impossible_backend,
    tiny_backend,
)
from tests.conftest import some_prompts
from tests.rl.conftest import arbiter, coin

if TYPE_CHECKING:
    from cospec.rl.trainer import Trainer

pytestmark = [
    pytest.mark.usefixtures("cluster"),
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
    pytest.mark.filterwarnings("ignore"),
]
COIN = arbiter(coin(0.0))
NUM_ITEMS = 10


@pytest.fixture(scope="module")
def alone():
    return tiny_backend()


@pytest.fixture(scope="module")
def many():
    from cospec.backends.ray import RayBackend

    backend = RayBackend(tiny_backend, 2, chunk_size=3)
    yield backend
    backend.close()


def items(**changes) -> list[Item]:
    sampling = SamplingConfig(max_new_tokens=16, temperature=1.0, seed=3)
    prompts = some_prompts(NUM_ITEMS)
    return [replace(Item(p, sampling, i), **changes) for i, p in enumerate(prompts)]


def facts(rollouts):
    """All that a rollout tells, but for numbers that differ with the batch by rounding."""
    return [
        (
            one.completion.token_ids,
            one.completion.origins,
            one.completion.stats,
            [
                (m.position, m.draft_id, m.target_id, m.keep_draft, m.veto)
                for m in one.completion.reached
            ],
        )
        for one in rollouts
    ]


def assert_same_features(ours, theirs) -> None:
    for one, other in zip(ours, theirs, strict=True):
        for m, n in zip(one.completion.reached, other.completion.reached, strict=True):
            torch.testing.assert_close(m.features, n.features, rtol=1e-4, atol=1e-4)


def points(rollouts) -> list[BranchPoint]:
    return [
        BranchPoint(one, m.position, m.draft_id, Origin.OVERRIDE, seed=7, stream=i)
        for i, one in enumerate(rollouts)
        for m in one.completion.reached[-1:]
    ]


def test_two_replicas_write_what_one_process_does(alone, many) -> None:
    finished: list[int] = []
    many.on_finished = finished.append
    ours, theirs = (b.complete(items(), COIN, keep_handles=True) for b in (alone, many))
    many.on_finished = None
    assert sum(finished) == NUM_ITEMS
    assert facts(ours) == facts(theirs)
    assert_same_features(ours, theirs)
    assert {one.handle.home for one in theirs} == {0, 1}, "both have worked"
    ends = [b.branch(points(done), COIN) for b, done in ((alone, ours), (many, theirs))]
    assert len(ends[0]) > 5 and facts(ends[0]) == facts(ends[1])


def test_branches_of_a_replica_that_has_died_are_played_by_its_successor(alone, many) -> None:
    import ray

    ours, theirs = (b.complete(items(), COIN, keep_handles=True) for b in (alone, many))
    ends = alone.branch(points(ours), COIN, keep_handles=True)
    again = many.branch(points(theirs), COIN, keep_handles=True)
    for actor in many.replicas:
        ray.kill(actor)
    assert facts(many.branch(points(theirs), COIN)) == facts(ends)
    assert facts(many.branch(points(again), COIN)) == facts(alone.branch(points(ends), COIN))


def test_a_branch_does_not_leave_another_text_than_the_one_that_was_scored(many) -> None:
    """Found: in 16 bits a successor may decode another text, and the branch left that one."""
    import ray

    point = points(many.complete(items(), COIN, keep_handles=True))[0]
    handle = point.rollout.handle
    other = replace(handle, token_ids=(handle.token_ids[0] + 1, *handle.token_ids[1:]))
    for actor in many.replicas:
        ray.kill(actor)
    with pytest.raises(BackendError, match="is another text after its replica died"):
        many.branch([replace(point, rollout=replace(point.rollout, handle=other))], COIN)
    assert len(many.branch([point], COIN)) == 1


@pytest.mark.parametrize("how", ["dies", "raises"])
def test_what_a_killed_replica_had_in_hand_is_done_again(how, alone, tmp_path) -> None:
    from cospec.backends.ray import RayBackend

    once = tmp_path / "once"
    backend = RayBackend(partial(failing_backend, how, once), 2, chunk_size=3)
    assert facts(backend.complete(items(), COIN)) == facts(alone.complete(items(), COIN))
    assert once.exists(), "the replica has failed"
    backend.close()


@pytest.mark.parametrize("how", ["dies", "raises"])
def test_an_item_that_always_fails_is_named_after_three_tries(how) -> None:
    from cospec.backends.ray import RayBackend

    backend = RayBackend(partial(failing_backend, how, None), 2, chunk_size=3)
    with pytest.raises(BackendError, match=rf"stream {DOOMED}\) failed 3 times") as caught:
        backend.complete(items(), COIN)
    assert "the item" in str(caught.value)
    backend.close()


def test_what_cannot_be_done_as_it_was_asked_for_is_said_at_once(many) -> None:
    with pytest.raises(PromptError, match="is empty"):
        many.complete(items(prompt=[]), COIN)
    (one,) = many.complete(items()[:1], COIN)
    with pytest.raises(ConfigError, match="needs its own"):
        many.branch([BranchPoint(one, 0, 7, Origin.OVERRIDE, seed=0, stream=0)], COIN)


def test_what_a_failed_call_has_decoded_is_forgotten(many) -> None:
    first = next(many._keys)
    with pytest.raises(PromptError, match="is empty"):
        many.complete([*items(), *items(prompt=[])[:1]], COIN, keep_handles=True)
    gc.collect()  # the error knew the rollouts that had ended
    dead = {key for keys_of_home in many._dead for key in keys_of_home}
    assert set(range(first + 1, first + 10)) <= dead, "all but those of the chunk that failed"


def test_a_replica_forgets_the_rollouts_that_nobody_holds(many) -> None:
    rollouts = many.complete(items(), COIN, keep_handles=True)
    keys = {one.handle.key for one in rollouts}
    ends = many.branch(points(rollouts), COIN, keep_handles=True)
    del rollouts
    dead = {key for keys_of_home in many._dead for key in keys_of_home}
    assert keys <= dead, "though branches of them live"
    assert dead.isdisjoint(one.handle.key for one in ends)


def test_a_replica_whose_place_is_gone_is_named_and_not_waited_for(many, monkeypatch) -> None:
    import ray

    lost = SimpleNamespace(wait=lambda timeout_seconds: False)
    monkeypatch.setattr(many.replicas, "_groups", [many.replicas._groups[0], lost])
    with pytest.raises(BackendError, match="replica 1 died, and within 60 seconds Ray found no"):
        many.replicas.recover(ray.exceptions.RayActorError(), 1)


def test_what_a_replica_cannot_be_made_with_is_told_at_once() -> None:
    """Found: its error had lost its kind, was tried three times and blamed on an item."""
    from cospec.backends.ray import RayBackend

    backend = RayBackend(impossible_backend, 1)
    with pytest.raises(ConfigError, match="no such model here"):
        backend.complete(items(), COIN)
    backend.close()


def test_a_place_that_the_cluster_does_not_have_is_refused() -> None:
    from cospec.backends import actors
    from cospec.backends.ray import RayBackend

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(actors, "PATIENCE_S", 2.0)
        with pytest.raises(ConfigError, match=r"Ray has no room for a replica with .*GPU"):
            RayBackend(tiny_backend, 1, gpus_per_replica=2)


def test_a_cluster_that_is_not_there_is_told_by_its_option(monkeypatch) -> None:
    """Found: Ray's own error with a traceback, which advises another option."""
    from cospec.backends import actors

    def init(*_: object, **__: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", init)
    with pytest.raises(ConfigError, match=r"no Ray cluster at auto .*Could not .*--ray-address"):
        actors._connect("auto", 2)


def test_gpus_that_ray_is_told_not_to_part_are_refused(monkeypatch) -> None:
    from cospec.backends.ray import RayBackend

    monkeypatch.setenv("RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES", "1")
    with pytest.raises(ConfigError, match=r"NOSET_CUDA_VISIBLE_DEVICES is set, .* on GPU 0; unset"):
        RayBackend(tiny_backend, 1, gpus_per_replica=1)
    RayBackend(tiny_backend, 1, gpus_per_replica=0).close()


def test_few_items_are_shared_by_all_replicas(many, alone) -> None:
    from cospec.backends.ray import RayBackend

    backend = RayBackend(tiny_backend, 2, gpus_per_replica=0)
    done = backend.complete(items(), COIN, keep_handles=True)
    assert {one.handle.home for one in done} == {0, 1}, "though a chunk could hold them all"
    backend.close()


def test_a_replica_reserves_its_gpus() -> None:
    from ray.util.placement_group import placement_group_table

    from cospec.backends.ray import RayBackend

    backend = RayBackend(tiny_backend, 1, gpus_per_replica=1)
    (group,) = backend.replicas._groups
    assert placement_group_table(group)["bundles"] == {0: {"CPU": 1.0, "GPU": 1.0}}
    backend.close()


def train_on(backend, one) -> Trainer:
    """Train as ``one`` did, with another backend."""
    from cospec.rl.trainer import Trainer

    other = Trainer(one.pair, backend, one.task, one.config, one.train, one.tune)
    other.run()
    backend.close()
    return other


def assert_same_training(one, other) -> None:
    weights = [each.state.policy.state_dict() for each in (one, other)]
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-4)  # rounding differs with the batch
    for a, b in zip(one.state.history, other.state.history, strict=True):
        for name in ("accuracy", "override_rate", "tune_accuracy"):
            assert a[name] == pytest.approx(b[name])


def test_training_on_replicas_ends_with_the_weights_of_one_process(whole) -> None:
    from cospec.backends.ray import RayBackend

    make = partial(EngineBackend, whole.pair, whole.config.rollouts)
    assert_same_training(whole, train_on(RayBackend(make, 2, chunk_size=2), whole))


def test_a_replica_that_is_killed_in_the_middle_of_a_round_changes_nothing(whole, tmp_path) -> None:
    from cospec.backends.ray import RayBackend

    once = tmp_path / "once"
    make = partial(DiesOnce, whole.pair, whole.config.rollouts, once=once)
    other = train_on(RayBackend(make, 2, chunk_size=2), whole)
    assert once.exists(), "a replica was killed"
    assert_same_training(whole, other)


def test_a_closed_backend_gives_its_places_back():
    from ray.util.placement_group import placement_group_table

    from cospec.backends.ray import RayBackend

    backend = RayBackend(tiny_backend, 2)
    ids = [group.id.hex() for group in backend.replicas._groups]
    assert {placement_group_table()[each]["state"] for each in ids} == {"CREATED"}
    backend.close()
    assert {placement_group_table()[each]["state"] for each in ids} == {"REMOVED"}
