"""Searches in the text of a row: what they find, and that a text is copied once."""

from __future__ import annotations

import itertools
from random import Random

import numpy as np
import pytest

from cospec import SamplingConfig
from cospec.config import DecodeConfig
from cospec.drafters.lookup import LookupDrafter
from cospec.drafters.ngram import look_up
from cospec.engine.rows import Row
from cospec.sampling import Chance
from cospec.types import Needs, Origin
from tests.engine.helpers import table_pair

GREEDY = Chance(None, None)


def by_definition(text: list[int], k: int, longest: int, shortest: int) -> list[int]:
    """The search as its docstring says it, window by window."""
    for n in range(longest, shortest - 1, -1):
        starts = [i for i in range(len(text) - n) if text[i : i + n] == text[len(text) - n :]]
        if starts:
            followed = [i for i in starts if i + n + k <= len(text)]
            begin = (followed[-1] if followed else starts[0]) + n
            return text[begin : begin + k]
    return []


@pytest.mark.parametrize("num_words", [1, 2, 3, 9])
def test_the_search_is_that_of_all_windows(num_words):
    random, num_found = Random(num_words), 0
    for _ in range(500):
        text = random.choices(range(num_words), k=random.randint(1, 30))
        k, shortest = random.randint(1, 6), random.randint(1, 3)
        longest = shortest + random.randint(0, 3)
        found = look_up(text, k, longest, shortest)
        assert found == by_definition(text, k, longest, shortest)
        assert found == look_up(np.array(text), k, longest, shortest)
        assert all(type(token) is int for token in found)
        num_found += bool(found)
    assert num_found > 50


class Seeing(LookupDrafter):
    """Finds nothing, and keeps the texts that it was asked about."""

    def find(self, token_ids):
        self.seen.append(token_ids)
        return []

    def ask(self, rows):
        """The texts of one block."""
        self.seen = []
        assert self.propose(rows, GREEDY).lengths.tolist() == [0] * len(rows)
        return self.seen


def some_rows(lengths):
    settings = SamplingConfig(max_new_tokens=1000)
    return [Row(i, [i + 1] * n, settings, frozenset(), None) for i, n in enumerate(lengths)]


def test_each_row_is_searched_in_its_own_text_while_rows_grow_end_and_move():
    drafter = Seeing(table_pair(), DecodeConfig(num_speculative_tokens=3), Needs.NOTHING)
    rows, random = some_rows([3, 1, 7, 2]), Random(0)
    rows[3].generated = [5, 6]  # as of a branch
    for i in range(120):
        for row in rows:
            for _ in range(random.randint(0, 4)):
                row.emit(random.randint(0, 9), Origin.MATCH)
        found = [ids.tolist() for ids in drafter.ask(rows)]
        assert found == [row.prompt_ids + row.generated for row in rows]
        if i == 40:  # the first row ends, and the last one moves there
            rows[0] = rows.pop()
        if i == 80:
            rows += some_rows([2])


def test_a_text_is_copied_once_and_not_at_each_block():
    """Found: each block turned the whole text into an array again, which took milliseconds."""
    drafter = Seeing(table_pair(), DecodeConfig(num_speculative_tokens=3), Needs.NOTHING)
    (row,) = some_rows([50])
    arrays = []
    for _ in range(400):
        row.emit(3, Origin.MATCH)
        arrays += drafter.ask([row])
    num_copies = sum(not np.shares_memory(a, b) for a, b in itertools.pairwise(arrays))
    assert len(arrays[-1]) == 450 and num_copies <= 5
