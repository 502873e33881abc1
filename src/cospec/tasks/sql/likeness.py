"""What two queries have in common: tables, columns and clauses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cospec.tasks.sql.tokens import tokenize

if TYPE_CHECKING:
    from cospec.tasks.sql.schema import Schema

CLAUSES = frozenset(
    (
        "GROUP",
        "ORDER",
        "LIMIT",
        "DISTINCT",
        "COUNT",
        "AVG",
        "SUM",
        "MAX",
        "MIN",
        "HAVING",
        "UNION",
        "INTERSECT",
        "EXCEPT",
        "NOT",
        "LIKE",
        "BETWEEN",
        "OR",
        "DESC",
    )
)


def likeness(query: str, gold: str, schema: Schema) -> float:
    """Mean F1, in [0, 1], of the tables, the columns and the clauses that two queries use."""
    pairs = zip(parts(query, schema), parts(gold, schema), strict=True)
    return sum(map(f1, *zip(*pairs, strict=True))) / 3


def parts(query: str, schema: Schema) -> tuple[set[str], set[str], set[str]]:
    """The names of tables, those of columns, and the clauses in a query."""
    words = {token.text.strip('"`[]').upper() for token in tokenize(query)}
    tables = {name.upper() for name in schema.by_name}
    columns = {c.name.upper() for table in schema.tables for c in table.columns} - tables
    return words & tables, words & columns, words & CLAUSES


def f1(found: set[str], wanted: set[str]) -> float:
    """Harmonic mean of precision and recall; 1 for two empty sets."""
    total = len(found) + len(wanted)
    return 2 * len(found & wanted) / total if total else 1.0
