"""Rewrites a gold query the way models write SQL, for training on worked solutions.

Keywords, functions and aliases such as ``t1`` get upper case, tables and columns the spelling of
the schema, and strings single quotes. Blanks are single, and the query stands with a semicolon in
one fenced block. The result means the same to SQLite.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from cospec.tasks.sql.scan import KEYWORDS, own_names
from cospec.tasks.sql.tokens import Token, tokenize

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

_FUNCTIONS = {"COUNT", "SUM", "AVG", "MIN", "MAX", "ABS", "ROUND", "LENGTH", "UPPER", "LOWER"}
_BEFORE_TABLE = {"FROM", "JOIN"}
_ALIAS = re.compile(r"[tT]\d")
_TIGHT_BEFORE = {",", ")", ".", ";"}
_TIGHT_AFTER = {"(", "."}


def solution(query: str, names: Mapping[str, str]) -> str:
    """Return a query as a model would answer with it: rewritten, in one ``sql`` block.

    Args:
        query: The gold query.
        names: The schema's spelling of its tables and columns, by name in lower case
            (`Schema.names`); a quoted token that is none of them is a string.
    """
    return f"```sql\n{rewrite(query, names)};\n```"


def rewrite(query: str, names: Mapping[str, str]) -> str:
    """Return the query as models write it, on one line, without a semicolon."""
    tokens = _plain(tokenize(query), names)
    while tokens and tokens[-1].text == ";":
        tokens.pop()
    parts: list[str] = []
    for i, token in enumerate(tokens):
        before = tokens[i - 1] if i else None
        follows = tokens[i + 1].text if i + 1 < len(tokens) else ""
        text = token.text
        if token.kind == "word" and token.upper in _FUNCTIONS and follows == "(":
            text = token.upper
        elif token.kind == "word" and token.upper in KEYWORDS and follows != ".":
            is_name = before is not None and (before.text == "." or before.upper in _BEFORE_TABLE)
            text = names.get(text.lower(), text) if is_name else token.upper
        elif token.kind == "word":
            text = names.get(text.lower(), text.upper() if _ALIAS.fullmatch(text) else text)
        if before is not None and not _is_tight(tokens, i):
            parts.append(" ")
        parts.append(text)
    return "".join(parts)


def plain_strings(query: str, names: Container[str]) -> str:
    """Return the query with strings in single quotes: not every SQLite takes double ones."""
    return " ".join(token.text for token in _plain(tokenize(query), names) if token.text != ";")


def _plain(tokens: list[Token], names: Container[str]) -> list[Token]:
    """Return the tokens with single quotes around all that SQLite takes for a string."""
    own = own_names(tokens)

    def written(token: Token) -> Token:
        name = token.value.lower()
        if token.kind != "quoted" or token.text[0] != '"' or name in names or name in own:
            return token
        return Token("string", "'" + token.value.replace("'", "''") + "'")

    return [written(token) for token in tokens]


def _is_tight(tokens: list[Token], i: int) -> bool:
    """Return whether no blank stands before token ``i``."""
    before, token = tokens[i - 1], tokens[i]
    if token.text in _TIGHT_BEFORE or before.text in _TIGHT_AFTER:
        return True
    if token.text == "(":
        return before.kind == "word" and before.upper not in KEYWORDS
    is_sign = (
        before.text in "+-" and i >= 2 and tokens[i - 2].upper in {*KEYWORDS, "(", ",", *"=<>"}
    )
    return is_sign and token.kind == "number"
