"""Tasks from files: the places of named sets, and the reading and splitting of their rows.

A named set is read from a *data folder* that holds one folder a set, ``gsm8k/train.jsonl`` and so
on, with each file as its authors publish it. The folder is the one given, else ``$COSPEC_DATA``,
else ``data`` in the working directory. Without one, and with the package ``datasets``, the set
comes from the Hugging Face hub.
"""

from __future__ import annotations

import os
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from xml.etree import ElementTree

from cospec.errors import ConfigError, TaskError, unknown_name
from cospec.results import parse_json, read_text
from cospec.tasks.base import SPLITS, Example, Split
from cospec.tasks.extras import import_extra
from cospec.tasks.splits import normalize, split_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

Row: TypeAlias = "dict[str, Any]"
"""A row as its authors wrote it: values of any type."""
_HALF = re.compile("[\ud800-\udfff]")
"""Half of a character (a lone surrogate), which JSON can write."""


class _NamedRow(dict[str, Any]):
    """A row of a named set, which says where it is if a field is missing or empty."""

    def __init__(self, where: str, row: Row) -> None:
        super().__init__(row)
        self.where = where

    def __getitem__(self, field: str, /) -> Any:  # Any: JSON
        value = self.get(field)
        if value is None:
            raise TaskError(
                f"{self.where} (the first is 0) has nothing in the field {field!r}; its fields are "
                f"{', '.join(map(repr, self))}. Take the file as its authors publish it, or repair "
                "the row."
            )
        return value


@dataclass(frozen=True, slots=True)
class DataSet:
    """Location of the rows of a named set."""

    name: str
    hub_id: str | None
    """The data set of the hub; None if there is none that can be read without running code."""
    hub_config: str | None = None

    def rows(
        self, files: tuple[str, ...], hub_split: str, data_dir: Path | None
    ) -> list[tuple[str, Row]]:
        """Return the rows of one file, each with its id.

        Args:
            files: The names that it may have; the first that exists is read.
            hub_split: Name of the split on the hub.
            data_dir: The data folder, if one is given.

        Raises:
            TaskError: The folder that was given does not hold it, or the hub fails.
            MissingExtraError: There is no folder, and no ``datasets`` to ask the hub.
        """
        given = data_dir or os.environ.get("COSPEC_DATA") or None
        folder = Path(os.path.expanduser(given or "data")) / self.name
        for file in files:
            if (path := folder / file).is_file():
                stem = file.partition(".")[0]
                return [
                    (f"{self.name}/{stem}/{i}", _NamedRow(f"row {i} of {path}", row))
                    for i, row in enumerate(read_rows(path))
                ]
        missing = f"no data for {self.name!r}: {folder} holds no {' or '.join(files)}"
        if given is not None or self.hub_id is None:
            raise TaskError(
                f"{missing}. Give a folder that does by data_dir or the environment variable "
                f"COSPEC_DATA."
            )
        return self._hub_rows(hub_split, missing)

    def _hub_rows(self, hub_split: str, missing: str) -> list[tuple[str, Row]]:
        what = f"{missing} (COSPEC_DATA is not set), and the package that fetches {self.hub_id}"
        datasets = import_extra("datasets", what, "hub")
        try:
            rows = datasets.load_dataset(self.hub_id, self.hub_config, split=hub_split)
        except MemoryError:
            raise
        except Exception as error:  # from the hub's client, its HTTP library, or parsers
            raise TaskError(
                f"{missing}, and {self.hub_id} cannot be fetched: {type(error).__name__}: {error} "
                "-- set COSPEC_DATA, or check the connection."
            ) from error
        where = f"{self.hub_id}, split {hub_split}"
        return [
            (f"{self.name}/{hub_split}/{i}", _NamedRow(f"row {i} of {where}", dict(row)))
            for i, row in enumerate(rows)
        ]


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a ``.jsonl``, ``.jsonl.gz``, ``.json`` (a list) or ASDiv's ``.xml`` file.

    Raises:
        TaskError: It cannot be read, does not fit its name, or holds half of a character.
    """
    rows: Any  # JSON
    try:
        text = read_text(path)
        if path.suffix == ".xml":
            rows = [
                {field.tag: field.text for field in problem}
                for problem in ElementTree.fromstring(text).iter("Problem")
            ]
        elif path.suffix == ".json":
            rows = parse_json(text)
        else:
            rows = _parse_lines(text)
    except (OSError, ValueError, ElementTree.ParseError) as error:
        raise TaskError(f"{path} cannot be read: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise TaskError(f"{path} holds something other than rows; each must be a JSON object.")
    for number, row in enumerate(rows):
        for text in _texts(row):
            if half := _HALF.search(text):
                around = text[max(0, half.start() - 20) : half.start() + 20]
                raise TaskError(
                    f"row {number} of {path} (the first is 0) holds half of a character, "
                    f"{half[0]!r}, in {around!r}; repair the text."
                )
    return rows


def _parse_lines(text: str) -> list[Any]:  # Any: JSON
    """Return the JSON values of a text with one a line.

    Raises:
        ValueError: A line is no JSON object; it is named.
    """
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append(parse_json(line))
        except ValueError as error:
            raise ValueError(f"line {number} is no JSON: {error}") from error
        if not isinstance(rows[-1], dict):
            raise ValueError(f"line {number} is {line[:40]!r}; each must be a JSON object")
    return rows


def _texts(row: Row) -> Iterator[str]:
    """Yield all texts in a row, however deep."""
    left: list[Any] = [row]
    while left:
        value = left.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            left += value
        elif isinstance(value, dict):
            left += [*value, *value.values()]


_OPTIONS: dict[Split, str] = {
    "train": "--num-problems, --num-solutions",
    "tune": "--num-tune-problems, --num-tune, --num-problems",
    "test": "--num-problems",
}
"""Options of the commands that ask for problems of a split."""
RUN_LENGTH = 16
"""Most problems with the same beginning that come one after another."""


class FileSource:
    """Examples that are all in memory, by split.

    Args:
        name: Name of the task, for errors.
        pools: The examples of each split.
        beginning: Names the beginning of an example's prompt, such as its database. Examples with
            the same beginning then come in runs, so that a decoder of a few hundred of them reads
            each beginning once or twice. By default examples are shuffled one by one.
    """

    def __init__(
        self,
        name: str,
        pools: Mapping[Split, list[Example]],
        beginning: Callable[[Example], str] | None = None,
    ) -> None:
        self.name = name
        self.pools = pools
        self.beginning = beginning

    def __call__(self, split: Split, num_problems: int | None, seed: int) -> list[Example]:
        """Return the first problems of the split's order under ``seed``."""
        pool = list(self.pools.get(split, []))
        wanted = len(pool) if num_problems is None else num_problems
        if not pool or wanted > len(pool):
            asked = f", {num_problems} asked for" if num_problems else ""
            fewer = f"ask for fewer ({_OPTIONS[split]}), or for" if pool else "ask for"
            whole = f" A file of your own can be one split: jsonl:FILE,split={split}."
            raise TaskError(
                f"{self.name} has {len(pool)} {split} problems{asked}; {fewer} another split."
                f"{'' if ',split=' in self.name else whole}"
            )
        draw = random.Random(int(seed))
        draw.shuffle(pool)
        if self.beginning is not None:
            pool = _in_runs(pool, self.beginning, draw)
        return pool[:wanted]


def _in_runs(
    examples: list[Example], beginning: Callable[[Example], str], draw: random.Random
) -> list[Example]:
    """Put examples with the same beginning into runs of `RUN_LENGTH` at most, in a drawn order."""
    alike: dict[str, list[Example]] = {}
    for example in examples:
        alike.setdefault(beginning(example), []).append(example)
    runs = [
        some[i : i + RUN_LENGTH] for some in alike.values() for i in range(0, len(some), RUN_LENGTH)
    ]
    draw.shuffle(runs)
    return [example for run in runs for example in run]


def by_hash(examples: Iterable[Example], whole: str | None = None) -> dict[Split, list[Example]]:
    """Splits a set that has one file by `split_of`, or takes it whole for one split."""
    if whole is not None and whole not in SPLITS:
        raise ConfigError(unknown_name("split", whole, SPLITS))
    pools: dict[Split, list[Example]] = {split: [] for split in SPLITS}
    for example in examples:
        pools[whole or split_of(example.question)].append(example)
    return pools


def named(name: str, whole: str | None) -> str:
    """Return the spec of a set that `by_hash` split, or took whole."""
    return name if whole is None else f"{name},split={whole}"


def by_file(train: Iterable[Example], test: list[Example]) -> dict[Split, list[Example]]:
    """Splits a set by its own files; a hash parts tune from train, and test goes before both."""
    tested = {normalize(example.question) for example in test}
    pools: dict[Split, list[Example]] = {"train": [], "tune": [], "test": test}
    for example in train:
        if normalize(example.question) not in tested:
            pools["tune" if split_of(example.question) == "tune" else "train"].append(example)
    return pools
