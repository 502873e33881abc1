"""Rewrites a gold query the way models write SQL, for what learns from worked solutions.

Keywords and functions in upper case, single blanks, strings in single quotes, a semicolon, one
fenced block. Names and aliases stay as they are. The result means the same to SQLite.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cospec.tasks.sql.scan import KEYWORDS
from cospec.tasks.sql.tokens import Token, tokenize

if TYPE_CHECKING:
    from collections.abc import Collection

_FUNCTIONS = {"COUNT", "SUM", "AVG", "MIN", "MAX", "ABS", "ROUND", "LENGTH", "UPPER", "LOWER"}
_TIGHT_BEFORE = {",", ")", ".", ";"}
_TIGHT_AFTER = {"(", "."}


def solution(query: str, names: Collection[str]) -> str:
    """A query as a model would answer with it: rewritten, in one ``sql`` block.

    Args:
        query: The gold query.
        names: Tables and columns of its schema in lower case: what is quoted and none of them is a
            string.
    """
    return f"```sql\n{rewrite(query, names)};\n```"


def rewrite(query: str, names: Collection[str]) -> str:
    """The query in the models' writing, on one line, without a semicolon."""
    tokens = [_written(token, names) for token in tokenize(query)]
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
            is_name = before is not None and before.text == "."
            text = text if is_name else token.upper
        if before is not None and not _is_tight(tokens, i):
            parts.append(" ")
        parts.append(text)
    return "".join(parts)


def plain_strings(query: str, names: Collection[str]) -> str:
    """The query with strings in single quotes, since not every SQLite reads double ones as such."""
    return " ".join(_written(token, names).text for token in tokenize(query) if token.text != ";")


def _written(token: Token, names: Collection[str]) -> Token:
    if token.kind == "quoted" and token.text[0] == '"' and token.value.lower() not in names:
        return Token("string", "'" + token.value.replace("'", "''") + "'")
    return token


def _is_tight(tokens: list[Token], i: int) -> bool:
    """Whether no blank stands before token ``i``."""
    before, token = tokens[i - 1], tokens[i]
    if token.text in _TIGHT_BEFORE or before.text in _TIGHT_AFTER:
        return True
    if token.text == "(":
        return before.kind == "word" and before.upper not in KEYWORDS
    is_sign = (
        before.text in "+-" and i >= 2 and tokens[i - 2].upper in {*KEYWORDS, "(", ",", *"=<>"}
    )
    return is_sign and token.kind == "number"
