"""The split that a problem belongs to: a rule on its text, so that no two splits can overlap.

The rule is shared with the script that trains the bundled models. Changing it mixes their training
problems into the test split.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cospec.tasks.base import Split

BUNDLED_TRAINING_SEEDS = 1_000_000_000
"""Seeds from here on train the bundled models: they cannot pick test or tune problems."""


def normalize(question: str) -> str:
    """Return the question with single blanks: two that are equal then are the same problem."""
    return " ".join(question.split())


def split_of(question: str) -> Split:
    """Return a problem's split by a hash of its whole question: a tenth is test, a tenth tune."""
    digest = hashlib.sha256(normalize(question).encode()).hexdigest()
    match int(digest, 16) % 10:
        case 0:
            return "test"
        case 1:
            return "tune"
        case _:
            return "train"
