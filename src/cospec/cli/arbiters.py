"""``cospec arbiters``: the trained arbiters at hand, their pairs and their accuracy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro

from cospec.text import visible


@dataclass(frozen=True)
class Arbiters:
    """List trained arbiters: those that ship, those in the hub's cache, and those in folders."""

    folders: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Folders of trained arbiters to list as well."""

    def run(self) -> None:
        """Print a row for each."""
        from rich import box
        from rich.console import Console
        from rich.table import Table

        from cospec.arbiters.checkpoint import CONFIG, read_checkpoint
        from cospec.arbiters.hub import in_cache
        from cospec.arbiters.record import Record
        from cospec.errors import ArbiterError, CheckpointError

        table = Table(box=box.SIMPLE_HEAD)
        for column in ("--arbiter", "pair", "task", "-k", "tuned", "target"):
            table.add_column(column, overflow="fold")
        unusable = []
        given = [(str(folder), folder) for folder in self.folders]
        for spec, folder in [*_shipped(), *in_cache().items(), *given]:
            try:
                found = Record.of(read_checkpoint(folder).config)
            except (ArbiterError, CheckpointError) as error:
                if folder in self.folders:
                    raise
                if _is_arbiter(folder / CONFIG):  # not a model or something else in the cache
                    unusable.append(f"{spec} cannot be used: {error}")
                continue
            cells = (spec, found.pair, found.task, str(found.k or ""))
            right = _percent(found.tune_accuracy), _percent(found.tune_accuracy_target)
            table.add_row(*map(visible, cells), *right)
        Console(highlight=False, markup=False).print(table)
        for line in unusable:
            print(visible(line))
        print("tuned: right on the tune problems, which chose the round; target: the target alone")
        print("on the same. cospec eval measures on problems that had no part in training.")


def _is_arbiter(config: Path) -> bool:
    """Return whether a config belongs to an arbiter, even a damaged or newer one."""
    try:
        with config.open("rb") as file:
            return b'"cospec_arbiter"' in file.read(2**16)
    except OSError:
        return False


def _shipped() -> Iterator[tuple[str, Path]]:
    """Names and folders of the arbiters that ship with bundled pairs."""
    from cospec.models.bundled import BUNDLED_ARBITERS, BUNDLED_PAIRS, bundled_arbiter_folder

    for pair in BUNDLED_PAIRS:
        for name in BUNDLED_ARBITERS:
            folder = bundled_arbiter_folder(pair, name)
            if folder.is_dir():
                yield name, folder


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"
