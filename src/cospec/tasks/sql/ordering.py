"""The order that a gold query asks for: which rows of its result are tied.

``SELECT a FROM t ORDER BY b`` does not order rows with the same ``b``. So the gold query is run
once more with ``b`` among its columns and without its LIMIT, which shows the ties. A result whose
beginning or end cuts through a tie is not one answer.

With ``b`` among its columns ``SELECT DISTINCT a`` would have other rows. So its ties are shown only
if it selects each of its sort keys as a column; ties of UNION, INTERSECT and EXCEPT are never
shown. Where ties are not shown each row has its place, and only reading tables from their end
reveals a tie (`judge`).
"""

from __future__ import annotations

from dataclasses import dataclass

from cospec.tasks.sql.scan import KEYWORDS, ends_operand
from cospec.tasks.sql.tokens import Token, depths, joined, tokenize

_HIDES_KEYS = {"UNION", "INTERSECT", "EXCEPT", "DISTINCT"}
"""With these, another column could change the rows; DISTINCT after SELECT is checked apart."""


@dataclass(frozen=True, slots=True)
class Keyed:
    """A query that shows its order."""

    sql: str
    """The query with its sort keys as last columns and without LIMIT."""
    num_keys: int
    num_skipped: int = 0
    """First rows that OFFSET leaves out."""


def is_ordered(sql: str) -> bool:
    """Return whether the outermost query has ORDER BY."""
    tokens = tokenize(sql)
    return any(
        token.upper == "ORDER" and level == 0
        for token, level in zip(tokens, depths(tokens), strict=True)
    )


def keyed(sql: str) -> Keyed | None:
    """Return the query with its sort keys and without LIMIT.

    None if it has neither ORDER BY nor LIMIT, or if its keys cannot be shown.
    """
    tokens = [token for token in tokenize(sql) if token.text != ";"]
    levels = depths(tokens)
    words = [token.upper if level == 0 else "" for token, level in zip(tokens, levels, strict=True)]
    end = words.index("LIMIT") if "LIMIT" in words else len(tokens)
    skipped = _num_skipped([token.text for token in tokens], words, end)
    if skipped is None:
        return None
    if "ORDER" not in words:
        return Keyed(joined(tokens[:end]), 0, skipped) if end < len(tokens) else None
    if "FROM" not in words or words[0] not in ("SELECT", "WITH") or "SELECT" not in words:
        return None
    first, start = words.index("SELECT") + 1, words.index("FROM")
    is_distinct = words[first : first + 1] == ["DISTINCT"]
    if is_distinct:
        words[first], first = "", first + 1
    if _HIDES_KEYS & set(words):
        return None
    selected = _parts(tokens[first:start], levels[first:start])
    order = words.index("ORDER") + 2
    keys = _keys(_parts(tokens[order:end], levels[order:end]), selected)
    shown = [_sense(_named(part) or part) for part in selected]
    if keys is None or (is_distinct and any(_sense(key) not in shown for key in keys)):
        return None
    texts = " , ".join(f"({joined(key)})" for key in keys)
    sql = f"{joined(tokens[:start])} , {texts} {joined(tokens[start:end])}"
    return Keyed(sql, len(keys), skipped)


def _num_skipped(texts: list[str], words: list[str], limit: int) -> int | None:
    """Count the rows that OFFSET leaves out; None if it is no plain number.

    Args:
        texts: Texts of all tokens.
        words: Tokens outside of parentheses in upper case, "" for the others.
        limit: Index of LIMIT.
    """
    rest = words[limit:]
    if "OFFSET" in rest:
        count = texts[limit + rest.index("OFFSET") + 1 :]
    elif "," in rest:  # LIMIT 2, 3 skips two rows
        count = texts[limit + 1 : limit + rest.index(",")]
    else:
        return 0
    return int(count[0]) if len(count) == 1 and count[0].isdecimal() else None


def _keys(parts: list[list[Token]], selected: list[list[Token]]) -> list[list[Token]] | None:
    """Return the expressions that a query is ordered by; None if a number names no column."""
    has_star = any(part[-1].text == "*" for part in selected)  # then columns cannot be counted
    aliases = {part[-1].value.lower(): named for part in selected if (named := _named(part))}
    keys = []
    for part in parts:
        key = part[:-2] if len(part) > 2 and part[-2].upper == "NULLS" else part
        key = key[:-1] if key[-1].upper in ("ASC", "DESC") else key
        if len(key) == 1 and key[0].text.isdecimal():
            place = int(key[0].text)
            if has_star or not 1 <= place <= len(selected):
                return None
            key = _named(selected[place - 1]) or selected[place - 1]
        elif len(key) == 1:
            key = aliases.get(key[0].value.lower(), key)
        keys.append(key)
    return keys


def _sense(tokens: list[Token]) -> list[str]:
    """Return the texts of tokens, with words in one case."""
    return [token.upper or token.text for token in tokens]


def _named(part: list[Token]) -> list[Token]:
    """Return the tokens before an alias: `a + b` of `a + b AS c`; none without an alias."""
    if len(part) > 2 and part[-2].upper == "AS":
        return part[:-2]
    *named, name = part
    is_name = name.kind == "quoted" or (name.kind == "word" and name.upper not in KEYWORDS)
    return named if named and is_name and ends_operand(named[-1]) else []


def _parts(tokens: list[Token], levels: list[int]) -> list[list[Token]]:
    """Split tokens at the outermost commas."""
    parts: list[list[Token]] = [[]]
    for token, level in zip(tokens, levels, strict=True):
        if token.text == "," and level == 0:
            parts.append([])
        else:
            parts[-1].append(token)
    return [part for part in parts if part]
