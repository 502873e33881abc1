"""Rules of the literature that look at the target's distribution ``p`` alone.

Constants are those of the released code named in each class.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from cospec.arbiters.rules import Limits, Rule
from cospec.types import MismatchBatch, Needs, Ruling


@dataclass(frozen=True)
class FLy(Rule):
    """Training-free loosely speculative decoding (2511.22972), as its released code has it.

    A mismatch stands if the target is unsure and the drafted tokens that follow all match. One in
    the last `window` places of a block is never kept, so that a block has to be longer than that.
    """

    kind = "fly"
    needs = Needs.TARGET_LOGITS | Needs.LOOKAHEAD
    limits: ClassVar[Limits] = {"window": (1, math.inf)}

    window: int = 6
    """The mismatch and the matches that have to follow it (the released ``win_len``; vLLM's
    proposal counts the matches alone)."""
    min_entropy: float = 0.3
    """Least entropy of the target, in nats: the top 3 terms of the full softmax."""

    def rule(self, batch: MismatchBatch) -> Ruling:
        """Rule by entropy and look-ahead; the score is the entropy above its least value."""
        assert batch.lookahead_matches is not None
        follows = batch.lookahead_matches[:, : self.window - 1].all(dim=1)
        is_early = batch.block_positions < batch.block_length - self.window
        log_p = batch.log_p.topk(min(3, batch.log_p.shape[1]), dim=1).values
        score = -(log_p.exp() * log_p).nan_to_num(0.0).sum(dim=1) - self.min_entropy
        return Ruling(follows & is_early & (score >= 0), score)
