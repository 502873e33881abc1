"""Arms of a measurement on many engines: one Ray actor a replica, a chunk of problems at a time.

A replica plays all arms of a chunk, one after the other. So arms that are compared have run on the
same engine, and the seconds of a job are those of one engine, however many there are.
"""

from __future__ import annotations

import itertools
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from cospec.backends.actors import MAX_TRIES, Actors, last_line
from cospec.backends.jobs import Job, JobResult, timed
from cospec.errors import BackendError, CospecError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cospec.backends.jobs import Decoder, Decoders
    from cospec.config import DecodeConfig, Prompt, SamplingConfig
    from cospec.models import ModelPair
    from cospec.types import Arbiter, Completion


class Way(NamedTuple):
    """One way to decode, as a replica makes it."""

    key: int
    """Number of the decoder: equal keys stand for the same one."""
    who: Literal["target", "draft"] | Arbiter
    """Model that decodes alone, or the arbiter over both models."""
    config: DecodeConfig


@dataclass
class ArmReplica:
    """The part that runs in an actor: the decoders of the arms, made when they are first used.

    Args:
        factory: Makes the `Decoders` of the replica.
    """

    factory: Callable[[], Decoders]
    _made: dict[int, Decoder] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with suppress(CospecError):  # the first call raises it again, and can carry it
            self._decoders  # noqa: B018

    @cached_property
    def _decoders(self) -> Decoders:
        return self.factory()

    def decode(
        self, way: Way, prompts: Sequence[Prompt], sampling: Sequence[SamplingConfig]
    ) -> tuple[list[Completion], float]:
        """Complete prompts; return the completions and the seconds that it took."""
        return timed(self._decoder(way), prompts, sampling)

    def context_length(self, way: Way) -> int:
        """Return the most tokens of a prompt and its answer."""
        return self._decoder(way).context_length

    def _decoder(self, way: Way) -> Decoder:
        if way.key not in self._made:
            make = self._decoders
            self._made[way.key] = (
                make.plain(way.who, way.config)
                if isinstance(way.who, str)
                else make.ruled(way.who, way.config)
            )
        return self._made[way.key]


@dataclass(eq=False)
class RemoteDecoder:
    """A decoder that each replica has."""

    pair: ModelPair
    way: Way
    actors: Actors
    shared: Any  # Any: an ObjectRef of the way
    batch_size: int
    num_speculative_tokens: int
    context_length: int

    @property
    def arbiter(self) -> Arbiter | None:
        """The arbiter; None for one model alone."""
        return None if isinstance(self.way.who, str) else self.way.who

    @property
    def config(self) -> DecodeConfig:
        """Options of drafting and batching."""
        return self.way.config

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sequence[SamplingConfig],
        *,
        streams: Sequence[int] | None = None,
    ) -> list[Completion]:
        """Complete all prompts on the first replica, in their order, each from one stream."""
        assert streams is None, "replicas draw for all from one stream"
        completions: list[Completion]
        completions, *_ = self.actors.ask_first(
            lambda actor: actor.decode.remote(self.shared, prompts, sampling)
        )
        return completions


class RayDecoders:
    """Makes decoders that run on replicas, and plays jobs on them.

    Args:
        pair: A copy of the models in this process; its tokenizer is used.
        factory: Makes the `Decoders` of a replica; it is pickled.
        num_replicas: Number of replicas.
        address: Address of a Ray cluster; by default one is started here.
        gpus_per_replica: GPUs of one machine for each replica.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: The cluster has no room for the replicas.
    """

    def __init__(
        self,
        pair: ModelPair,
        factory: Callable[[], Decoders],
        num_replicas: int,
        *,
        address: str | None = None,
        gpus_per_replica: int = 0,
    ) -> None:
        self._pair, self._keys = pair, itertools.count()
        self.replicas = Actors(
            ArmReplica, factory, num_replicas, address=address, gpus=gpus_per_replica
        )

    def plain(self, role: Literal["target", "draft"], config: DecodeConfig) -> RemoteDecoder:
        """Return a decoder with one model alone."""
        return self._remote(role, config, 0)

    def ruled(self, arbiter: Arbiter, config: DecodeConfig) -> RemoteDecoder:
        """Return a decoder with the pair under an arbiter."""
        config = config.for_arbiters([arbiter])
        return self._remote(arbiter, config, config.k)

    def play(self, jobs: Sequence[Job], warm_up: Sequence[Job] = ()) -> Iterator[JobResult]:
        """Play jobs, a group on each replica: a `cospec.backends.jobs.Player`.

        Raises:
            BackendError: A job failed three times; its message has the name of the arm.
        """
        groups = deque(deque(some) for _, some in itertools.groupby(jobs, lambda job: job.group))
        player = _Playing(self.replicas, groups, {job.name: job for job in warm_up})
        yield from player.play()

    def close(self) -> None:
        """End the replicas; a Ray that was running before goes on."""
        self.replicas.close()

    def _remote(
        self, who: Literal["target", "draft"] | Arbiter, config: DecodeConfig, k: int
    ) -> RemoteDecoder:
        ray, way = self.replicas.ray, Way(next(self._keys), who, config)
        shared = ray.put(way)
        room = self.replicas.ask_first(lambda actor: actor.context_length.remote(shared))
        return RemoteDecoder(self._pair, way, self.replicas, shared, config.batch_size, k, room)


class _Playing:
    """Groups on their way through the replicas."""

    def __init__(self, actors: Actors, groups: deque[deque[Job]], warm_up: dict[str, Job]) -> None:
        self._actors, self._waiting, self._warm_up = actors, groups, warm_up
        self._mine: list[deque[Job]] = [deque() for _ in range(len(actors))]
        self._warm: list[set[str]] = [set() for _ in range(len(actors))]
        self._running: dict[Any, tuple[Job, int]] = {}  # Any: ObjectRefs
        self._num_tries: dict[tuple[int, str], int] = {}

    def play(self) -> Iterator[JobResult]:
        """Yield each job when it is done."""
        for n in range(len(self._actors)):
            self._next(n)
        while self._running:
            (ready, *_), _ = self._actors.ray.wait(list(self._running))
            job, n = self._running.pop(ready)
            try:
                completions, seconds = self._actors.ray.get(ready)
            except self._actors.ray.exceptions.RayError as error:
                self._actors.recover(error, n)
                self._count(job, error)
                self._mine[n].appendleft(job)
                self._warm[n].clear()
                self._next(n)
                continue
            self._next(n)  # before the answers are scored
            yield JobResult(job, completions, seconds)

    def _next(self, n: int) -> None:
        """Give a replica the next job of its group, or the first one of a waiting group."""
        if not self._mine[n]:
            if not self._waiting:
                return
            self._mine[n] = self._waiting.popleft()
        job = self._mine[n].popleft()
        if job.name in self._warm_up and job.name not in self._warm[n]:
            self._warm[n].add(job.name)
            self._send(self._warm_up[job.name], n)  # an actor does one thing after the other
        self._running[self._send(job, n)] = job, n

    def _send(self, job: Job, n: int) -> Any:  # Any: an ObjectRef
        decoder = job.decoder
        assert isinstance(decoder, RemoteDecoder), "jobs have decoders that were made here"
        return self._actors[n].decode.remote(decoder.shared, job.prompts, job.sampling)

    def _count(self, job: Job, error: Exception) -> None:
        """Count the tries of a job.

        Raises:
            BackendError: It has failed too often.
        """
        key = job.group, job.name
        self._num_tries[key] = self._num_tries.get(key, 0) + 1
        if self._num_tries[key] >= MAX_TRIES:
            raise BackendError(
                f"{job.name} failed {MAX_TRIES} times on one chunk of problems; the last time with "
                f"{last_line(error)}. Finished chunks are resumed."
            ) from error
