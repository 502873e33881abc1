"""``cospec reproduce FILE``: run the command of a result file again, and compare."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from cospec.cli.common.config_file import HARMLESS, OWN_SCORER, flag_of
from cospec.errors import ConfigError
from cospec.results import Json, check_writable
from cospec.text import visible

_VERBS = ("bench", "demo", "eval")
_RUN_CODE = (*map(flag_of, HARMLESS), "--config")
"""Options that can run foreign code; a file of options has any of them."""


@dataclass(frozen=True)
class Reproduce:
    """Run the command of a published result again, into a new file, and compare the two.

    Exits with 1 if the answers differ although nothing that they depend on does (decoding at
    temperature 0, and the same problems, models, dtype, device, threads and library versions).
    """

    file: tyro.conf.Positional[Path]
    """A result file of eval, bench or demo."""
    out: Path | None = None
    """The new file; by default NAME.again.json of NAME.json, in the current folder."""
    trust: bool = False
    """Run a command even if it runs code that it names or downloads; for files from people you
    trust."""

    def run(self) -> None:
        """Run again, compare and judge."""
        from cospec.cli.compare import read_comparable, telling_damage
        from cospec.cli.views.compare import print_comparison
        from cospec.evaluation.compare import compare, differences

        old = read_comparable(self.file)
        name = self.file.name.removesuffix(".gz").removesuffix(".json")
        out = self.out or Path(f"{name}.again.json")
        if out.resolve() == self.file.resolve():
            raise ConfigError(f"{out} is the result itself, which is never overwritten.")
        check_writable(out, overwrite=False)
        argv = _argv(old, self.file)
        if not self.trust:
            _check_code(argv)
        _check_paths(argv)
        command = [*argv, "--json", str(out)]
        print(f"running: {visible(' '.join(command))}", file=sys.stderr, flush=True)
        _run(command)
        new = read_comparable(out)
        with telling_damage(self.file, out):
            cells, unlike = compare(old, new), differences(old, new)
        print_comparison(cells)
        for key, (before, now) in unlike.items():
            print(visible(f"not the same: {key} was {before!r}, is {now!r}"))
        if not _judge(cells, is_alike=not unlike):
            sys.exit(1)


def _argv(document: Json, path: Path) -> list[str]:
    """The command of a result without the file that it wrote.

    Raises:
        ConfigError: The command cannot be reproduced.
    """
    argv = document.get("argv", [])
    if len(argv) < 2 or argv[1] not in _VERBS:
        raise ConfigError(
            f"{path} was made by {' '.join(argv[:2]) or 'an unknown command'!r}; only results of "
            f"{', '.join(_VERBS)} can be reproduced."
        )
    kept: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--json":
            next(words, None)
        elif not word.startswith("--json=") and word not in ("--overwrite", "--no-overwrite"):
            kept.append(word)
    return kept


def _check_code(argv: Sequence[str]) -> None:
    """Refuse a command that could run code of the file's author.

    Raises:
        ConfigError: The command has an option, or a scorer, that runs code.
    """
    for word in argv[2:]:
        if word.startswith("--tyro"):
            raise ConfigError(
                f"the command of the result has {word}, which writes a file of its choice and "
                "measures nothing; it cannot be reproduced."
            )
        if word.partition("=")[0].replace("_", "-") in _RUN_CODE or OWN_SCORER.search(word):
            raise ConfigError(
                f"the command of the result has {word}, with which it can run any code; read it, "
                f"and pass --trust if you trust it: {' '.join(argv)}"
            )


def _check_paths(argv: Sequence[str]) -> None:
    """Refuse a command whose files are not here.

    Raises:
        ConfigError: A word looks like a path (a hub id has one slash), and there is no such file.
    """
    for word in argv[2:]:
        given = word.partition("=")[2] if word.startswith("--") else word
        name = given.removeprefix("jsonl:").removeprefix("random:match=").partition(",")[0]
        if not os.path.exists(name):  # an arbiter's settings follow after a colon
            name = name.partition(":")[0]
        name = os.path.expanduser(name)
        is_path = name.startswith(("/", "./", "../")) or (name.count("/") > 1 and "@" not in name)
        is_file = given.startswith("jsonl:") or name.endswith(".gguf")
        if (is_path or is_file) and not os.path.exists(name):
            raise ConfigError(
                f"the result was made with {name}, which does not exist here; start in the folder "
                "where it was made, or put the file or folder there."
            )


def _run(command: list[str]) -> None:
    """Run a command as if it had been typed, so that the new file records it."""
    from cospec.cli import parse

    before, sys.argv = sys.argv, command
    try:
        parse(command[1:]).run()
    finally:
        sys.argv = before


def _unlike(arms: Sequence[Json]) -> tuple[int, str]:
    """Count the texts that differ, or the verdicts if a result keeps no texts; name which."""
    if any(arm["num_texts_unlike"] is None for arm in arms):
        return sum(arm["wins"] + arm["losses"] for arm in arms), "verdicts (the old texts are lost)"
    return sum(arm["num_texts_unlike"] for arm in arms), "texts"


def _judge(cells: Sequence[Json], *, is_alike: bool) -> bool:
    """Say whether the answers are the same; False if they should be and are not."""
    is_sound = True
    for cell in cells:
        place = f"{cell['task']}, batch {cell['batch_size']}, temperature {cell['temperature']:g}"
        place = visible(place)
        arms = cell["arms"]
        size, missing = sum(arm["num_problems"] for arm in arms), cell["only_in_a"]
        num_unlike, what = _unlike(arms)
        if not num_unlike and not missing:
            print(f"{place}: all {size} {what} are identical.")
            continue
        changed = [arm["name"] for arm in arms if arm["wins"] or arm["losses"]]
        print(f"{place}: {num_unlike} of {size} {what} differ; right answers differ in", end=" ")
        print(f"{visible(', '.join(changed)) or 'no arm'}.", end=" ")
        print(f"Missing: {visible(', '.join(missing))}." if missing else "")
        is_sound = is_sound and not (is_alike and cell["temperature"] == 0)
    if not is_sound:
        print("Nothing that they depend on is known to differ: the result is not reproduced.")
    elif not is_alike:
        print("The conditions differ (above), so that answers and times need not be the same.")
    return is_sound
