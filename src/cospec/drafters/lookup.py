"""The common part of drafters without a model: tokens that are looked up, as a proposal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cospec.drafters.base import Drafter, found_proposal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cospec.config import DecodeConfig
    from cospec.drafters.base import DraftRow
    from cospec.models.pair import ModelPair
    from cospec.sampling import Chance
    from cospec.types import Needs, Proposal


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
        return found_proposal(found, self._vocab_size, chance, self._device)
