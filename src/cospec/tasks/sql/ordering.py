"""The order that a gold query asks for: which rows of its result are tied.

``SELECT a FROM t ORDER BY b`` says nothing of rows with the same ``b``. So the gold query is run
once more with ``b`` among its columns and without its LIMIT, which shows the ties; a result whose
end cuts through a tie is no one answer.
"""

from __future__ import annotations

from dataclasses import dataclass

from cospec.tasks.sql.scan import KEYWORDS, ends_operand
from cospec.tasks.sql.tokens import Token, depths, tokenize

_HIDES_KEYS = {"UNION", "INTERSECT", "EXCEPT", "DISTINCT"}
"""With these, another column could change the rows."""


@dataclass(frozen=True, slots=True)
class Keyed:
    """A query that shows its order."""

    sql: str
    """The query with its sort keys as last columns and without LIMIT."""
    num_keys: int


def is_ordered(sql: str) -> bool:
    """Whether the outermost query has ORDER BY."""
    tokens = tokenize(sql)
    return any(
        token.upper == "ORDER" and level == 0
        for token, level in zip(tokens, depths(tokens), strict=True)
    )


def keyed(sql: str) -> Keyed | None:
    """The query with its sort keys and without LIMIT.

    None if it has neither ORDER BY nor LIMIT, or if its keys cannot be shown.
    """
    tokens = [token for token in tokenize(sql) if token.text != ";"]
    levels = depths(tokens)
    words = [token.upper if level == 0 else "" for token, level in zip(tokens, levels, strict=True)]
    end = words.index("LIMIT") if "LIMIT" in words else len(tokens)
    if "ORDER" not in words:
        shorter = " ".join(token.text for token in tokens[:end])
        return Keyed(shorter, 0) if end < len(tokens) else None
    order, start = words.index("ORDER"), words.index("FROM") if "FROM" in words else 0
    if _HIDES_KEYS & set(words):
        return None
    if not start or words[0] != "SELECT":
        return None
    selected = _parts(tokens[1:start], levels[1:start])
    has_star = any(part[-1].text == "*" for part in selected)  # then columns cannot be counted
    aliases = {part[-1].value.lower(): named for part in selected if (named := _named(part))}
    keys = []
    for part in _parts(tokens[order + 2 : end], levels[order + 2 : end]):
        key = part[:-2] if len(part) > 2 and part[-2].upper == "NULLS" else part
        key = key[:-1] if key[-1].upper in ("ASC", "DESC") else key
        if len(key) == 1 and key[0].text.isdecimal():
            place = int(key[0].text)
            if has_star or not 1 <= place <= len(selected):
                return None
            key = selected[place - 1]
        keys.append(aliases.get(key[0].value.lower(), key) if len(key) == 1 else key)
    texts = ["(" + " ".join(token.text for token in key) + ")" for key in keys]
    head, tail = (" ".join(t.text for t in part) for part in (tokens[:start], tokens[start:end]))
    return Keyed(f"{head} , {' , '.join(texts)} {tail}", len(keys))


def _named(part: list[Token]) -> list[Token]:
    """What the last token of a selected part is the name of; nothing where that is no name."""
    if len(part) > 2 and part[-2].upper == "AS":
        return part[:-2]
    *named, name = part
    is_name = name.kind == "quoted" or (name.kind == "word" and name.upper not in KEYWORDS)
    return named if named and is_name and ends_operand(named[-1]) else []


def _parts(tokens: list[Token], levels: list[int]) -> list[list[Token]]:
    """What the outermost commas separate."""
    parts: list[list[Token]] = [[]]
    for token, level in zip(tokens, levels, strict=True):
        if token.text == "," and level == 0:
            parts.append([])
        else:
            parts[-1].append(token)
    return [part for part in parts if part]
