"""``cospec report``: one page, plots and tables from result files."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from cospec.errors import ConfigError
from cospec.results import check_writable, write_text


@dataclass(frozen=True)
class Report:
    """Make one self-contained HTML page of result files; it needs the extra report.

    It reads documents of eval, demo, bench, audit, calibrate, trace and generate, .metrics.jsonl of
    trainings and data sets of audits; what is not there leaves out its section.
    """

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Result files, and folders of them."""
    out: Path | None = None
    """The page."""
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
        for path in (self.out, self.markdown):
            check_writable(path, self.overwrite)
        inputs = read_all(self.paths)
        for path in inputs.passed_over:
            print(f"note: {path} holds nothing for a report", file=sys.stderr)
        if self.markdown is not None:
            write_text(self.markdown, to_markdown(inputs))
            print(f"wrote {self.markdown}")
        if self.out is None and self.plots is None:
            return
        from cospec.report.page import Pictures, to_html

        pictures = Pictures(inputs)
        if self.plots is not None:
            found = pictures.save(self.plots)
            print(f"wrote {len(found)} plots to {self.plots}")
        if self.out is not None:
            write_text(self.out, to_html(inputs, pictures, self.title))
            print(f"wrote {self.out}, {self.out.stat().st_size / 1e6:.1f} MB")
