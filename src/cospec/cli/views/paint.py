"""Text on a terminal, each token coloured by where it comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from cospec.text import GrowingText, visible
from cospec.types import Delta, Origin

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STYLES = {
    Origin.MATCH: "",
    Origin.OVERRIDE: "bold magenta",
    Origin.CORRECTION: "underline yellow",
    Origin.BONUS: "cyan",
}
LEGEND = Text.assemble(
    ("drafted and matched", STYLES[Origin.MATCH]),
    "  ",
    ("override (the draft's token stands)", STYLES[Origin.OVERRIDE]),
    "  ",
    ("the target's correction", STYLES[Origin.CORRECTION]),
    "  ",
    ("bonus", STYLES[Origin.BONUS]),
)


class Painter:
    """Colours the stream of one completion."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._growing = GrowingText(tokenizer)
        self._num_painted = 0
        self._num_settled = 0

    def paint(self, delta: Delta) -> Text:
        """Return the new text of a delta in colour, with control characters made visible."""
        self._num_settled += len(delta.text)
        painted = Text()
        for token_id, origin in zip(delta.token_ids, delta.origins, strict=True):
            piece = self._growing.add(token_id)[self._num_painted : self._num_settled]
            painted.append(visible(piece), STYLES[origin])
            self._num_painted += len(piece)
        return painted
