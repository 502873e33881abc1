"""Base of the drafters without a model, which propose tokens that they look up."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cospec.drafters.base import Drafter, found_proposal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cospec.config import DecodeConfig
    from cospec.drafters.base import DraftRow
    from cospec.models.pair import ModelPair
    from cospec.sampling import Chance
    from cospec.types import Needs, Proposal


Ids: TypeAlias = NDArray[np.int64]


class LookupDrafter(Drafter):
    """Proposes tokens that a search in the text of each row finds; a subclass implements `find`."""

    def __init__(self, pair: ModelPair, config: DecodeConfig, needs: Needs) -> None:
        """See `Drafter`."""
        self._k = config.k
        self._device = pair.target.device
        self._vocab_size: int = pair.target.config.get_text_config().vocab_size
        self._texts: dict[int, _Text] = {}
        """Texts of the last block's rows, by the `id` of each row's list of generated tokens."""

    def find(self, token_ids: Ids) -> list[int]:
        """Return up to k tokens that may follow a text; none if nothing is found."""
        raise NotImplementedError

    def propose(self, rows: Sequence[DraftRow], chance: Chance) -> Proposal:
        """Look up the last tokens of each row in its text; propose none where they are new."""
        # A known text holds its list, so no other list can have the same id.
        texts = [self._texts.get(id(row.generated)) or _Text(row) for row in rows]
        self._texts = {id(text.generated): text for text in texts}
        found = [self.find(text.grown(row)) for text, row in zip(texts, rows, strict=True)]
        return found_proposal(found, self._vocab_size, chance, self._device)


class _Text:
    """The tokens of a row as an array: made once, then only new tokens are copied.

    Args:
        row: The row, whose text only ever grows.

    Attributes:
        generated: The row's list.
    """

    def __init__(self, row: DraftRow) -> None:
        self.generated = row.generated
        self._ids: Ids = np.array(row.prompt_ids + row.generated, dtype=np.int64)
        self._length = len(row)

    def grown(self, row: DraftRow) -> Ids:
        """Return all tokens of the row as it is now."""
        if len(row) > len(self._ids):  # twice the room, so that copying stays rare
            self._ids = np.concatenate([self._ids, np.empty(len(row), dtype=np.int64)])
        new = row.generated[self._length - len(row.prompt_ids) :]
        self._ids[self._length : len(row)] = new
        self._length = len(row)
        return self._ids[: self._length]


def longest_end(ids: Ids, most: int) -> tuple[NDArray[np.intp], int]:
    """Return where the longest repeated end of a text occurred (its last places), and its length.

    Args:
        ids: The text. Only its last token is searched in all of it, the rest where that one occurs.
        most: Longest end that is searched for.
    """
    places, length = np.flatnonzero(ids[:-1] == ids[-1]), 1
    while length < most and len(places):
        longer = places[places >= length]
        longer = longer[ids[longer - length] == ids[-1 - length]]
        if not len(longer):
            break
        places, length = longer, length + 1
    return places, length
