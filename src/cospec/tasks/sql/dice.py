"""Random numbers that are the same on every machine and Python: seeded by text, `random` alone.

Only `random.Random.random` is used, since the other methods may change between versions.
"""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

T = TypeVar("T")


def stable_hash(text: str) -> int:
    """Return a number that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


class Dice:
    """A generator of random numbers that is seeded by names."""

    def __init__(self, *names: object) -> None:
        self._random = random.Random(stable_hash("\0".join(map(str, names))))

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return self._random.random() < probability

    def below(self, end: int) -> int:
        """Return one of 0 to ``end - 1``."""
        return int(self._random.random() * end)

    def between(self, low: float, high: float) -> float:
        """Return a number in the range."""
        return low + self._random.random() * (high - low)

    def pick(self, values: Sequence[T]) -> T:
        """Return one of the values."""
        return values[self.below(len(values))]

    def skewed(self, values: Sequence[T]) -> T:
        """Return one of the values, the first ones more often."""
        return values[int(self._random.random() ** 2.0 * len(values))]

    def shuffled(self, values: Sequence[T]) -> list[T]:
        """Return all values in a random order."""
        keys = [(self._random.random(), i) for i in range(len(values))]
        return [values[i] for _, i in sorted(keys)]
