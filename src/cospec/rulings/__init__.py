"""The semantics of rulings, as functions on tensors: engine, trainer and vLLM plugin share them.

`mismatches` builds the batch that an arbiter sees; `vetoes` finds the rulings that do not count.
Only the slow reference decoder has its own copy of this, and tests check that both agree.
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
