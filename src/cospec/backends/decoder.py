"""A rollout backend with an arbiter, where an evaluation wants an engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cospec.backends.base import Item

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cospec.backends.base import RolloutBackend
    from cospec.config import DecodeConfig, SamplingConfig
    from cospec.models import ModelPair
    from cospec.types import Arbiter, Completion


@dataclass
class BackendDecoder:
    """Completes prompts on a backend under one arbiter.

    Args:
        pair: The models.
        backend: Decodes.
        arbiter: Rules at mismatches.
        config: The backend's options.

    Attributes:
        batch_size: Most prompts decoded together.
        num_speculative_tokens: Drafted tokens a block (k).
        context_length: Most tokens of a prompt and its answer.
    """

    pair: ModelPair
    backend: RolloutBackend
    arbiter: Arbiter
    config: DecodeConfig
    batch_size: int = field(init=False)
    num_speculative_tokens: int = field(init=False)
    context_length: int = field(init=False)

    def __post_init__(self) -> None:
        self.context_length = self.backend.context_length
        self.batch_size, self.num_speculative_tokens = self.config.batch_size, self.config.k

    def generate(
        self, prompts: Sequence[str | list[int]], sampling: Sequence[SamplingConfig]
    ) -> list[Completion]:
        """Complete all prompts, in their order."""
        pairs = zip(prompts, sampling, strict=True)
        items = [Item(prompt, config, i) for i, (prompt, config) in enumerate(pairs)]
        return [one.completion for one in self.backend.complete(items, self.arbiter)]
