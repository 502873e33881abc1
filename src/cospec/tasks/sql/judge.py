"""Says whether a query answers a question: its results are those of the gold query.

Both run on every database of the question's schema: fillings, or a user's own file. The idea is
test-suite accuracy (Zhong, Yu and Klein 2020, 2010.02840).

A database counts for a gold query only where the gold result is one answer: neither the order in
which tables are read nor a tie in ORDER BY may change it.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from cospec.errors import TaskError
from cospec.tasks.base import Score
from cospec.tasks.sql.compare import canonical, same_results
from cospec.tasks.sql.executor import Executor, QueryError
from cospec.tasks.sql.extract import extract_query
from cospec.tasks.sql.ordering import is_ordered, keyed
from cospec.tasks.sql.solution import plain_strings
from cospec.tasks.sql.tokens import depths, tokenize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cospec.tasks.base import Example
    from cospec.tasks.sql.compare import Groups, Row
    from cospec.tasks.sql.schema import Schema

_CLOCK_WORDS = {"CURRENT_DATE", "CURRENT_TIME", "CURRENT_TIMESTAMP"}
_DATES = {"DATE", "TIME", "DATETIME", "JULIANDAY", "UNIXEPOCH", "STRFTIME", "TIMEDIFF"}
GOLD_TIME_S = 10.0
"""Seconds that a gold query may take, on a machine that may be busy when the task is loaded."""
SLOW_S = 1.0
"""Seconds of all gold results after which other queries may take `GOLD_TIME_S` as well."""


class Databases(Protocol):
    """Lookup of a schema and of its databases."""

    def schema(self, db_id: str) -> Schema:
        """Return the schema of that name."""
        ...

    def paths(self, db_id: str) -> Sequence[str]:
        """Return its SQLite files, each with contents of its own."""
        ...


@dataclass(frozen=True, slots=True)
class Gold:
    """The results of a gold query."""

    paths: tuple[str, ...]
    """The databases on which its result is one answer."""
    results: tuple[Groups, ...]
    """The gold result on each of these databases."""
    is_one_answer: bool = True
    """True if there are enough such databases; else these are all of them."""
    is_slow: bool = False
    """True if it took so long that the usual limit could be too short for an equal query."""


class Judge:
    """Judges queries on the databases of many schemas."""

    def __init__(self, databases: Databases) -> None:
        self.databases = databases
        self.executor = Executor()
        self.gold = lru_cache(maxsize=None)(self._gold)

    def score(self, example: Example, text: str) -> Score:
        """Right if the first query in the text returns what the gold query does."""
        query = extract_query(text)
        if query is None:
            return Score(0.0)
        db_id = example.metadata["db_id"]
        return Score(float(self.is_right(db_id, example.metadata["query"], query)), query)

    def is_right(self, db_id: str, gold_query: str, query: str) -> bool:
        """Return whether a query returns what the gold query does, on all databases that count.

        Raises:
            TaskError: The gold query itself fails.
        """
        try:
            gold = self.gold(db_id, gold_query)
        except QueryError as error:
            raise TaskError(
                f"the gold query {gold_query!r} has no result on the database {db_id!r}: {error}. "
                "Correct the query, or leave its question out."
            ) from error
        if self.asks_the_clock(db_id, query):
            return False
        found, time_s = [], GOLD_TIME_S if gold.is_slow else None
        for path, groups in zip(gold.paths, gold.results, strict=True):
            num_rows = sum(map(len, groups))
            try:
                rows = canonical(self.executor.run(path, query, max_rows=num_rows, time_s=time_s))
            except QueryError:
                return False
            if len(rows) != num_rows:
                return False
            found.append(rows)
        return same_results(gold.results, found)

    def asks_the_clock(self, db_id: str, query: str) -> bool:
        """Return whether the answer of a query, or of a view it reads, depends on the time."""
        return any(map(asks_the_clock, self.databases.schema(db_id).with_views(query)))

    def _gold(self, db_id: str, query: str) -> Gold:
        """Return the gold results that are one answer; those on all databases if none is."""
        query = plain_strings(query, self.databases.schema(db_id).names)
        paths = self.databases.paths(db_id)
        start = time.monotonic()
        every = [self._gold_groups(path, query) for path in paths]
        is_slow = time.monotonic() - start > SLOW_S
        counted = [i for i, (_, is_one_answer) in enumerate(every) if is_one_answer]
        used = counted or range(len(paths))
        results = tuple(every[i][0] for i in used)
        return Gold(tuple(paths[i] for i in used), results, bool(counted), is_slow)

    def _gold_groups(self, path: str, query: str) -> tuple[Groups, bool]:
        """Return the gold result on one database, and whether it is one answer."""
        rows = canonical(self.executor.run(path, query, time_s=GOLD_TIME_S))
        groups, is_cut = self._ties(path, query, rows)
        reverse = canonical(self.executor.run(path, query, reverse=True, time_s=GOLD_TIME_S))
        return groups, not is_cut and same_results([groups], [reverse])

    def _ties(self, path: str, query: str, rows: list[Row]) -> tuple[Groups, bool]:
        """Return rows in runs whose order does not count, and whether LIMIT or OFFSET cuts one."""
        form = keyed(query)
        full = rows
        if form is not None:
            try:
                full = canonical(self.executor.run(path, form.sql, time_s=GOLD_TIME_S))
            except QueryError:
                form = None
        width = len(full[0]) - form.num_keys if form and full else 0
        kept = full[form.num_skipped :][: len(rows)] if form else []
        if form is None or [row[:width] for row in kept] != rows:
            return ([[row] for row in rows] if is_ordered(query) else [rows]), False
        groups: Groups = []
        for i, row in enumerate(rows):
            if i and kept[i][width:] == kept[i - 1][width:]:
                groups[-1].append(row)
            else:
                groups.append([row])

        def is_cut(group: list[Row], end: Row) -> bool:
            """Return whether rows that are tied with the first or last one were left out."""
            run = [row[:width] for row in full if row[width:] == end[width:]]
            return len(run) > len(group) and len(set(run)) > 1

        ends = [(groups[0], kept[0]), (groups[-1], kept[-1])] if rows else []
        return groups, any(is_cut(group, end) for group, end in ends)


def asks_the_clock(query: str) -> bool:
    """Return whether the answer of a query depends on the time at which it is asked."""
    tokens = tokenize(query)
    levels = depths(tokens)
    is_call = [a.upper in _DATES and b.text == "(" for a, b in itertools.pairwise(tokens)]
    is_now = [t.kind in ("string", "quoted") and t.value.strip().lower() == "now" for t in tokens]
    if any(token.upper in _CLOCK_WORDS for token in tokens) or (any(is_call) and any(is_now)):
        return True
    for i in itertools.compress(range(len(tokens)), is_call):
        end = next((j for j in range(i + 2, len(tokens)) if levels[j] <= levels[i]), len(tokens))
        inside = list(zip(tokens, levels, strict=True))[i + 2 : end]
        has_comma = any(token.text == "," and level == levels[i] + 1 for token, level in inside)
        if not inside or (tokens[i].upper == "STRFTIME" and not has_comma):
            return True  # without a time they take the present one
    return False
