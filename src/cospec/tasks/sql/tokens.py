"""Tokens of SQL text, as SQLite cuts it: one pass, linear in any text, never an error.

This file knows nothing about grammar. Text that SQLite would refuse (an open quote, a stray sign)
still gives tokens, so that any text of a model can be read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterable

Kind: TypeAlias = Literal["word", "quoted", "string", "number", "sign"]

_TOKEN = re.compile(
    r"""
    (?P<space>\s+|--[^\n]*|/\*.*?(?:\*/|\Z))
    |(?P<string>'(?:[^']|'')*(?:'|\Z))
    |(?P<quoted>"(?:[^"]|"")*(?:"|\Z)|`[^`]*(?:`|\Z)|\[[^\]]*(?:\]|\Z))
    |(?P<number>0[xX][0-9a-fA-F]+|[xX]'[0-9a-fA-F]*'|\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)
    |(?P<word>[^\W\d]\w*)
    |(?P<sign>->>|->|<>|!=|<=|>=|==|\|\||<<|>>|.)
    """,
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Token:
    """One token; blanks and comments are none."""

    kind: Kind
    text: str
    """As it was written."""

    @property
    def upper(self) -> str:
        """A word or sign in upper case; "" for a quoted token, which is no keyword."""
        return "" if self.kind in ("string", "quoted") else self.text.upper()

    @property
    def value(self) -> str:
        """The text without its quotes."""
        if self.kind not in ("string", "quoted"):
            return self.text
        closing = "]" if self.text[0] == "[" else self.text[0]
        inner = (
            self.text[1:-1] if len(self.text) > 1 and self.text[-1] == closing else self.text[1:]
        )
        return inner if closing == "]" else inner.replace(closing * 2, closing)


ROWID = {"rowid", "oid", "_rowid_"}
"""Names of a column that every table has."""


def tokenize(sql: str) -> list[Token]:
    """Return the tokens of a text, in order."""
    return [
        Token(match.lastgroup, match[0])  # type: ignore[arg-type]  # the groups are the kinds
        for match in _TOKEN.finditer(sql)
        if match.lastgroup != "space"
    ]


def joined(tokens: Iterable[Token]) -> str:
    """Return the SQL text of some tokens."""
    return " ".join(token.text for token in tokens)


def first_statement(sql: str) -> str:
    """Return the text up to the first semicolon that is not quoted, without that semicolon."""
    for match in _TOKEN.finditer(sql):
        if match[0] == ";":
            return sql[: match.start()].strip()
    return sql.strip()


def depths(tokens: list[Token]) -> list[int]:
    """Count the open parentheses around each token; those of a pair count as outside it."""
    depth, found = 0, []
    for token in tokens:
        depth -= token.upper == ")"
        found.append(depth)
        depth += token.upper == "("
    return found
