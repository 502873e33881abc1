"""Prompt lookup as a drafter: it searches the text so far for its own last tokens.

If the last n tokens of a row occur earlier in its prompt or completion, the tokens that followed
them there are proposed. This costs no forward, and pays where the output copies from the prompt:
summaries, code edits, questions about a document. The idea is Saxena's (prompt lookup decoding,
2023); names and the order of the search, longest match first, are those of vLLM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cospec.drafters.lookup import LookupDrafter, longest_end
from cospec.errors import ConfigError

if TYPE_CHECKING:
    from cospec.config import DecodeConfig
    from cospec.drafters.lookup import Ids
    from cospec.models.pair import ModelPair
    from cospec.types import Needs


class NgramDrafter(LookupDrafter):
    """Proposes the tokens that followed an earlier occurrence of a row's last tokens."""

    def __init__(self, pair: ModelPair, config: DecodeConfig, needs: Needs) -> None:
        """See `Drafter`.

        Raises:
            ConfigError: Blocks are to end by the draft's confidence, which a search does not have.
        """
        super().__init__(pair, config, needs)
        if config.draft_confidence_threshold:
            raise ConfigError(
                f"draft_confidence_threshold is {config.draft_confidence_threshold}, and the ngram "
                "drafter has no probabilities to compare with it; set it to 0."
            )
        self._longest, self._shortest = config.prompt_lookup_max, config.prompt_lookup_min

    def find(self, token_ids: Ids) -> list[int]:
        """Return the tokens that followed an earlier occurrence of the last ones."""
        return look_up(token_ids, self._k, self._longest, self._shortest)


def look_up(token_ids: list[int] | Ids, k: int, longest: int, shortest: int) -> list[int]:
    """Return up to k tokens that followed an earlier occurrence of the last ones.

    The longest match wins; among equals, the latest that k tokens follow, or else the earliest.

    Args:
        token_ids: The text so far.
        k: Most tokens to return.
        longest: Most last tokens to search for.
        shortest: Fewest last tokens that must match.
    """
    ids = np.asarray(token_ids)
    places, length = longest_end(ids, longest)
    if not len(places) or length < shortest:
        return []
    followed = places[places + 1 + k <= len(ids)]
    begin = int(followed[-1] if len(followed) else places[0]) + 1
    found: list[int] = ids[begin : begin + k].tolist()
    return found
