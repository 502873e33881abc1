"""Jobs of a measurement: prompts that one decoder completes while the clock runs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from cospec.models.costs import synchronize

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from cospec.config import DecodeConfig, Prompt, SamplingConfig
    from cospec.models import ModelPair
    from cospec.types import Arbiter, Completion


class Decoder(Protocol):
    """The part of an engine that an arm needs; `cospec.Engine` is one."""

    pair: ModelPair
    batch_size: int
    num_speculative_tokens: int

    @property
    def context_length(self) -> int:
        """Most tokens of a prompt and its answer."""
        ...

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sequence[SamplingConfig],
        *,
        streams: Sequence[int] | None = None,
    ) -> list[Completion]:
        """Complete all prompts, in their order.

        Each draws from the stream of its seed that `streams` has for it, by default its index.
        """
        ...


class Decoders(Protocol):
    """Makes decoders with one kind of engine."""

    def plain(self, role: Literal["target", "draft"], config: DecodeConfig) -> Decoder:
        """Return a decoder with one model alone."""
        ...

    def ruled(self, arbiter: Arbiter, config: DecodeConfig) -> Decoder:
        """Return a decoder with the pair under an arbiter."""
        ...


@dataclass(frozen=True, slots=True)
class Job:
    """Prompts for one decoder."""

    name: str
    """Name of the arm."""
    group: int
    """Jobs of a group are compared with each other: one engine plays them, one after the other."""
    decoder: Decoder
    prompts: Sequence[Prompt]
    sampling: Sequence[SamplingConfig]
    """Settings of each prompt."""


@dataclass(frozen=True, slots=True)
class JobResult:
    """A job that is done."""

    job: Job
    completions: list[Completion]
    seconds: float
    """Wall-clock time of the generation alone."""


class Player(Protocol):
    """Plays jobs, here or elsewhere."""

    def __call__(self, jobs: Sequence[Job], warm_up: Sequence[Job] = ()) -> Iterator[JobResult]:
        """Yield each job when it is done, in any order.

        Args:
            jobs: Jobs, one group after the other.
            warm_up: Jobs that each engine plays before its first one of that name; not yielded.
        """
        ...


def play_here(jobs: Sequence[Job], warm_up: Sequence[Job] = ()) -> Iterator[JobResult]:
    """Play jobs in this process, one after the other: a `Player`."""
    for job in warm_up:
        job.decoder.generate(job.prompts, job.sampling)
    for job in jobs:
        yield JobResult(job, *timed(job.decoder, job.prompts, job.sampling))


def timed(
    decoder: Decoder, prompts: Sequence[Prompt], sampling: Sequence[SamplingConfig]
) -> tuple[list[Completion], float]:
    """Complete prompts; return the completions and the seconds that it took.

    Each prompt has its own seed and draws from one stream of it. So the draws for a problem do not
    depend on the others in its chunk.
    """
    device = decoder.pair.target.device
    start = _now(device)
    completions = decoder.generate(prompts, sampling, streams=[0] * len(prompts))
    return completions, _now(device) - start


def _now(device: torch.device) -> float:
    """Read the clock, once the device has finished its work."""
    synchronize(device)
    return time.perf_counter()
