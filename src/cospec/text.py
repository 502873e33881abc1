"""Text from models, files and hubs, made safe to show to a person, and numbers for JSON."""

from __future__ import annotations

import math
import re
from typing import Any

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


def finite(value: Any) -> Any:  # Any: what JSON can hold, or nearly
    """Return None for NaN and infinity, which JSON does not have, and anything else as it is."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
