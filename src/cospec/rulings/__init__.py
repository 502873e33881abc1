"""The semantics of rulings, as functions on tensors: engine, trainer and vLLM plugin share them.

`mismatches` makes what an arbiter sees, `vetoes` says which of its rulings do not count. Only the
slow reference decoder says the same again, and tests hold the two equal.
"""

from cospec.rulings.mismatches import (
    COLUMNS,
    LookAhead,
    check_ruling,
    in_width,
    look_ahead,
    make_batch,
    rank_in_row,
    token_log_p,
    token_probs,
    whole_block,
)
from cospec.rulings.vetoes import Veto, find_vetoes

__all__ = [
    "COLUMNS",
    "LookAhead",
    "Veto",
    "check_ruling",
    "find_vetoes",
    "in_width",
    "look_ahead",
    "make_batch",
    "rank_in_row",
    "token_log_p",
    "token_probs",
    "whole_block",
]
