"""The tables of a report as Markdown."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from cospec.report.tables import audit_rows, columns, entries, verdict
from cospec.text import visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cospec.report.inputs import Inputs
    from cospec.report.tables import Entry


def to_markdown(inputs: Inputs) -> str:
    """Every comparison and the audits, the best numbers in bold."""
    parts = []
    for cell in inputs.cells:
        head = ["arm", *(column.head for column in columns(cell.arms))]
        rows = [
            [_escaped(arm["name"]), *(_bold(e) for e in row)]
            for arm, row in zip(cell.arms, entries(cell.arms), strict=True)
        ]
        text = _escaped(" ".join(verdict(cell)))
        parts.append(
            f"## {_escaped(cell.title)}\n\n{_escaped(cell.about)}\n\n{_table(head, rows)}\n\n{text}"
        )
    if inputs.audits:
        head = ["", *(_escaped(audit.title) for audit in inputs.audits)]
        rows = [[_escaped(text) for text in row] for row in audit_rows(inputs.audits)]
        parts.append(f"## Audits\n\n{_table(head, rows)}")
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _bold(entry: Entry) -> str:
    text = _escaped(entry.text)
    return f"**{text}**" if entry.is_best else text


def _escaped(text: str) -> str:
    """Escape a text so that it neither ends a cell nor acts as markup."""
    text = visible(text).replace("&", "&amp;").replace("<", "&lt;").replace("\n", " ")
    return re.sub(r"([\\`*_\[\]|!~])", r"\\\1", text)
