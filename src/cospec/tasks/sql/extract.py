"""Finds the SQL query in a model's text: in a code block, or bare."""

from __future__ import annotations

import re

from cospec.tasks.sql.tokens import first_statement

_QUERY = re.compile(r"\b(?:SELECT|WITH)\b", re.IGNORECASE)
_FENCE = "```"


def extract_query(text: str) -> str | None:
    """Return the first statement of the first code block, preferably of one marked ``sql``.

    Without a block it is the text from the first line that begins with SELECT or WITH, or else from
    the first such word on. A block that is cut off counts. None if nothing reads as a query.
    """
    blocks = _blocks(text)
    marked = [code for name, code in blocks if name.lower().startswith("sql")]
    for code in (*marked, *(code for _, code in blocks)):
        if query := first_statement(code):
            return query
    if blocks:
        return None
    bare = re.search(r"(?im)^[ \t]*(?=(?:SELECT|WITH)\b)", text) or _QUERY.search(text)
    return first_statement(text[bare.start() :]) or None if bare else None


def _blocks(text: str) -> list[tuple[str, str]]:
    """Return name and content of each fenced block; the last one may be open."""
    found = []
    for inside in text.split(_FENCE)[1::2]:
        line, newline, rest = inside.partition("\n")
        name = line.strip()
        if newline and (not name or re.fullmatch(r"\w+", name)):
            found.append((name, rest))
        elif match := re.match(r"(?:sql\w*\s)?", inside, re.IGNORECASE):  # ```SELECT 1```
            found.append((match[0].strip(), inside[match.end() :]))
    return found
