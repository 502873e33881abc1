"""The console that tables are printed on."""

from __future__ import annotations

from rich.console import Console

FILE_WIDTH = 120
"""Width of a table that goes to a file, which has no width of its own."""


def table_console(file_width: int = FILE_WIDTH) -> Console:
    """Return a console of the terminal's width; of `file_width` where the output is a file."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=file_width)
