"""Text from models, files and hubs, made safe to show to a person, and numbers for JSON."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BROKEN = "\N{REPLACEMENT CHARACTER}"
"""Shown by a decoder for the first bytes of an unfinished character."""

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls, except tab and line break
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # bidirectional controls
    "\u2028\u2029\ud800-\udfff]"  # other line breaks, and halves of characters
)


def visible(text: str) -> str:
    r"""Return the text with control characters as escapes, such as ``\x1b`` or ``\u202e``.

    A model's text could otherwise move the cursor of a terminal, colour it, set its title, or show
    a line in another order than it has. Tabs and line breaks stay.
    """
    return _HIDDEN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def typed(text: str) -> str:
    r"""Return what somebody meant who cannot type a line break: it for ``\n``, ``\`` for ``\\``."""
    return re.sub(r"\\([\\n])", lambda match: "\n" if match[1] == "n" else match[1], text)


def finite(value: Any) -> Any:  # Any: what JSON can hold, or nearly
    """Return None for NaN and infinity, which JSON does not have, and anything else as it is."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def plain_dict(items: list[tuple[str, Any]]) -> dict[str, Any]:  # Any: fields of a dataclass
    """Return a dict of what JSON has: tensors are lists, and no number is NaN or infinite."""

    def plain(value: Any) -> Any:  # Any: as above
        rows = getattr(value, "tolist", None)  # of a tensor, (F,)
        return finite(value) if rows is None else list(map(finite, rows()))

    return {key: plain(value) for key, value in items}


class GrowingText:
    """The text of tokens that come one by one, each decoded with a few before it and not with all.

    Args:
        tokenizer: Of the tokens.

    Attributes:
        text: Of all tokens so far.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._token_ids: list[int] = []
        self.text = ""
        # Places where the text ended with a whole character: of each the place before, itself, the
        # characters up to it, and the text of the tokens between the two.
        self._places: list[tuple[int, int, int, str]] = [(0, 0, 0, "")]

    def add(self, token_id: int) -> str:
        """Return the text of all tokens so far."""
        self._token_ids.append(token_id)
        start, place, length, between = self._places[-1]
        tail = self._decode(start)
        while not tail.startswith(between):  # a byte may break the characters of those before it
            self._places.pop()
            start, place, length, between = self._places[-1]
            tail = self._decode(start)
        self.text = self.text[:length] + tail[len(between) :]
        if len(self.text) > length and not self.text.endswith(BROKEN):
            between = self._decode(place)
            if between:  # some tokenizers drop the first space, and then it tells nothing
                self._places.append((place, len(self._token_ids), len(self.text), between))
        return self.text

    def _decode(self, start: int) -> str:
        """The text of the tokens from a place on."""
        text = self._tokenizer.decode(
            self._token_ids[start:], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text
