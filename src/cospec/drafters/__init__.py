"""Drafters: classes that propose tokens for the target to verify.

`base` has the protocol, and each other file one kind. Your own drafter is a class that you pass to
the engine: ``Engine(pair, arbiter, drafter=MyDrafter)``.
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
"""Drafters by name, as in `DecodeConfig.drafter`."""

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
