"""Rollouts on many engines: one Ray actor a replica, and a queue of work.

Items carry their own random numbers, so that any replica may decode any item, in any order, and
again: results depend neither on the number of replicas nor on their crashes. A branch goes to the
replica that holds its rollout; if that one has died, its successor decodes the rollout again first.

Work is handed out in chunks. A chunk that fails is taken apart into its items, and an item that
fails `MAX_TRIES` times is reported by name. This file knows nothing about the replicas' backends.
"""

from __future__ import annotations

import importlib
import itertools
import math
import weakref
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

from cospec.backends.actors import MAX_TRIES, Actors, last_line
from cospec.backends.base import BranchPoint, Item, Rollout, foreign
from cospec.backends.packing import Packed, pack, unpack
from cospec.errors import BackendError, CospecError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cospec.backends.base import RolloutBackend
    from cospec.types import Arbiter, Origin


class BranchStep(NamedTuple):
    """A branch on the way from an item to a rollout, with the reference of its arbiter."""

    position: int
    token_id: int
    origin: Origin
    seed: int
    stream: int
    arbiter: Any  # Any: an ObjectRef


@dataclass(eq=False)
class Handle:
    """A rollout that a replica holds, with all data to make it again.

    It has the steps from an item to the rollout, and no other handle, which would keep all rollouts
    on the way.
    """

    owner: str
    home: int
    key: int
    token_ids: tuple[int, ...]
    root: Item
    arbiter: Any  # Any: an ObjectRef to the root's arbiter
    steps: tuple[BranchStep, ...] = ()


class Left(NamedTuple):
    """A branch point on its way to a replica; the handle names its rollout."""

    handle: Handle
    position: int
    token_id: int
    origin: Origin
    seed: int
    stream: int

    @classmethod
    def of(cls, point: BranchPoint, owner: str) -> Left:
        """Return a point in the form that replicas of the backend `owner` take.

        Raises:
            ConfigError: Its rollout was not made by this backend.
        """
        handle = point.rollout.handle
        if not isinstance(handle, Handle) or handle.owner != owner:
            raise foreign(handle)
        return cls(handle, point.position, point.token_id, point.origin, point.seed, point.stream)


Work = Item | Left
"""Input from which a replica makes one rollout."""


@dataclass
class Replica:
    """The part that runs in an actor: a backend, and the rollouts that branches may leave.

    Args:
        factory: Makes the backend.
    """

    factory: Callable[[], RolloutBackend]
    _held: dict[int, Rollout] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with suppress(CospecError):  # the first call raises it again, and can carry it
            self._backend  # noqa: B018

    @cached_property
    def _backend(self) -> RolloutBackend:
        return self.factory()

    def play(
        self, works: list[Work], keys: list[int] | None, arbiter: Arbiter, forget: list[int]
    ) -> Packed:
        """Complete items, or play branches out.

        Args:
            works: Only items, or only branch points.
            keys: Keys under which the rollouts are held; None to hold none.
            arbiter: Rules at mismatches.
            forget: Keys that nobody will ask for again.
        """
        for key in forget:
            self._held.pop(key, None)
        if isinstance(works[0], Item):
            items = [work for work in works if isinstance(work, Item)]
            done = self._backend.complete(items, arbiter, keep_handles=keys is not None)
        else:
            points = [self._point(work) for work in works if isinstance(work, Left)]
            done = self._backend.branch(points, arbiter, keep_handles=keys is not None)
        if keys is not None:
            self._held |= zip(keys, done, strict=True)
        return pack(done)

    def context_length(self) -> int:
        """Return the most tokens of a prompt and its answer."""
        return self._backend.context_length

    def _point(self, left: Left) -> BranchPoint:
        """Return the point as the backend takes it, on a rollout that it holds."""
        handle = left.handle
        if handle.key not in self._held:  # the replica that held it has died
            self._held[handle.key] = self._again(handle)
        rollout, shared = self._held[handle.key], left.position
        if tuple(rollout.completion.token_ids[:shared]) != handle.token_ids[:shared]:
            raise BackendError(
                f"the rollout of stream {handle.root.stream} is another text after its replica "
                "died: rounding can differ between batches. Run again: what was finished is "
                "resumed, and float32 on the same machines differs least."
            )
        return BranchPoint(rollout, *left[1:])

    def _again(self, handle: Handle) -> Rollout:
        """Make a rollout from its item once more."""
        get = importlib.import_module("ray").get
        (one,) = self._backend.complete([handle.root], get(handle.arbiter), keep_handles=True)
        for step in handle.steps:
            point = BranchPoint(one, *step[:-1])
            (one,) = self._backend.branch([point], get(step.arbiter), keep_handles=True)
        return one


@dataclass
class _Task:
    """Some work of a call, by its indices in the call."""

    places: list[int]
    home: int | None = None
    """The replica that it should go to; None for any."""


class RayBackend:
    """Replicas of a backend as Ray actors.

    Args:
        factory: Makes a replica's backend; it is pickled.
        num_replicas: Number of replicas.
        address: Address of a Ray cluster; by default one is started here.
        chunk_size: Most items or branches that a replica gets at a time.
        gpus_per_replica: GPUs of one machine for each replica, reserved by a placement group of its
            own; with tensor parallelism, the number that a model is spread over. A cluster without
            GPUs decodes on CPUs.

    Attributes:
        on_finished: Called with the number of completions that have ended, if it is set.

    Raises:
        MissingExtraError: Ray is not installed.
    """

    def __init__(
        self,
        factory: Callable[[], RolloutBackend],
        num_replicas: int,
        *,
        address: str | None = None,
        chunk_size: int = 64,
        gpus_per_replica: int = 0,
    ) -> None:
        self.replicas = Actors(
            Replica, factory, num_replicas, address=address, gpus=gpus_per_replica
        )
        self._ray, self._chunk_size = self.replicas.ray, chunk_size
        self.on_finished: Callable[[int], None] | None = None
        self._keys, self._name = itertools.count(), uuid4().hex
        self._dead: list[deque[int]] = [deque() for _ in range(num_replicas)]

    @cached_property
    def context_length(self) -> int:
        """Most tokens of a prompt and its answer."""
        return int(self.replicas.ask_first(lambda actor: actor.context_length.remote()))

    def complete(
        self, items: Sequence[Item], arbiter: Arbiter, *, keep_handles: bool = False
    ) -> list[Rollout]:
        """Complete items, as `RolloutBackend.complete` says."""
        size = max(1, min(self._chunk_size, math.ceil(len(items) / len(self.replicas))))
        chunks = [range(i, min(i + size, len(items))) for i in range(0, len(items), size)]
        return self._run(list(items), [_Task(list(c)) for c in chunks], arbiter, keep_handles)

    def branch(
        self, points: Sequence[BranchPoint], arbiter: Arbiter, *, keep_handles: bool = False
    ) -> list[Rollout]:
        """Play branches out, each on the replica of its rollout while that lives."""
        lefts = [Left.of(point, self._name) for point in points]
        by_home: dict[int, list[int]] = {}
        for place, left in enumerate(lefts):
            by_home.setdefault(left.handle.home, []).append(place)
        tasks = [
            _Task(places[i : i + self._chunk_size], home)
            for home, places in by_home.items()
            for i in range(0, len(places), self._chunk_size)
        ]
        return self._run(list(lefts), tasks, arbiter, keep_handles)

    def close(self) -> None:
        """End the replicas; a Ray that was running before goes on."""
        self.replicas.close()

    def _run(
        self, works: list[Work], tasks: list[_Task], arbiter: Arbiter, keep_handles: bool
    ) -> list[Rollout]:
        """Play all tasks, in any order; return the rollouts in the order of the work."""
        waiting, running = deque(tasks), dict[Any, tuple[_Task, int, list[int] | None]]()
        try:
            return self._drain(works, waiting, running, arbiter, keep_handles)
        finally:  # after an error these go on, and nobody will ask for their rollouts
            for _, n, keys in running.values():
                self._dead[n].extend(keys or ())

    def _drain(
        self,
        works: list[Work],
        waiting: deque[_Task],
        running: dict[Any, tuple[_Task, int, list[int] | None]],  # Any: ObjectRefs
        arbiter: Arbiter,
        keep_handles: bool,
    ) -> list[Rollout]:
        """Play waiting tasks until none waits or runs."""
        shared = self._ray.put(arbiter)
        num_tries, done = [0] * len(works), dict[int, Rollout]()
        while waiting or running:
            idle = set(range(len(self.replicas))) - {n for _, n, _ in running.values()}
            for n in sorted(idle):
                task = _next(waiting, n)
                if task is not None:
                    running |= self._send(task, n, works, shared, keep_handles)
            (ready, *_), _ = self._ray.wait(list(running))
            task, n, keys = running.pop(ready)
            try:
                found = unpack(self._ray.get(ready))
            except self._ray.exceptions.RayError as error:
                self.replicas.recover(error, n)
                waiting.extend(_apart(task, works, num_tries, error))
                continue
            for i, (place, one) in enumerate(zip(task.places, found, strict=True)):
                work, key = works[place], None if keys is None else keys[i]
                handle = None if key is None else self._handle(n, key, one, work, shared)
                done[place] = replace(one, handle=handle)
            if self.on_finished is not None:
                self.on_finished(len(found))
        return [done[place] for place in range(len(works))]

    def _send(
        self,
        task: _Task,
        n: int,
        works: list[Work],
        arbiter: Any,  # Any: an ObjectRef
        keep_handles: bool,
    ) -> dict[Any, tuple[_Task, int, list[int] | None]]:
        """Give a replica some work."""
        keys = [next(self._keys) for _ in task.places] if keep_handles else None
        forget = [self._dead[n].popleft() for _ in range(len(self._dead[n]))]
        some = [works[place] for place in task.places]
        return {self.replicas[n].play.remote(some, keys, arbiter, forget): (task, n, keys)}

    def _handle(
        self,
        home: int,
        key: int,
        rollout: Rollout,
        work: Work,
        arbiter: Any,  # Any: as above
    ) -> Handle:
        """Return the handle of a rollout; the replica forgets it with the handle."""
        token_ids = tuple(rollout.completion.token_ids)
        if isinstance(work, Item):
            handle = Handle(self._name, home, key, token_ids, work, arbiter)
        else:
            steps = (*work.handle.steps, BranchStep(*work[1:], arbiter))
            handle = replace(work.handle, home=home, key=key, token_ids=token_ids, steps=steps)
        weakref.finalize(handle, self._dead[home].append, key)
        return handle


def _next(waiting: deque[_Task], n: int) -> _Task | None:
    """Take the next task for a replica: one that belongs there, else one that may go anywhere."""
    for task in waiting:
        if task.home in (None, n):
            waiting.remove(task)
            return task
    return None


def _apart(task: _Task, works: list[Work], num_tries: list[int], error: Exception) -> list[_Task]:
    """Take a task that failed apart, and count the tries of its items.

    Raises:
        BackendError: One of them has failed too often.
    """
    for place in task.places:
        num_tries[place] += 1
    if len(task.places) == 1 and num_tries[task.places[0]] >= MAX_TRIES:
        (place,) = task.places
        raise BackendError(
            f"{_name(works[place])} failed {num_tries[place]} times; the last time with "
            f"{last_line(error)}"
        ) from error
    return [_Task([place], task.home) for place in task.places]


def _name(work: Work) -> str:
    """Name an item in an error."""
    if isinstance(work, Left):
        return f"the branch at token {work.position} of {_name(work.handle.root)}"
    return f"the item {str(work.prompt)[:200]!r} (seed {work.sampling.seed}, stream {work.stream})"
