"""Arbiters without weights: the two extremes, chance, and hand-written rules.

Each is a frozen dataclass whose fields are its knobs. They see a `MismatchBatch` and nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar

import torch

from cospec.errors import ConfigError
from cospec.types import MismatchBatch, Needs, Ruling

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class _Rule:
    """What the rules below share: a name with its settings."""

    kind: ClassVar[str]
    needs: ClassVar[Needs] = Needs.NOTHING

    @property
    def name(self) -> str:
        """The spec that `load_arbiter` takes."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        knobs = ",".join(f"{k}={repr(v).removesuffix('.0')}" for k, v in values.items())
        return f"{self.kind}:{knobs}" if knobs else self.kind

    def __post_init__(self) -> None:
        for f in fields(self):
            if not math.isfinite(value := getattr(self, f.name)):
                raise ConfigError(f"{f.name} is {value}; it must be a finite number.")


@dataclass(frozen=True)
class AlwaysTarget(_Rule):
    """Always rules for the target: exactly speculative decoding (Leviathan et al., 2211.17192)."""

    kind = "lossless"

    def rule(self, batch: MismatchBatch) -> Ruling:
        """Rule for the target."""
        return Ruling(torch.zeros_like(batch.draft_ids, dtype=torch.bool))


@dataclass(frozen=True)
class AlwaysDraft(_Rule):
    """Always rules for the draft: the target only adds a bonus token to each block."""

    kind = "always_draft"

    def rule(self, batch: MismatchBatch) -> Ruling:
        """Rule for the draft."""
        return Ruling(torch.ones_like(batch.draft_ids, dtype=torch.bool))


@dataclass(frozen=True)
class RandomOverride(_Rule):
    """Rules for the draft at random: the control for any arbiter of the same rate."""

    kind = "random"
    needs = Needs.UNIFORMS

    rate: float = 0.5
    """Probability of ruling for the draft; 0 is lossless."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.rate <= 1:
            raise ConfigError(f"rate is {self.rate}; it must be in [0, 1].")

    def rule(self, batch: MismatchBatch) -> Ruling:
        """Rule by the row's own uniform numbers."""
        assert batch.uniforms is not None
        return Ruling(batch.uniforms < self.rate)


@dataclass(frozen=True)
class LogProbGap(_Rule):
    """Rules for the draft where the target finds its token nearly as probable as its own.

    The tolerance that TensorRT-LLM calls ``relaxed_delta``, in nats on the target's distribution.
    """

    kind = "gap"
    needs = Needs.TARGET_LOGITS

    max_gap: float = 1.0
    """Largest log p(target's token) - log p(draft's token), in nats; 0 and less is lossless."""

    def rule(self, batch: MismatchBatch) -> Ruling:
        """Rule by the gap; the score is the tolerance left."""
        gap = gathered(batch.log_p, batch.target_ids) - gathered(batch.log_p, batch.draft_ids)
        score = self.max_gap - gap
        # When sampling, the target's token may be the less probable one: the gap is then negative.
        return Ruling((score > 0) & (self.max_gap > 0), score)


@dataclass(frozen=True)
class FLy(_Rule):
    """Training-free loosely speculative decoding (2511.22972), as its released code has it.

    A mismatch stands if the target is unsure and the drafted tokens that follow all match. One in
    the last `window` places of a block is never kept, so that a block has to be longer than that.
    """

    kind = "fly"
    needs = Needs.TARGET_LOGITS | Needs.LOOKAHEAD

    window: int = 6
    """The mismatch and the matches that have to follow it (the released ``win_len``; vLLM's
    proposal counts the matches alone)."""
    min_entropy: float = 0.3
    """Least entropy of the target, in nats: the top 3 terms of the full softmax."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1:
            raise ConfigError(f"window is {self.window}; it must be at least 1.")

    def rule(self, batch: MismatchBatch) -> Ruling:
        """Rule by entropy and look-ahead; the score is the entropy above its least value."""
        assert batch.lookahead_matches is not None
        follows = batch.lookahead_matches[:, : self.window - 1].all(dim=1)
        is_early = batch.block_positions < batch.block_length - self.window
        log_p = batch.log_p.topk(min(3, batch.log_p.shape[1]), dim=1).values
        score = -(log_p.exp() * log_p).nan_to_num(0.0).sum(dim=1) - self.min_entropy
        return Ruling(follows & is_early & (score >= 0), score)


def gathered(values: Tensor, token_ids: Tensor) -> Tensor:
    """Each row's value at its token: (M, V) and (M,) to (M,)."""
    return values.gather(1, token_ids[:, None])[:, 0]
