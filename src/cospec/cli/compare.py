"""``cospec compare A B``: the arms of two result files on the same problems."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from cospec.cli.views.compare import print_comparison
from cospec.errors import ConfigError, CospecError
from cospec.results import Json, read_document
from cospec.text import visible

_DAMAGE = (ValueError, KeyError, TypeError, AttributeError, IndexError, ZeroDivisionError)
"""Exceptions that a document of another shape can cause."""


@dataclass(frozen=True)
class Compare:
    """Compare two result files of eval or bench, problem by problem, in the arms both have.

    Runs under other conditions (problems, models, dtype, device, threads, library versions) are
    refused, with all that differs.
    """

    a: tyro.conf.Positional[Path]
    """A result file."""
    b: tyro.conf.Positional[Path]
    """Another one."""
    allow: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY ...")] = ()
    """Conditions that may differ, as the refusal names them. Problems are paired by id, which for
    jsonl: and sql: is the row number: if `problems` may differ, rows must not have moved."""
    fail_if_worse: bool = False
    """Exit with 1 if an arm is significantly less accurate in B (--alpha; McNemar, or a sign-flip
    test over groups of problems)."""
    alpha: float = 0.05
    """Chance of a false alarm of --fail-if-worse, over all arms together (Bonferroni)."""

    def run(self) -> None:
        """Compare, show and judge."""
        from cospec.evaluation.compare import check_alike, compare, worse_arms

        if not 0 < self.alpha < 1:
            raise ConfigError(f"alpha is {self.alpha}; it must be in (0, 1).")
        a, b = read_comparable(self.a), read_comparable(self.b)
        with telling_damage(self.a, self.b):
            check_alike(a, b, self.allow)
            cells = compare(a, b, any_task="task" in self.allow)
        print_comparison(cells)
        worse = worse_arms(cells, self.alpha)
        for name in worse:
            print(f"worse in B: {visible(name)}")
        if worse and self.fail_if_worse:
            sys.exit(1)


@contextmanager
def telling_damage(*paths: Path) -> Iterator[None]:
    """Report one of the files as damaged if comparing them fails.

    Raises:
        ConfigError: Comparing them fails.
    """
    try:
        yield
    except CospecError:
        raise
    except _DAMAGE as error:
        raise ConfigError(
            f"{' or '.join(map(str, paths))} is damaged or of another version ({error!r}); write "
            "it again."
        ) from None


def read_comparable(path: Path) -> Json:
    """Read a result document with arms on problems.

    Raises:
        ConfigError: The file is no such document.
    """
    document = read_document(path)
    config = document.get("config", {})
    if not ({"cells"} <= set(document) or {"arms", "rows"} <= set(document)) or (
        "evaluation" not in config
    ):
        raise ConfigError(
            f"{path} is a result of {document.get('command')!r}, which has no arms on problems; "
            "pass one of eval or bench."
        )
    return document
