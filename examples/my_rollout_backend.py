"""A rollout backend of your own: it deals the work out to several others.

A trainer knows a backend by two methods, `complete` and `branch`, and by its context length.
Replicas could be on other machines; here they are two engines in one process. An item carries its
own random stream, so its text is the same whichever replica decodes it.

Usage: ``python examples/my_rollout_backend.py``
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cospec import ModelPair, SamplingConfig, load_arbiter
from cospec.backends.base import BranchPoint, Item, Rollout
from cospec.backends.engine import EngineBackend
from cospec.config import DecodeConfig
from cospec.types import Origin

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cospec.backends.base import RolloutBackend
    from cospec.types import Arbiter

QUESTIONS = [f"Question: What is {n} plus {n + 7}?\nAnswer:" for n in range(11, 15)]


@dataclass
class Dealer:
    """Give every n-th item to the n-th replica, and a branch to the replica of its rollout."""

    replicas: Sequence[RolloutBackend]
    on_finished: Callable[[int], None] | None = None

    @property
    def context_length(self) -> int:
        """Most tokens of a prompt and its answer, with any replica."""
        return min(replica.context_length for replica in self.replicas)

    def complete(
        self, items: Sequence[Item], arbiter: Arbiter, *, keep_handles: bool = False
    ) -> list[Rollout]:
        """Complete items, in their order; a handle says which replica holds what."""
        rollouts: dict[int, Rollout] = {}
        for n, replica in enumerate(self.replicas):
            mine = range(n, len(items), len(self.replicas))
            done = replica.complete([items[i] for i in mine], arbiter, keep_handles=keep_handles)
            for i, rollout in zip(mine, done, strict=True):
                handle = (n, rollout.handle) if keep_handles else None
                rollouts[i] = replace(rollout, handle=handle)
        return [rollouts[i] for i in range(len(items))]

    def branch(
        self, points: Sequence[BranchPoint], arbiter: Arbiter, *, keep_handles: bool = False
    ) -> list[Rollout]:
        """Play branches out, in the order of the points."""
        ends: dict[int, Rollout] = {}
        for n, replica in enumerate(self.replicas):
            mine = [i for i, point in enumerate(points) if self._home(point) == n]
            theirs = [self._unwrapped(points[i]) for i in mine]
            done = replica.branch(theirs, arbiter, keep_handles=keep_handles) if mine else []
            for i, end in zip(mine, done, strict=True):
                ends[i] = replace(end, handle=(n, end.handle) if keep_handles else None)
        return [ends[i] for i in range(len(points))]

    def _home(self, point: BranchPoint) -> int:
        """Return the number of the replica that made the rollout."""
        assert isinstance(point.rollout.handle, tuple), "complete with keep_handles=True"
        return int(point.rollout.handle[0])

    def _unwrapped(self, point: BranchPoint) -> BranchPoint:
        """Return the point with the replica's own handle."""
        assert isinstance(point.rollout.handle, tuple)
        return replace(point, rollout=replace(point.rollout, handle=point.rollout.handle[1]))


def play(backend: RolloutBackend) -> list[str]:
    """Complete all questions, leave each at its first mismatch, and return all texts."""
    arbiter, sampling = load_arbiter("lossless"), SamplingConfig(max_new_tokens=40, seed=0)
    items = [Item(question, sampling, stream) for stream, question in enumerate(QUESTIONS)]
    rollouts = backend.complete(items, arbiter, keep_handles=True)
    points = [
        BranchPoint(rollout, first.position, first.draft_id, Origin.OVERRIDE, seed=0, stream=i)
        for i, rollout in enumerate(rollouts)
        for first in rollout.completion.reached[:1]
    ]
    return [end.completion.text for end in (*rollouts, *backend.branch(points, arbiter))]


def main() -> None:
    """Show that two replicas write what one does."""
    pair, config = (
        ModelPair.from_pretrained("bundled:family"),
        DecodeConfig(num_speculative_tokens=8),
    )
    one = play(EngineBackend(pair, config))
    two = play(Dealer([EngineBackend(pair, config), EngineBackend(pair, config)]))
    print(f"{len(one)} texts, {len(one) - len(QUESTIONS)} of them branches; same: {one == two}")


if __name__ == "__main__":
    main()
