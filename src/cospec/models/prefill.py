"""Plans the reading of prompts, so that a beginning that several share is read once.

Knows token ids and rows, nothing of models or caches.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

_LEAST_SHARED = 16
"""Fewest common first tokens that are read once for several prompts."""
_COMPARED = 64
"""Tokens that are compared at once."""
_MOST_ALIKE = 128
"""Most prompts in a group."""


class PrefillGroup(NamedTuple):
    """Prompts whose common beginning is read once."""

    places: list[int]
    """Indices of the prompts; the first one's row is read into, the others copy from it."""
    num_shared: int
    """Number of tokens that all of them begin with."""
    donor: int
    """Row that has read some of these already; meaningless if `num_held` is 0."""
    num_held: int
    """Number of these tokens that the donor has read."""


def plan_prefill(prompts: list[list[int]], held: list[list[int]]) -> list[PrefillGroup]:
    """Group prompts so that the fewest tokens are read.

    Prompts with a long common beginning are neighbours in their sorted order, and so is the row
    that has the most of it; the best cut into runs of neighbours is found by dynamic programming.

    Args:
        prompts: Token ids of prompts to be read.
        held: Tokens that each row has read, in use or not.
    """
    order = sorted(range(len(prompts)), key=prompts.__getitem__)
    rows = sorted(range(len(held)), key=held.__getitem__)
    sorted_held = [held[row] for row in rows]
    donors = [_donor(prompts[i], sorted_held, rows) for i in order]
    pairs = itertools.pairwise(order)
    alike = [num_shared_tokens(prompts[a], prompts[b]) for a, b in pairs]
    best: list[tuple[int, int, PrefillGroup | None]] = [(0, 0, None)]  # tokens read, start of group
    for end in range(1, len(order) + 1):
        options = []
        num_shared, num_all = len(prompts[order[end - 1]]), 0
        for start in range(end - 1, max(-1, end - 1 - _MOST_ALIKE), -1):
            if start < end - 1:
                num_shared = min(num_shared, alike[start])
                if num_shared < _LEAST_SHARED:
                    break
            num_all += len(prompts[order[start]])
            donor, num_held = donors[start]
            num_held = min(num_held, num_shared)
            num_read = num_all - (end - start - 1) * num_shared - num_held
            group = PrefillGroup(order[start:end], num_shared, donor, num_held)
            options.append((best[start][0] + num_read, start, group))
        best.append(min(options, key=lambda option: option[0]))
    plan, end = [], len(order)
    while end:
        _, end, chosen = best[end]
        assert chosen is not None
        plan.append(chosen)
    return plan


def cheapest_order(prompts: Sequence[Sequence[int]]) -> list[int]:
    """Return the order in which prompts are cheap to read a few at a time.

    If neighbours that begin alike can share more than half of all tokens (beyond the beginning that
    all share), prompts are sorted by their beginnings. Otherwise they are sorted by length, the
    longest first, so that those of similar length are read together.

    Args:
        prompts: Token ids.
    """
    alike = sorted(range(len(prompts)), key=lambda i: list(prompts[i]))
    shared = [num_shared_tokens(prompts[a], prompts[b]) for a, b in itertools.pairwise(alike)]
    num_saved = sum(shared) - len(shared) * min(shared, default=0)
    if 2 * num_saved > sum(map(len, prompts)):
        return alike
    return sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))


def _donor(prompt: list[int], held: list[list[int]], rows: list[int]) -> tuple[int, int]:
    """Return the row that shares the longest beginning with a prompt, and how many tokens that is.

    Args:
        prompt: Token ids.
        held: Tokens that rows have read, sorted, so that the best row is next to the prompt's
            place.
        rows: The row of each of them.
    """
    place = bisect_left(held, prompt)
    near = range(max(0, place - 1), min(place + 1, len(held)))
    shared, row = max(((num_shared_tokens(prompt, held[i]), rows[i]) for i in near), default=(0, 0))
    return (row, shared) if shared >= _LEAST_SHARED else (0, 0)


def num_shared_tokens(a: Sequence[object], b: Sequence[object]) -> int:
    """Count the first tokens that two lists have in common, or characters of two texts."""
    size = min(len(a), len(b))
    for start in range(0, size, _COMPARED):
        if a[start : start + _COMPARED] != b[start : start + _COMPARED]:
            pairs = enumerate(zip(a[start:], b[start:], strict=False), start)
            return next((i for i, (x, y) in pairs if x != y), size)
    return size
