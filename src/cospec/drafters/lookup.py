"""The common part of drafters without a model: tokens that are looked up, as a proposal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from cospec.drafters.base import Drafter
from cospec.sampling import one_hot
from cospec.types import Proposal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cospec.config import DecodeConfig
    from cospec.drafters.base import DraftRow
    from cospec.models.pair import ModelPair
    from cospec.sampling import Chance
    from cospec.types import Needs


class LookupDrafter(Drafter):
    """Proposes tokens that a search in the text of each row finds; a subclass writes `find`."""

    def __init__(self, pair: ModelPair, config: DecodeConfig, needs: Needs) -> None:
        """See `Drafter`."""
        self._k = config.k
        self._device = pair.target.device
        self._vocab_size: int = pair.target.config.get_text_config().vocab_size

    def find(self, token_ids: list[int]) -> list[int]:
        """Return up to k tokens that may follow a text; none where nothing is found."""
        raise NotImplementedError

    def propose(self, rows: Sequence[DraftRow], chance: Chance) -> Proposal:
        """Look the last tokens of each row up in it; no token where they are new."""
        found = [self.find(row.prompt_ids + row.generated) for row in rows]
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
