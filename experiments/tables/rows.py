"""Arms of result files, from what each problem gave rather than from stored summaries.

A problem is a bit: right or wrong. Times and tokens are those of the chunks. Slim files keep no
counts by problem: there the number of overrides is the total that the run counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from cospec.evaluation.stats import (
    Chunk,
    accuracy_delta_interval,
    mcnemar_p,
    speedup_interval,
    wilson_interval,
)
from cospec.results import read_document

EXPERIMENTS = Path(__file__).parent.parent
Json = dict[str, Any]


@cache
def read(name: str) -> Json:
    """The result file of that name, in whichever experiment."""
    (path,) = EXPERIMENTS.glob(f"*/{name}.json*")
    return read_document(path)


@dataclass(frozen=True)
class Arm:
    """One arm on one set of problems."""

    entry: Json
    """As the run stored it; used for names, and for counts that have no rows."""
    bits: str
    """A 1 for each problem that was right, a 0 for each other."""
    repeats: list[list[Chunk]]
    """Seconds and tokens of each chunk, by repeat."""
    num_target_forwards: int
    num_accepted: int
    num_overrides: int
    lengths: list[int] = field(default_factory=list)
    """Tokens of each problem, where the file has them."""
    num_turns: int = 0
    """Timed turns; a ceiling has those of lossless, and 0 stands for a file that tells none."""

    @property
    def name(self) -> str:
        """The arm's name, as the run had it."""
        return str(self.entry["name"])

    @property
    def num_right(self) -> int:
        """Problems that were right."""
        return self.bits.count("1")

    @property
    def accuracy(self) -> float:
        """Share of problems that were right."""
        return self.num_right / len(self.bits)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy."""
        return wilson_interval(self.num_right, len(self.bits))

    @property
    def chunks(self) -> list[Chunk]:
        """Seconds, mean over the repeats, and tokens of each chunk."""
        return [
            (sum(seconds for seconds, _ in chunk) / len(chunk), chunk[0][1])
            for chunk in zip(*self.repeats, strict=True)
        ]

    @property
    def num_tokens(self) -> int:
        """Tokens of all problems."""
        return sum(tokens for _, tokens in self.chunks)

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.num_tokens / sum(seconds for seconds, _ in self.chunks)

    @property
    def forwards_per_token(self) -> float:
        """Target forwards for each token."""
        return self.num_target_forwards / self.num_tokens

    @property
    def acceptance_length(self) -> float:
        """Tokens that one target forward gives; 1 for plain decoding."""
        forwards = self.num_target_forwards
        return 1 + self.num_accepted / forwards if forwards else 1.0

    def against(self, other: Arm) -> tuple[int, int]:
        """Problems that only this arm got right, and those that only the other did."""
        pairs = list(zip(self.bits, other.bits, strict=True))
        return pairs.count(("1", "0")), pairs.count(("0", "1"))

    def p(self, other: Arm) -> float:
        """McNemar's exact p against another arm."""
        return mcnemar_p(*self.against(other))

    def gain(self, other: Arm) -> float:
        """Difference of the accuracies."""
        return self.accuracy - other.accuracy

    def gain_interval(self, other: Arm) -> tuple[float, float]:
        """Score interval of the difference, over problems."""
        return accuracy_delta_interval(*self.against(other), len(self.bits))

    def over(self, other: Arm) -> float:
        """Tokens a second over those of another arm, median of the repeats."""
        return median(self.over_by_repeat(other))

    def over_interval(self, other: Arm) -> tuple[float, float] | None:
        """Interval of that over chunks, where there are enough."""
        return speedup_interval(other.chunks, self.chunks)

    def over_by_repeat(self, other: Arm) -> list[float]:
        """Tokens a second over those of another arm, in each repeat."""
        pairs = zip(self.repeats, other.repeats, strict=True)
        return [_rate(ours) / _rate(theirs) for ours, theirs in pairs]


def _rate(chunks: list[Chunk]) -> float:
    return sum(tokens for _, tokens in chunks) / sum(seconds for seconds, _ in chunks)


def database_changes(name: str, ours: Arm, theirs: Arm) -> list[tuple[int, int]]:
    """Wins minus losses of an arm against another, and problems, of each database of a file."""
    clusters: dict[str, list[int]] = {}
    for database, own, other in zip(read(name)["databases"], ours.bits, theirs.bits, strict=True):
        cluster = clusters.setdefault(database, [0, 0])
        cluster[0] += int(own) - int(other)
        cluster[1] += 1
    return [(change, size) for change, size in clusters.values()]


def parts(name: str) -> list[Json]:
    """The cells of a benchmark, or the file itself."""
    document = read(name)
    return document.get("cells", [document])


def arms(name: str, cell: int = 0) -> dict[str, Arm]:
    """By name, the arms of a result file, in its order."""
    part = parts(name)[cell]
    found: dict[str, Arm] = {}
    for entry in part["arms"]:
        rows = [row for row in part.get("rows", []) if row["arm"] == entry["name"]]
        found[entry["name"]] = _arm(entry, rows, part.get("chunks", []), found)
    return found


def _arm(entry: Json, rows: list[Json], chunks: list[Json], others: dict[str, Arm]) -> Arm:
    """Build one arm."""
    if not rows:  # of transfer.py: bits beside the totals
        assert len(entry["correct"]) == entry["num_problems"]
        rows = [entry]
    is_slim = isinstance(rows[0]["correct"], str)
    bits = rows[0]["correct"] if is_slim else "".join(str(int(row["correct"])) for row in rows)
    assert len(bits) == entry["num_problems"], f"{entry['name']} lacks problems"

    def total(key: str) -> int:
        if key not in rows[0]:
            return int(entry[key])
        return sum(int(row[key]) for row in rows)

    forwards, num_turns = total("num_target_forwards"), 0
    ours = [chunk for chunk in chunks if chunk["arm"] == entry["name"]]
    by_repeat: dict[int, list[Chunk]] = {}
    for chunk in sorted(ours, key=lambda one: one["chunk"]):
        times = by_repeat.setdefault(chunk.get("repeat", 0), [])
        times.append((chunk["seconds"], chunk["num_tokens"]))
    if not ours:  # a ceiling's time is lossless's by number of forwards; transfer.py keeps totals
        if entry.get("kind") == "ceiling":
            exact = others["lossless"]
            num_turns = exact.num_turns
            share = forwards / exact.num_target_forwards
            by_repeat = {
                i: [(share * sum(s for s, _ in one), entry["num_tokens"])]
                for i, one in enumerate(exact.repeats)
            }
        else:
            by_repeat[0] = [(entry.get("seconds", math.nan), entry["num_tokens"])]
    if "num_accepted_tokens_per_pos" in rows[0]:
        num_accepted = sum(sum(row["num_accepted_tokens_per_pos"]) for row in rows)
    else:
        num_accepted = entry.get("num_strict_accepts", 0) + entry["num_overrides"]
    return Arm(
        entry, bits, list(by_repeat.values()), forwards, num_accepted, total("num_overrides"),
        [] if is_slim else [row["num_tokens"] for row in rows], len(ours) or num_turns,
    )  # fmt: skip
