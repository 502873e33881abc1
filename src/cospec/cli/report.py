"""``cospec report``: one page, plots and tables from result files."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from cospec.errors import ConfigError
from cospec.results import check_apart, check_writable, write_text

if TYPE_CHECKING:
    from cospec.report.inputs import Inputs
    from cospec.report.page import Pictures


@dataclass(frozen=True)
class Report:
    """Make one self-contained HTML page from result files; it needs the extra report.

    It reads documents of eval, demo, bench, audit, calibrate, trace and generate, metrics.jsonl of
    trainings and data sets of audits. Sections without results are left out.
    """

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Result files, and folders of them."""
    out: Path | None = None
    """File for the page."""
    plots: Path | None = None
    """Folder for the plots, each as SVG and PNG."""
    markdown: Path | None = None
    """File for the tables as Markdown."""
    title: str = "CoSpec report"
    """Heading of the page."""
    overwrite: bool = False
    """Replace files that exist."""

    def run(self) -> None:
        """Read, draw and write.

        Raises:
            ConfigError: Nothing is asked for, or a file cannot be used.
            MissingExtraError: matplotlib or jinja2 is not installed.
        """
        from cospec.report.markdown import to_markdown
        from cospec.report.read import read_all

        if not (self.out or self.plots or self.markdown):
            raise ConfigError("nothing to write; pass --out FILE, --plots DIR or --markdown FILE.")
        check_apart([self.out, self.markdown])
        for path in (self.out, self.markdown):
            check_writable(path, self.overwrite)
            if path is not None and path.resolve() in {one.resolve() for one in self.paths}:
                raise ConfigError(f"{path} is a result to read; name another file to write.")
        inputs = read_all(self.paths)
        for path in inputs.passed_over:
            print(f"note: {path} holds nothing for a report", file=sys.stderr)
        pictures = self._pictures(inputs) if self.out or self.plots else None
        if self.markdown is not None:
            write_text(self.markdown, to_markdown(inputs))
            print(f"wrote {self.markdown}")
        if pictures is not None and self.plots is not None:
            print(f"wrote {len(pictures.save(self.plots))} plots to {self.plots}")
        if pictures is not None and self.out is not None:
            from cospec.report.page import to_html

            write_text(self.out, to_html(inputs, pictures, self.title))
            print(f"wrote {self.out}, {self.out.stat().st_size / 1e6:.1f} MB")

    def _pictures(self, inputs: Inputs) -> Pictures:
        """Return the figures, after checking that their files can be written."""
        from cospec.report.page import Pictures

        pictures = Pictures(inputs)
        if self.plots is not None:
            if self.plots.exists() and not self.plots.is_dir():
                raise ConfigError(f"plots is {self.plots}, which is a file; name a folder.")
            self.plots.mkdir(parents=True, exist_ok=True)
            for path in pictures.paths(self.plots):
                check_writable(path, self.overwrite)
        return pictures
