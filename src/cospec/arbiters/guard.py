"""The two guards of a trained arbiter: it stands back from texts unlike those of its training.

A policy may be confident about texts that it knows nothing about, without any feature showing it.
One guard looks at the prompt, before anything is drafted. The other one looks at how often draft
and target disagree in the text so far.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from cospec.types import MismatchBatch

NUM_BUCKETS = 1024
"""Buckets of token ids: id i is in bucket i mod 1024."""
_HEAD_START = 5.0  # tokens, so that a mismatch at the start of a text is nothing unusual
_MARGIN = 0.1  # in likeness: a few prompts do not show how much those of one task differ


@runtime_checkable
class SelectiveArbiter(Protocol):
    """An arbiter that stands back from some prompts: their texts are decoded losslessly."""

    def is_foreign(self, prompt_ids: Sequence[int]) -> bool:
        """Return whether it stands back from a prompt, by its token ids."""
        ...


@dataclass(frozen=True, eq=False)
class PromptGuard:
    """Recognizes prompts like those of training by their tokens.

    Attributes:
        profile: Share of each bucket of token ids in the prompts of training, (1024,) float32.
        min_likeness: Likeness below which a prompt is foreign; 0 lets all pass.
    """

    profile: Tensor
    min_likeness: float

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], others: Sequence[Sequence[int]]) -> PromptGuard:
        """Return the guard for the prompts of a training.

        Its least likeness is as far below the lowest of the other prompts as that one is below
        their median, and at least 0.1 below it, so that none of them is foreign.

        Args:
            prompts: Prompts of the training, as token ids.
            others: Prompts of the same kind, such as those of the tune split.
        """
        guard = cls(torch.stack([_shares(prompt) for prompt in prompts]).mean(dim=0), 0.0)
        found = torch.tensor([guard.likeness(prompt) for prompt in others])
        lowest = float(found.min())
        return cls(guard.profile, max(0.0, lowest - max(float(found.median()) - lowest, _MARGIN)))

    def likeness(self, prompt: Sequence[int]) -> float:
        """Return the Bhattacharyya coefficient of a prompt and those of training, from 0 to 1."""
        return float((_shares(prompt) * self.profile).sqrt().sum())

    def is_foreign(self, prompt: Sequence[int]) -> bool:
        """Return whether a prompt is unlike those of training; one without tokens is."""
        return self.min_likeness > 0 and (not prompt or self.likeness(prompt) < self.min_likeness)


def _shares(prompt: Sequence[int]) -> Tensor:
    """Return the share of each bucket in a prompt, (1024,) float32."""
    counts = torch.bincount(torch.tensor(prompt, device="cpu") % NUM_BUCKETS, minlength=NUM_BUCKETS)
    return counts.float() / len(prompt)


def mismatch_rate(num_mismatches: Tensor, positions: Tensor) -> Tensor:
    """Return the mismatches per token of a text up to each of its mismatches, (M,) float32.

    Args:
        num_mismatches: Number of mismatches before each, (M,).
        positions: Index of each in the text, (M,).
    """
    return (num_mismatches + 1) / (positions + _HEAD_START)


def guarded(probability: Tensor, batch: MismatchBatch, max_mismatch_rate: float) -> Tensor:
    """Return probabilities, (M,), with 0 where a text has more mismatches than the rate allows."""
    rate = mismatch_rate(batch.num_mismatches, batch.positions)
    return probability.masked_fill(rate > max_mismatch_rate, 0.0)
