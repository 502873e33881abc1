"""The page: one HTML file that loads nothing, made from all results that were read.

Whatever comes from a file is escaped by the template; only figures, style and script are not, and
matplotlib escapes the texts of figures.
"""

from __future__ import annotations

import itertools
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cospec.display import VETOES
from cospec.errors import MissingExtraError
from cospec.report.diffs import find_diffs
from cospec.report.figures import NARROW, WIDE, inline_svg, save
from cospec.report.frontier import MARKS, draw_frontier, has_close_up
from cospec.report.plots import draw_acceptance, draw_map, draw_reliability, draw_training, panels
from cospec.report.tables import audit_rows, columns, entries, frontier, tuning_rows, verdict
from cospec.report.traces import tell
from cospec.text import visible

try:
    import jinja2
    from markupsafe import Markup, escape
except ModuleNotFoundError:
    raise MissingExtraError("jinja2", "report") from None

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure

    from cospec.report.inputs import Inputs

_SIGNS = {"o": "●", "s": "■", "D": "◆", "X": "✖", "^": "▲", "v": "▼"}
SIGNS = {kind: _SIGNS[marker] for kind, (_, marker) in MARKS.items()}
"""The marker of each kind of arm as a letter, for tables."""


class Picture:
    """A figure at two widths.

    Args:
        name: Name of its files; unique in a report.
        label: Description of the figure.
        draw: Draws the figure at a width in inches.
    """

    def __init__(self, name: str, label: str, draw: Callable[[float], Figure]) -> None:
        self.name, self.label, self._draw = name, label, draw

    def html(self) -> Markup:
        """The figure at both widths; the style shows the one that fits."""
        parts = [
            f'<div class="{kind}">{inline_svg(self._draw(width), self.name + kind, self.label)}'
            "</div>"
            for kind, width in (("wide", WIDE), ("narrow", NARROW))
        ]
        return Markup("".join(parts))  # figures escape their texts

    def paths(self, folder: Path) -> list[Path]:
        """The files that `save` writes."""
        return [folder / f"{self.name}{suffix}" for suffix in (".svg", ".png")]

    def save(self, folder: Path) -> list[Path]:
        """Write the wide one as SVG and PNG."""
        figure, paths = self._draw(WIDE), self.paths(folder)
        for path in paths:
            save(figure, path)
        return paths


class Pictures:
    """All figures that the results allow, by section."""

    def __init__(self, inputs: Inputs) -> None:
        self._names: set[str] = set()
        self.cells = [
            self._make("frontier", cell.title, partial(draw_frontier, cell))
            for cell in inputs.cells
        ]
        self.close_ups = [
            self._make("close-up", cell.title, partial(draw_frontier, cell, is_close_up=True))
            if has_close_up(cell)
            else None
            for cell in inputs.cells
        ]
        self.acceptances = [
            self._make("acceptance", each.title, partial(draw_acceptance, each))
            for each in inputs.acceptances
        ]
        self.maps = [
            self._make("map", each.title, partial(draw_map, each)) for each in inputs.mismatches
        ]
        self.reliabilities = [
            self._make("reliability", each.title, partial(draw_reliability, each))
            for each in inputs.reliabilities
        ]
        self.trainings = []
        if panels(inputs.trainings):
            draw = partial(draw_training, inputs.trainings)
            self.trainings = [self._make("training", "", draw)]

    def _make(self, section: str, title: str, draw: Callable[[float], Figure]) -> Picture:
        stem = "-".join(filter(None, [section, *re.findall(r"[a-z0-9]+", title.lower())]))[:80]
        name, number = stem, 1
        while name in self._names:
            number += 1
            name = f"{stem}-{number}"
        self._names.add(name)
        return Picture(name, f"{section}: {title}" if title else section, draw)

    @property
    def _all(self) -> list[Picture]:
        close_ups = filter(None, self.close_ups)
        found = self.cells, close_ups, self.acceptances, self.maps, self.reliabilities
        return [*itertools.chain(*found, self.trainings)]

    def paths(self, folder: Path) -> list[Path]:
        """The files that `save` writes."""
        return [path for picture in self._all for path in picture.paths(folder)]

    def save(self, folder: Path) -> list[Path]:
        """Write every figure as SVG and PNG."""
        return [path for picture in self._all for path in picture.save(folder)]


def to_html(inputs: Inputs, pictures: Pictures, title: str) -> str:
    """Render the page."""
    home = Path(__file__).parent / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(home),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters |= {"probability": _probability, "breakable": _breakable}
    cells = [
        {
            "cell": cell,
            "picture": picture.html(),
            "close_up": close_up and close_up.html(),
            "heads": [column.head for column in columns(cell.arms)],
            "rows": list(zip(cell.arms, entries(cell.arms), strict=True)),
            "front": frontier(cell.arms),
            "verdict": verdict(cell),
            "tuning": tuning_rows(cell),
        }
        for cell, picture, close_up in zip(
            inputs.cells, pictures.cells, pictures.close_ups, strict=True
        )
    ]

    def shown(parts: list[Picture]) -> list[Markup]:
        return [picture.html() for picture in parts]

    return environment.get_template("page.html").render(
        title=title,
        style=Markup((home / "style.css").read_text(encoding="utf-8")),  # ours
        script=Markup((home / "script.js").read_text(encoding="utf-8")),  # ours
        signs=SIGNS,
        cells=cells,
        acceptances=list(zip(inputs.acceptances, shown(pictures.acceptances), strict=True)),
        audits=inputs.audits,
        audit_rows=audit_rows(inputs.audits) if inputs.audits else [],
        maps=list(zip(inputs.mismatches, shown(pictures.maps), strict=True)),
        reliabilities=list(zip(inputs.reliabilities, shown(pictures.reliabilities), strict=True)),
        trainings=shown(pictures.trainings),
        diffs=find_diffs(inputs.texts),
        traces=tell(inputs.traces),
        vetoes=VETOES,
        sources=inputs.sources,
    )


def _shown(value: object) -> object:
    """Return what a template writes, with the control characters of texts from files visible."""
    return visible(value) if type(value) is str else value  # Markup is ours


def _breakable(name: str) -> Markup:
    """Return a name that a narrow column may break after its signs."""
    return Markup(re.sub(r"([:,/=-])", r"\1<wbr>", str(escape(visible(name)))))  # escaped


def _probability(value: float | None) -> str:
    """A probability with the digits that tell it from 0 and 1; a dash for one that is not known."""
    if value is None:
        return "-"
    return f"{value:.3f}" if 0.001 <= value <= 0.999 or value in (0, 1) else f"{value:.2g}"
