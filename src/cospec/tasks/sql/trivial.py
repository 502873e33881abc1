"""Questions that a judge cannot use: their gold query looks like a trivial one on every database.

A question is left out if its gold result is one answer on none of its databases (a tie at LIMIT, a
column that GROUP BY leaves open: `judge`), or if on all that count

* the gold result is empty, or one row that holds nothing but 0 and NULL, or
* the gold query returns what it does without its WHERE, its HAVING, its LIMIT, or the second part
  of its INTERSECT or EXCEPT (`without_clauses`).

Neither depends on a model. DISTINCT and ORDER BY are not in the list: where they change nothing,
a query without them is often right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cospec.tasks.sql.executor import QueryError
from cospec.tasks.sql.tokens import Token, depths, joined, tokenize

if TYPE_CHECKING:
    from cospec.tasks.sql.judge import Gold, Judge

_SET_OPERATORS = {"UNION", "INTERSECT", "EXCEPT"}
_ENDS = {
    "WHERE": {"GROUP", "HAVING", "ORDER", "LIMIT"} | _SET_OPERATORS,
    "HAVING": {"ORDER", "LIMIT"} | _SET_OPERATORS,
    "LIMIT": set(),
    "INTERSECT": set(),
    "EXCEPT": set(),
}


def why_trivial(judge: Judge, db_id: str, query: str) -> str | None:
    """Return the reason why a question is left out; None if it is not.

    It is ``fails``, ``many answers``, ``empty``, or the clause without which the gold query returns
    the same.
    """
    try:
        gold = judge.gold(db_id, query)
    except QueryError:
        return "fails"
    if not gold.is_one_answer:
        return "many answers"
    if is_empty(gold):
        return "empty"
    for clause, shorter in without_clauses(query):
        if judge.is_right(db_id, query, shorter):
            return clause
    return None


def is_empty(gold: Gold) -> bool:
    """Return whether a gold result is empty, or one row of 0 and NULL, on every database."""
    rows = ([row for group in groups for row in group] for groups in gold.results)
    return all(
        not each or (len(each) == 1 and all(cell in (0, None) for cell in each[0])) for each in rows
    )


def without_clauses(query: str) -> list[tuple[str, str]]:
    """Return outermost clauses that a query can do without, and the query without each."""
    tokens = [token for token in tokenize(query) if token.text != ";"]
    levels = depths(tokens)
    found = []
    for start, token in enumerate(tokens):
        if levels[start] == 0 and (ends := _ENDS.get(token.upper)) is not None:
            end = next(
                (
                    i
                    for i in range(start + 1, len(tokens))
                    if levels[i] == 0 and tokens[i].upper in ends
                ),
                len(tokens),
            )
            rest = [*tokens[:start], *tokens[end:]]
            if token.upper in _SET_OPERATORS:  # which drop doubles
                rest += [Token("word", "UNION"), *rest]
            found.append((token.upper, joined(rest)))
    return found
