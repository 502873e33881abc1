"""Suffix drafting: the tokens that most often followed the longest repeated end of the text.

After SuffixDecoding (2411.04975). Prompt lookup takes one place of a short match. Here all places
of the longest match vote on each next token, and the share of the votes is its confidence: a block
ends where the product of the shares falls below a limit. The paper keeps a suffix tree; an array
that is narrowed token by token finds the same in well under a millisecond for the few thousand
tokens of a row. The paper's package (arctic-inference) is released as source that builds against
one version of torch and vLLM, for a search of a dozen lines. Only the row's own text is searched,
so that no text depends on the others of its batch.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from cospec.drafters.lookup import LookupDrafter, longest_end

if TYPE_CHECKING:
    from cospec.config import DecodeConfig
    from cospec.drafters.lookup import Ids
    from cospec.models.pair import ModelPair
    from cospec.types import Needs

_LONGEST = 64
"""Longest match that is searched for."""


class SuffixDrafter(LookupDrafter):
    """Proposes the tokens that most often followed the longest repeated end of a row."""

    def __init__(self, pair: ModelPair, config: DecodeConfig, needs: Needs) -> None:
        """See `Drafter`."""
        super().__init__(pair, config, needs)
        self._shortest, self._least = config.prompt_lookup_min, config.draft_confidence_threshold

    def find(self, token_ids: Ids) -> list[int]:
        """Return the tokens that most often followed the longest repeated end of a text."""
        return continue_suffix(token_ids, self._k, self._shortest, self._least)


def continue_suffix(
    token_ids: list[int] | Ids, k: int, shortest: int, least: float = 0.0
) -> list[int]:
    """Return up to k tokens that most often followed the longest repeated end of a text.

    Args:
        token_ids: The text so far.
        k: Most tokens to return.
        shortest: Fewest last tokens that must have occurred before.
        least: Least product of the tokens' shares of the votes.
    """
    ids = np.asarray(token_ids)
    places, length = longest_end(ids, _LONGEST)
    if not len(places) or length < shortest:
        return []
    found: list[int] = []
    share = 1.0
    while len(found) < k:
        places = places[places + len(found) + 1 < len(ids)]
        if not len(places):
            break
        following = ids[places + len(found) + 1]
        votes = Counter(following[::-1].tolist())
        token = max(votes, key=votes.__getitem__)  # of equally frequent ones the last in the text
        share *= votes[token] / len(places)
        if share < least:
            break
        places = places[following == token]
        found.append(token)
    return found
