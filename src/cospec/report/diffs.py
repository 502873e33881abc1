"""Differences of two runs' texts on the same problem, word by word."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import combinations
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cospec.report.inputs import Texts
    from cospec.results import Json

MAX_SHOWN = 10
"""Most problems shown for a pair of runs; those that only one run got right come first."""
_FATES = {
    (True, True): "both right",
    (True, False): "only the first right",
    (False, True): "only the second right",
    (False, False): "both wrong",
}


@dataclass(frozen=True, slots=True)
class Diff:
    """A problem on which two runs wrote different texts."""

    title: str
    fate: str
    parts: list[tuple[str, str]]
    """Pieces of text in order, each ``same``, ``first`` (in the first run alone) or ``second``."""


def find_diffs(texts: Sequence[Texts]) -> list[Diff]:
    """Return where arms differ from the target alone, and where an arm differs between files."""
    return [diff for name, a, b in _pairs(texts) for diff in _diffs(name, a, b)]


def _pairs(texts: Sequence[Texts]) -> Iterator[tuple[str, dict[str, Json], dict[str, Json]]]:
    for each in texts:
        arms = [arm for arm in each.rows if arm not in ("target", "draft")]
        for arm in arms if "target" in each.rows else ():
            yield f"target, then {arm} ({each.source})", each.rows["target"], each.rows[arm]
    for first, second in combinations(texts, 2):
        for arm in [arm for arm in first.rows if arm in second.rows]:
            name = f"{arm} in {first.source}, then in {second.source}"
            yield name, first.rows[arm], second.rows[arm]


def _diffs(name: str, first: dict[str, Json], second: dict[str, Json]) -> list[Diff]:
    both = [(first[i], second[i]) for i in first if i in second]
    unlike = [(a, b) for a, b in both if a["text"] != b["text"]]
    unlike.sort(key=lambda rows: rows[0]["correct"] == rows[1]["correct"])
    return [
        Diff(f"{a['id']}: {name}", _FATES[a["correct"], b["correct"]], _parts(a["text"], b["text"]))
        for a, b in unlike[:MAX_SHOWN]
    ]


def _parts(first: str, second: str) -> list[tuple[str, str]]:
    a, b = (re.findall(r"\s+|\w+|[^\w\s]", text) for text in (first, second))
    found = []
    for kind, a1, a2, b1, b2 in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if kind == "equal":
            found.append(("same", "".join(a[a1:a2])))
            continue
        sides = ("first", "".join(a[a1:a2])), ("second", "".join(b[b1:b2]))
        found += [(side, text) for side, text in sides if text]
    return found
