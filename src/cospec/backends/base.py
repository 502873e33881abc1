"""The protocol of rollouts: a trainer asks for completions and branches, and knows no engine.

An item carries all that decides its text: the prompt, its settings, and its own stream of random
numbers. So items may be decoded in any order, in any batch, by any replica, and again after a
crash, with the same result. A handle is the backend's own (caches, token ids, the name of a
replica); nobody else looks into it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from cospec.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cospec.config import Prompt, SamplingConfig
    from cospec.types import Arbiter, Completion, Origin


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt to complete."""

    prompt: Prompt
    sampling: SamplingConfig
    """Settings, with the seed."""
    stream: int
    """Stream of the seed that the item draws from; two items differ in seed or stream."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """A completion that branches can leave."""

    completion: Completion
    """Its trace has every mismatch: position, both tokens, their probabilities, features, score,
    ruling, and whether it was reached."""
    handle: object | None = None
    """Data that the backend needs to branch off it; None if that was not kept."""


@dataclass(frozen=True, slots=True)
class BranchPoint:
    """Another token at one place of a rollout."""

    rollout: Rollout
    position: int
    """Index of the token in the generated text; the tokens before it are shared."""
    token_id: int
    """Token that stands there instead."""
    origin: Origin
    """Origin of that token: the draft's token at a mismatch is an override."""
    seed: int
    stream: int
    """Seed and stream of all that is drawn after the token."""


def foreign(handle: object) -> ConfigError:
    """Return the error for a branch whose rollout has no handle, or another backend's."""
    what = "no handle" if handle is None else f"a handle ({type(handle).__name__}) of another one"
    return ConfigError(
        f"the rollout of a branch has {what}, and this backend needs its own; complete the item "
        "with keep_handles=True and the same backend."
    )


class RolloutBackend(Protocol):
    """Decodes prompts and branches under an arbiter.

    The models are frozen: a backend may keep whatever it cached of a text for the whole run. The
    arbiter is given with each call, since its weights change from round to round.

    Attributes:
        on_finished: Called with the number of completions that have ended, for a progress bar.
    """

    on_finished: Callable[[int], None] | None

    @property
    def context_length(self) -> int:
        """Most tokens of a prompt and its answer."""
        ...

    def complete(
        self, items: Sequence[Item], arbiter: Arbiter, *, keep_handles: bool = False
    ) -> list[Rollout]:
        """Complete items, in their order.

        Args:
            items: Prompts.
            arbiter: Rules at mismatches.
            keep_handles: Keep the data that `branch` needs; it is freed with the rollouts.
        """
        ...

    def branch(
        self, points: Sequence[BranchPoint], arbiter: Arbiter, *, keep_handles: bool = False
    ) -> list[Rollout]:
        """Play branches out, in the order of the points.

        Args:
            points: Points at which the branches leave their rollouts.
            arbiter: Rules at mismatches.
            keep_handles: Keep the data that branches off these branches need.

        Returns:
            The whole completion of each branch. Its trace and counts (except `num_tokens`) begin
            after the point's token.

        Raises:
            ConfigError: A rollout was made by another backend, or without handles.
        """
        ...
