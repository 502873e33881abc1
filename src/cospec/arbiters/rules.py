"""Arbiters without weights: the base of all rules, the two extremes, chance, and the gap.

Each is a frozen dataclass whose fields are its knobs. They see a `MismatchBatch` and nothing else.
The rules of the literature are in `target_rules`, `pair_rules` and `mentored`.
"""

from __future__ import annotations

import math
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import TYPE_CHECKING, ClassVar

import torch

from cospec.errors import ConfigError
from cospec.types import MismatchBatch, Needs, Ruling

if TYPE_CHECKING:
    from torch import Tensor

Limits = dict[str, tuple[float, float]]
"""Least and greatest allowed value, by knob."""
_NUMBERS = ("int", "float", int, float)
"""Annotations of knobs that are numbers."""


@dataclass(frozen=True)
class Rule(ABC):
    """Base of all rules: a name with its settings, and the check of these."""

    kind: ClassVar[str]
    needs: ClassVar[Needs] = Needs.NOTHING
    limits: ClassVar[Limits] = {}

    @property
    def name(self) -> str:
        """The spec that `load_arbiter` takes."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        knobs = ",".join(f"{k}={_shown(v)}" for k, v in values.items())
        return f"{self.kind}:{knobs}" if knobs else self.kind

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            is_number = f.type in _NUMBERS
            if isinstance(value, str) and not is_number:  # a file, which the rule checks itself
                continue
            low, high = self.limits.get(f.name, (-math.inf, math.inf))
            number = math.nan
            if isinstance(value, Real):
                number = int(value) if isinstance(value, Integral) else float(value)
            if not abs(number) <= sys.float_info.max:  # no isfinite: it takes no such large int
                raise ConfigError(f"{f.name} is {value!r}; it must be a finite number.")
            if is_number:  # NumPy's have a repr that is no spec
                object.__setattr__(self, f.name, number)
            if not low <= number <= high:
                allowed = f"in [{low}, {high}]" if math.isfinite(high) else f"at least {low}"
                raise ConfigError(f"{f.name} is {value}; it must be {allowed}.")

    @abstractmethod
    def rule(self, batch: MismatchBatch) -> Ruling:
        """Rule on all mismatches of a block."""


@dataclass(frozen=True)
class ScoreRule(Rule):
    """A rule that keeps the draft's token where its score is above 0."""

    @abstractmethod
    def score(self, batch: MismatchBatch) -> Tensor:
        """Return how far each mismatch is inside the rule's bound, (M,)."""

    def rule(self, batch: MismatchBatch) -> Ruling:
        """Rule by the score."""
        score = self.score(batch)
        return Ruling(score > 0, score)


@dataclass(frozen=True)
class AlwaysTarget(Rule):
    """Always rules for the target: exactly speculative decoding (Leviathan et al., 2211.17192)."""

    kind = "lossless"

    def rule(self, batch: MismatchBatch) -> Ruling:
        """Rule for the target."""
        return Ruling(torch.zeros_like(batch.draft_ids, dtype=torch.bool))


@dataclass(frozen=True)
class AlwaysDraft(Rule):
    """Always rules for the draft: the target only adds a bonus token to each block."""

    kind = "always_draft"

    def rule(self, batch: MismatchBatch) -> Ruling:
        """Rule for the draft."""
        return Ruling(torch.ones_like(batch.draft_ids, dtype=torch.bool))


@dataclass(frozen=True)
class RandomOverride(Rule):
    """Rules for the draft at random: the control for any arbiter with the same rate."""

    kind = "random"
    needs = Needs.UNIFORMS
    limits: ClassVar[Limits] = {"rate": (0, 1)}

    rate: float = 0.5
    """Probability of ruling for the draft; 0 is lossless."""

    def rule(self, batch: MismatchBatch) -> Ruling:
        """Rule by the row's own uniform numbers."""
        assert batch.uniforms is not None
        return Ruling(batch.uniforms < self.rate)


@dataclass(frozen=True)
class LogProbGap(Rule):
    """Rules for the draft where the target finds its token nearly as probable as its own.

    A ratio of probabilities; `TopK` bounds their difference, as TensorRT-LLM does.
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


def _shown(value: float | str) -> str:
    """Return the value of a knob as written in a spec."""
    return value if isinstance(value, str) else repr(value).removesuffix(".0")


def gathered(values: Tensor, token_ids: Tensor) -> Tensor:
    """Each row's value at its token: (M, V) and (M,) to (M,)."""
    return values.gather(1, token_ids[:, None])[:, 0]
