"""Prompt lookup as a drafter: the text so far, searched for its own last tokens.

Where the last n tokens of a row occur earlier in its prompt or completion, what followed them there
is proposed. It costs no forward, and pays where the output copies from the prompt: summaries, code
edits, questions about a document. The idea is Saxena's (prompt lookup decoding, 2023); names and
the order of the search, longest match first, are those of vLLM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from cospec.drafters.base import Drafter
from cospec.errors import ConfigError
from cospec.sampling import one_hot
from cospec.types import Proposal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cospec.config import DecodeConfig
    from cospec.drafters.base import DraftRow
    from cospec.models.pair import ModelPair
    from cospec.sampling import Chance
    from cospec.types import Needs


class NgramDrafter(Drafter):
    """Proposes what followed the last tokens of a row where they occurred before."""

    def __init__(self, pair: ModelPair, config: DecodeConfig, needs: Needs) -> None:
        """See `Drafter`.

        Raises:
            ConfigError: Blocks are to end by the draft's confidence, which there is none of.
        """
        if config.draft_confidence_threshold:
            raise ConfigError(
                f"draft_confidence_threshold is {config.draft_confidence_threshold}, and the ngram "
                "drafter has no probabilities to compare with it; set it to 0."
            )
        self._k = config.k
        self._longest, self._shortest = config.prompt_lookup_max, config.prompt_lookup_min
        self._device = pair.target.device
        self._vocab_size: int = pair.target.config.get_text_config().vocab_size

    def propose(self, rows: Sequence[DraftRow], chance: Chance) -> Proposal:
        """Look the last tokens of each row up in it; no token where they are new."""
        found = [
            look_up(row.prompt_ids + row.generated, self._k, self._longest, self._shortest)
            for row in rows
        ]
        width = max(map(len, found))
        padded = [ids + [0] * (width - len(ids)) for ids in found]
        token_ids = torch.tensor(padded, dtype=torch.int64, device=self._device)  # (B, K)
        lengths = torch.tensor([len(ids) for ids in found], device=self._device)
        is_drafted = torch.arange(width, device=self._device) < lengths[:, None]  # (B, K)
        probs = None
        if chance.warper is not None:
            # What is looked up is drawn from a distribution with all its mass on one token, so
            # that it is accepted with p(token), and the residual is p without that token.
            probs = one_hot(token_ids, self._vocab_size) * is_drafted[..., None]
        return Proposal(token_ids, lengths, torch.ones_like(is_drafted), probs=probs)


def look_up(token_ids: list[int], k: int, longest: int, shortest: int) -> list[int]:
    """Return up to k tokens that followed the last ones where they occurred before.

    The longest match wins; of several the latest one that k tokens follow, or else the earliest.

    Args:
        token_ids: The text so far.
        k: Most tokens to return.
        longest: Most last tokens to search for.
        shortest: Fewest of them.
    """
    ids = np.asarray(token_ids)
    for n in range(min(longest, len(ids) - 1), shortest - 1, -1):
        windows = np.lib.stride_tricks.sliding_window_view(ids[:-1], n)
        starts = np.flatnonzero((windows == ids[-n:]).all(axis=1))
        if len(starts):
            followed = starts[starts + n + k <= len(ids)]
            begin = int(followed[-1] if len(followed) else starts[0]) + n
            return token_ids[begin : begin + k]
    return []
