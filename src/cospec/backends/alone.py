"""The draft alone on the replicas of a rollout backend, which knows arbiters and no arms.

An audit wants its answers beside paths and branches. It is asked for by an arbiter that stands for
no arbiter.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from cospec.backends.base import Item, Rollout
from cospec.types import Needs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cospec.backends.base import BranchPoint, RolloutBackend
    from cospec.backends.jobs import Decoder
    from cospec.config import Prompt, SamplingConfig
    from cospec.models import ModelPair
    from cospec.types import Arbiter, Completion, MismatchBatch, Ruling


class DraftAlone:
    """Stands in where an arbiter is asked for and the draft decodes alone."""

    name = "draft"
    needs = Needs.NOTHING

    def rule(self, batch: MismatchBatch) -> Ruling:
        """Fail: there is nothing to rule on."""
        raise AssertionError("the draft alone has no mismatches")


@dataclass
class WithDraft:
    """A rollout backend that also decodes with the draft alone, under `DraftAlone`.

    Args:
        backend: For all else.
        make_draft: Makes what decodes with the draft, when it is first asked for.
    """

    backend: RolloutBackend
    make_draft: Callable[[], Decoder]
    on_finished: Callable[[int], None] | None = field(default=None, init=False)

    @cached_property
    def _draft(self) -> Decoder:
        return self.make_draft()

    @property
    def context_length(self) -> int:
        """Most tokens of a prompt and its answer."""
        return self.backend.context_length

    def complete(
        self, items: Sequence[Item], arbiter: Arbiter, *, keep_handles: bool = False
    ) -> list[Rollout]:
        """Complete items, as `RolloutBackend.complete` says; those of the draft have no handles."""
        if not isinstance(arbiter, DraftAlone):
            return self.backend.complete(items, arbiter, keep_handles=keep_handles)
        prompts = [item.prompt for item in items]
        streams = [item.stream for item in items]
        done = self._draft.generate(prompts, [item.sampling for item in items], streams=streams)
        return [Rollout(completion) for completion in done]

    def branch(
        self, points: Sequence[BranchPoint], arbiter: Arbiter, *, keep_handles: bool = False
    ) -> list[Rollout]:
        """Play branches out, as `RolloutBackend.branch` says."""
        return self.backend.branch(points, arbiter, keep_handles=keep_handles)


@dataclass
class RemoteDraft:
    """Decodes with the draft alone on replicas of `WithDraft`: a `cospec.backends.jobs.Decoder`.

    Args:
        pair: A copy of the models in this process.
        backend: Of the replicas.
        batch_size: Most prompts that one of them decodes together.
    """

    pair: ModelPair
    backend: RolloutBackend
    batch_size: int
    num_speculative_tokens: int = 0

    @property
    def context_length(self) -> int:
        """Most tokens of a prompt and its answer."""
        return self.backend.context_length

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sequence[SamplingConfig],
        *,
        streams: Sequence[int] | None = None,
    ) -> list[Completion]:
        """Complete all prompts, in their order."""
        streams = range(len(prompts)) if streams is None else streams
        items = list(map(Item, prompts, sampling, streams))
        return [one.completion for one in self.backend.complete(items, DraftAlone())]
