"""Drafters: whatever proposes tokens for the target to verify.

`base` has the protocol, and each other file one kind. A drafter of one's own is a class that is
passed to the engine: ``Engine(pair, arbiter, drafter=MyDrafter)``.
"""

from __future__ import annotations

from cospec.drafters.base import Drafter, DraftRow, found_proposal
from cospec.drafters.chained import NgramFirst, SuffixFirst
from cospec.drafters.model import ModelDrafter
from cospec.drafters.ngram import NgramDrafter
from cospec.drafters.suffix import SuffixDrafter

DRAFTERS: dict[str, type[Drafter]] = {
    "model": ModelDrafter,
    "ngram": NgramDrafter,
    "suffix": SuffixDrafter,
    "ngram+model": NgramFirst,
    "suffix+model": SuffixFirst,
}
"""By name, as `DecodeConfig.drafter` has it."""

__all__ = [
    "DRAFTERS",
    "DraftRow",
    "Drafter",
    "ModelDrafter",
    "NgramDrafter",
    "NgramFirst",
    "SuffixDrafter",
    "SuffixFirst",
    "found_proposal",
]
