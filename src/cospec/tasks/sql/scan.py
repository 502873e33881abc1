"""The facts in a query: its columns, and the literals and columns that it compares them with.

This reads the SQL of gold queries, token by token, just far enough to fill tables with rows on
which the query has something to find. It is no parser: it leaves out what it does not understand.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from cospec.tasks.sql.tokens import ROWID, Token, tokenize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cospec.tasks.sql.schema import Schema

Value: TypeAlias = "int | float | str"

_KEYWORDS = """
    SELECT FROM WHERE GROUP ORDER BY HAVING LIMIT OFFSET UNION INTERSECT EXCEPT ALL DISTINCT AS
    ON JOIN LEFT RIGHT FULL INNER OUTER CROSS NATURAL USING AND OR NOT IN LIKE BETWEEN IS NULL
    EXISTS CASE WHEN THEN ELSE END ASC DESC WITH GLOB CAST COLLATE
"""
KEYWORDS = frozenset(_KEYWORDS.split())
COMPARISONS = frozenset(["=", "==", "!=", "<>", "<", "<=", ">", ">=", "LIKE", "BETWEEN", "IN"])
_FLIPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
_CLAUSES = {"SELECT", "FROM", "WHERE", "GROUP", "HAVING", "ORDER", "LIMIT"}


@dataclass(frozen=True, slots=True)
class Place:
    """A column of one table as it appears under one alias in one SELECT."""

    scope: int
    alias: str
    table: str
    column: str


@dataclass(frozen=True, slots=True)
class Condition:
    """A column compared with literals."""

    place: Place
    operator: str
    """One of ``COMPARISONS``, in upper case, or ``IS NULL`` or ``IS NOT NULL``."""
    values: tuple[Value, ...]
    is_negated: bool
    """NOT stands before the operator."""


@dataclass(slots=True)
class Scope:
    """One SELECT with its FROM clause."""

    number: int
    parent: int | None
    depth: int
    tables: dict[str, str] = field(default_factory=dict)
    """Table by alias, both in lower case."""
    clause: str = "SELECT"
    selected: list[Place] = field(default_factory=list)
    """Columns of the SELECT list."""
    grouped: list[Place] = field(default_factory=list)
    has_or: bool = False
    min_count: int = 1
    """Least rows of a group that HAVING asks for."""
    joined_by: str = ""
    """The set operator before it: UNION, INTERSECT, EXCEPT or none."""


@dataclass(slots=True)
class Facts:
    """All that was understood of one query."""

    scopes: list[Scope]
    conditions: list[Condition]
    equalities: list[tuple[Place, Place]]
    """Columns compared with ``=``, in a join, with a subquery's column, or by INTERSECT."""
    exclusions: list[tuple[Place, Place]]
    """Columns compared with NOT IN."""
    summed: list[Place] = field(default_factory=list)
    """Columns under ``avg`` or ``sum``."""


def scan(sql: str, schema: Schema) -> Facts:
    """Return the facts of a query."""
    return _Scanner(tokenize(sql), schema).facts()


class _Scanner:
    def __init__(self, tokens: list[Token], schema: Schema) -> None:
        self.tokens = tokens
        self.schema = schema
        self.scopes: list[Scope] = []
        self.owner: list[int] = []
        """Scope of each token."""
        self.clause: list[str] = []
        """Clause of each token."""
        self._cut()

    def _cut(self) -> None:
        """Finds the scopes, the clause of each token, and the tables of each scope."""
        stack: list[int] = []
        depth, before = 0, ""
        for i, token in enumerate(self.tokens):
            word = token.upper
            if word == ")":
                depth -= 1
                while stack and self.scopes[stack[-1]].depth > depth:
                    stack.pop()
            elif word == "(":
                depth += 1
            elif word == "SELECT":
                if stack and self.scopes[stack[-1]].depth == depth:
                    stack.pop()
                parent = stack[-1] if stack else None
                scope = Scope(len(self.scopes), parent, depth, joined_by=before)
                self.scopes.append(scope)
                stack.append(scope.number)
                before = ""
            if word in ("UNION", "INTERSECT", "EXCEPT"):
                before = word
            scope_number = stack[-1] if stack else 0
            self.owner.append(scope_number)
            if self.scopes:
                scope = self.scopes[scope_number]
                if word in _CLAUSES and depth == scope.depth:
                    scope.clause = word
                self.clause.append(scope.clause)
                if word == "OR":
                    scope.has_or = True
            else:
                self.clause.append("")
            if self._is_table(i):
                self._add_table(i)

    def _word(self, i: int) -> str:
        return self.tokens[i].upper if 0 <= i < len(self.tokens) else ""

    def _is_table(self, i: int) -> bool:
        token = self.tokens[i]
        return (
            token.kind in ("word", "quoted")
            and self.clause[i] == "FROM"
            and self._word(i - 1) in ("FROM", "JOIN", ",")
            and token.value.lower() in self.schema.by_name
        )

    def _add_table(self, i: int) -> None:
        table = self.tokens[i].value.lower()
        j = i + 1 + (self._word(i + 1) == "AS")
        alias = table
        if j < len(self.tokens) and self.tokens[j].kind in ("word", "quoted"):
            is_alias = self._word(j - 1) == "AS" or self._word(j) not in KEYWORDS
            alias = self.tokens[j].value.lower() if is_alias else table
        self.scopes[self.owner[i]].tables[alias] = table

    def facts(self) -> Facts:
        facts = Facts(self.scopes, [], [], [])
        i = 0
        while i < len(self.tokens):
            place, end = self._place(i)
            if place is None:
                self._read_count(i)
                i += 1
                continue
            scope = self.scopes[self.owner[i]]
            if self.clause[i] == "SELECT":
                scope.selected.append(place)
            elif self.clause[i] == "GROUP":
                scope.grouped.append(place)
            if self._word(i - 1) == "(" and self._word(i - 2) in ("AVG", "SUM"):
                facts.summed.append(place)
            self._read_comparison(place, i, end, facts)
            i = end
        for left, right in zip(self.scopes, self.scopes[1:], strict=False):
            if right.joined_by == "INTERSECT":
                facts.equalities += zip(left.selected, right.selected, strict=False)
        return facts

    def _read_comparison(self, place: Place, start: int, end: int, facts: Facts) -> None:
        j = end
        while self._word(j) == ")" and self._word(start - 1) == "(":  # avg(x) > 3
            j, start = j + 1, start - 2
        is_negated = self._word(j) == "NOT"
        j += is_negated
        operator = self._word(j)
        if operator == "IS":
            words = ("IS NOT NULL",) if self._word(j + 1) == "NOT" else ("IS NULL",)
            facts.conditions.append(Condition(place, words[0], (), is_negated))
        if operator not in COMPARISONS:
            self._read_flipped(place, start, facts)
            return
        other, _ = self._place(j + 1)
        if other is not None:
            if operator in ("=", "=="):
                facts.equalities.append((place, other))
            return
        if self._word(j + 1) == "(" and self._word(j + 2) == "SELECT":
            self._read_subquery(place, operator, is_negated, j + 2, facts)
            return
        if values := self._literals(j + 1, operator):
            facts.conditions.append(Condition(place, operator, values, is_negated))

    def _read_subquery(
        self, place: Place, operator: str, is_negated: bool, at: int, facts: Facts
    ) -> None:
        j = at + 1 + (self._word(at + 1) == "DISTINCT")
        inner, _ = self._place(j)
        if inner is None and self._word(j + 1) == "(":  # min(x)
            inner, _ = self._place(j + 2)
        if inner is not None and operator in ("=", "==", "IN"):
            (facts.exclusions if is_negated else facts.equalities).append((place, inner))

    def _read_flipped(self, place: Place, start: int, facts: Facts) -> None:
        """Read a comparison such as ``500 < x``."""
        operator = self._word(start - 1)
        if operator in COMPARISONS - {"IN", "LIKE", "BETWEEN"} and start >= 2:
            value = self._literal(start - 2)
            if value is not None:
                flipped = _FLIPPED.get(operator, operator)
                facts.conditions.append(Condition(place, flipped, (value,), False))

    def _read_count(self, i: int) -> None:
        """Read the size of groups that HAVING asks for: four for ``HAVING count(*) > 3``."""
        if self._word(i) != "COUNT" or self.clause[i] != "HAVING":
            return
        j = i
        while j < len(self.tokens) and self._word(j) != ")":
            j += 1
        value = self._literal(j + 2)
        operator = self._word(j + 1)
        if isinstance(value, int) and operator in COMPARISONS:
            scope = self.scopes[self.owner[i]]
            scope.min_count = max(scope.min_count, value + (operator == ">"))

    def _literals(self, i: int, operator: str) -> tuple[Value, ...]:
        first = self._literal(i)
        if operator == "IN" and self._word(i) == "(":
            found = []
            for j in range(i + 1, len(self.tokens)):
                if self._word(j) == ")":
                    break
                value = self._literal(j)
                found += [value] if value is not None else []
            return tuple(found)
        if operator == "BETWEEN" and first is not None:
            step = 3 if self._word(i) == "-" else 2
            second = self._literal(i + step)
            return (first,) if second is None else (first, second)
        return () if first is None else (first,)

    def _literal(self, i: int) -> Value | None:
        if not 0 <= i < len(self.tokens):
            return None
        token = self.tokens[i]
        if token.kind == "string" or (
            token.kind == "quoted" and token.value.lower() not in self.schema.names
        ):
            return token.value
        if token.kind == "quoted" and token.text.startswith('"') and self._place(i)[0] is None:
            return token.value
        if token.kind == "number":
            return _number(token.text)
        if token.upper == "-" and i + 1 < len(self.tokens) and self.tokens[i + 1].kind == "number":
            return -_number(self.tokens[i + 1].text)
        return None

    def _place(self, i: int) -> tuple[Place | None, int]:
        """Return the column reference that begins at a token, and the index after it."""
        if not 0 <= i < len(self.tokens) or self._word(i - 1) == ".":
            return None, i + 1
        token = self.tokens[i]
        if token.kind not in ("word", "quoted") or token.upper in KEYWORDS:
            return None, i + 1
        if self._word(i + 1) == "." and i + 2 < len(self.tokens):
            column = self.tokens[i + 2].value
            return self._resolve(i, column, token.value.lower()), i + 3
        if self._word(i + 1) == "(" or self._word(i - 1) == "AS":
            return None, i + 1
        return self._resolve(i, token.value, None), i + 1

    def _resolve(self, i: int, column: str, alias: str | None) -> Place | None:
        number: int | None = self.owner[i]
        while number is not None and self.scopes:
            scope = self.scopes[number]
            for name, table in scope.tables.items():
                if alias in (None, name):
                    for each in self.schema.by_name[table].columns:
                        if each.name.lower() == column.lower():
                            return Place(number, name, table, each.name)
            number = scope.parent
        return None


def ends_operand(token: Token) -> bool:
    """Return true if the token can end an expression, so that a name after it is an alias."""
    is_name = token.kind != "sign" and token.upper not in KEYWORDS
    return is_name or token.text == ")" or token.upper == "END"


def own_names(tokens: Sequence[Token]) -> set[str]:
    """Return the names that a query gives to columns and tables, and `ROWID`, in lower case."""
    found = set(ROWID)
    for i, token in enumerate(tokens):
        if token.kind not in ("word", "quoted") or token.upper in KEYWORDS:
            continue
        before = tokens[i - 1] if i else None
        is_alias = before is not None and (before.upper == "AS" or ends_operand(before))
        is_table = [t.upper for t in tokens[i + 1 : i + 3]] == ["AS", "("]
        if is_alias or is_table:
            found.add(token.value.lower())
    return found


def _number(text: str) -> int | float:
    return int(text) if text.isdigit() else float(text)
