"""Recorded problems as the trace viewer shows them: tokens in order, mismatches that open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cospec.results import Json


@dataclass(frozen=True, slots=True)
class Piece:
    """A token as it is shown."""

    origin: str
    text: str
    """Its text as shown; a line break is also shown by a sign."""
    tail: str = ""
    """Line breaks after it, outside the button."""
    mismatch: Json | None = None
    """Mismatch at which the token was chosen, if there was one."""


@dataclass(frozen=True, slots=True)
class Told:
    """A problem as the viewer shows it."""

    title: str
    verdict: str
    row: Json
    pieces: list[Piece]


def tell(rows: Sequence[Json]) -> list[Told]:
    """All recorded problems; those whose answer the arbiter changed come first."""
    ordered = sorted(rows, key=_order)
    return [Told(f"{row['id']}, {row['arm']}", _verdict(row), row, _pieces(row)) for row in ordered]


def _order(row: Json) -> tuple[bool, bool, int]:
    """Sort key: won, lost, then the rest; won and lost ones with the fewest overrides first."""
    is_same, number = row["correct"] == row["target_correct"], row["num_overrides"]
    return is_same, not row["correct"], -number if is_same else number


def _verdict(row: Json) -> str:
    match row["target_correct"], row["correct"]:
        case False, True:
            return "won: the target alone is wrong"
        case True, False:
            return "lost: the target alone is right"
        case True, True:
            return "both right"
        case _:
            return "both wrong"


def _pieces(row: Json) -> list[Piece]:
    by_position = {m["position"]: m for m in row["mismatches"]}
    found: list[Piece] = []
    for i, (text, origin) in enumerate(row["tokens"]):
        mismatch = by_position.get(i)
        if mismatch is None:
            if text:
                found.append(Piece(origin, text))
            continue
        shown = text or mismatch["draft_text" if mismatch["keep_draft"] else "target_text"]
        bare = shown.rstrip("\n")
        breaks = shown[len(bare) :]
        label = bare.replace("\n", "↵") + "↵" * len(breaks)
        label = label if label.strip() else "␣" * len(label)
        found.append(Piece(origin, label, breaks if text else "", mismatch))
    return found
