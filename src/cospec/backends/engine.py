"""Rollouts on the engine of this package, in this process; a handle holds the models' caches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cospec import engine
from cospec.arbiters.observed import placed
from cospec.backends.base import BranchPoint, Item, Rollout, foreign

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cospec.config import DecodeConfig
    from cospec.models import ModelPair
    from cospec.types import Arbiter


@dataclass
class EngineBackend:
    """A pair of models on transformers.

    Args:
        pair: The models, which are not changed.
        config: Block length, batch size and other decoding options.
        on_finished: Called with the number of completions that each block of decoding ended.
    """

    pair: ModelPair
    config: DecodeConfig
    on_finished: Callable[[int], None] | None = None

    @property
    def context_length(self) -> int:
        """Most tokens of a prompt and its answer."""
        return self.pair.context_length

    def complete(
        self, items: Sequence[Item], arbiter: Arbiter, *, keep_handles: bool = False
    ) -> list[Rollout]:
        """Complete items, as `RolloutBackend.complete` says."""
        done = self._engine(arbiter).rollouts(
            [item.prompt for item in items],
            [item.sampling for item in items],
            streams=[item.stream for item in items],
            keep_caches=keep_handles,
        )
        return self._rollouts(done, keep_handles)

    def branch(
        self, points: Sequence[BranchPoint], arbiter: Arbiter, *, keep_handles: bool = False
    ) -> list[Rollout]:
        """Play branches out, each from the caches of its rollout."""
        branches = [self.as_branch(point) for point in points]
        ends = self._engine(arbiter).branches(branches, keep_caches=keep_handles)
        return self._rollouts(ends, keep_handles)

    def as_branch(self, point: BranchPoint) -> engine.Branch:
        """Return a point as a branch of the engine, with the point's own draws.

        Raises:
            ConfigError: Its rollout comes from another pair, or has no handle.
        """
        match point.rollout.handle:
            case (pair, engine.Rollout() as left) if pair is self.pair:
                left = replace(left, config=replace(left.config, seed=point.seed))
                return engine.Branch(
                    left, point.position, point.token_id, point.origin, point.stream
                )
            case handle:
                raise foreign(handle)

    def _rollouts(self, done: Sequence[engine.Rollout], keep_handles: bool) -> list[Rollout]:
        return [Rollout(one.completion, (self.pair, one) if keep_handles else None) for one in done]

    def _engine(self, arbiter: Arbiter) -> engine.Engine:
        arbiter = placed(arbiter, self.pair)
        return engine.Engine(self.pair, arbiter, self.config, on_finished=self.on_finished)
