"""Measures every arm on the test split: one cell a batch size and temperature, in several repeats.

In a cell all arms take turns, chunk by chunk, and the whole is played again for each repeat. The
repeats have the same seeds, and so the same texts at any temperature: quality comes from the first
one, and rows of later ones that differ are counted. Seconds are the mean of the repeats. A speed-up
is the median over the repeats, in each of which the arms are played side by side; so is each end of
its interval.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean, median
from typing import TYPE_CHECKING

from cospec.evaluation.arms import Arm, EngineDecoders
from cospec.evaluation.benchmark.assisted import AssistedEngine
from cospec.evaluation.benchmark.bounds import add_bounds
from cospec.evaluation.benchmark.names import ASSISTED, ORACLE
from cospec.evaluation.problems import encode_problems, target_ids
from cospec.evaluation.summary import DRAFT, LOSSLESS, TARGET, paired, rows_by_arm, summarize

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cospec.backends.jobs import Decoder
    from cospec.evaluation.benchmark.arms import ArmSpec
    from cospec.evaluation.benchmark.config import Benchmark, PlayPart, Setting
    from cospec.evaluation.turns import Turn
    from cospec.results import Json

_STORED = (
    "id",
    "arm",
    "correct",
    "finish_reason",
    "num_tokens",
    "num_target_forwards",
    "num_strict_accepts",
    "num_overrides",
    "num_mismatches",
    "num_accepted_tokens_per_pos",
    "group",
)


def measure(
    benchmark: Benchmark,
    specs: Sequence[ArmSpec],
    settings: Mapping[str, Setting],
    rival: str | None,
    batch_size: int,
    temperature: float,
    play: PlayPart,
) -> Json:
    """Play a cell.

    Returns:
        The cell of a result document (see ``docs/result_files.md``).
    """
    is_own = isinstance(benchmark.decoders, EngineDecoders)
    left_out = _left_out(benchmark, specs, batch_size, temperature)
    absent = {ORACLE, *(each["arm"] for each in left_out)}
    present = [spec for spec in specs if spec.name not in absent]
    arms = [_arm(benchmark, spec, settings, batch_size) for spec in present]
    evaluation = benchmark.evaluation(arms, benchmark.test, temperature)
    head = f"test, batch {batch_size}, temperature {temperature:g}"
    repeats = []
    for i in range(benchmark.config.repeats):
        evaluation.first_arm = benchmark.seed + i
        repeats.append(play(evaluation, f"{head}, repeat {i + 1}", warm_up=True))
    parts = result(repeats, {arm.name: arm.arbiter for arm in arms}, rival)
    for entry, spec, arm in zip(parts["arms"], present, arms, strict=True):
        k = arm.engine.num_speculative_tokens
        knob = benchmark.knob(arm)
        entry.update(kind=spec.kind, k=k or None, knob=knob, speedup_bound=None)
    # The pair's costs in this process say nothing about another engine's.
    costs = add_bounds(benchmark, parts["arms"], batch_size) if is_own else None
    return {
        "task": benchmark.task.name,
        "batch_size": batch_size,
        "temperature": temperature,
        "best_rival": rival,
        "left_out": left_out,
        "costs": costs,
        **parts,
    }


def _left_out(
    benchmark: Benchmark, specs: Sequence[ArmSpec], batch_size: int, temperature: float
) -> list[Json]:
    """Return the arms that cannot take part in a cell, with the reasons."""
    reasons = {}
    if not _assistant_has_room(benchmark):
        reasons[ASSISTED] = "its draft reads the target's prompts, which its context does not hold"
    if not isinstance(benchmark.decoders, EngineDecoders):
        reasons[ASSISTED] = "transformers decodes it, in this process, and the others elsewhere"
    if batch_size > 1:
        reasons[ASSISTED] = "transformers decodes with a draft one prompt at a time"
    if temperature > 0:
        reasons[ASSISTED] = "it is a reference for greedy decoding"
        reasons[ORACLE] = "its path is that of greedy decoding"
    return [
        {"arm": spec.name, "reason": reasons[spec.name]} for spec in specs if spec.name in reasons
    ]


def _assistant_has_room(benchmark: Benchmark) -> bool:
    """Tell whether both models' contexts hold the target's prompts, with their answers."""
    limit = benchmark.config.max_new_tokens
    encoded = encode_problems(benchmark.pair, benchmark.task, benchmark.test, limit)
    return all(
        len(target_ids(prompt)) + sampling.max_new_tokens <= benchmark.pair.context_length
        for prompt, sampling in zip(*encoded, strict=True)
    )


def result(
    repeats: Sequence[Sequence[Turn]], arbiters: Mapping[str, str | None], rival: str | None
) -> Json:
    """Return the numbers of a cell from its turns alone.

    Args:
        repeats: The turns of each repeat.
        arbiters: Spec of each arm's arbiter, by name of the arm; None for plain decoding.
        rival: The arm that the others are compared with besides the target, if there is one.

    Returns:
        ``arms``, ``rows`` of the first repeat, and the times of ``chunks``. A row has its text only
        where it differs from that of ``target`` on the same problem, else None.
    """
    entries = summarize(_mean(repeats), arbiters)
    alone = [{entry["name"]: entry for entry in summarize(r, arbiters)} for r in repeats]
    rows = [rows_by_arm(repeat) for repeat in repeats]
    for entry in entries:
        name = entry["name"]
        entry["repeats"] = {
            key: [numbers[name][key] for numbers in alone]
            for key in ("tokens_per_s", "speedup_vs_target", "speedup_vs_lossless")
        }
        for key in ("speedup_vs_target", "speedup_vs_lossless"):
            entry[key] = median(entry["repeats"][key])
            ends = [numbers[name][f"{key}_ci95"] for numbers in alone]
            entry[f"{key}_ci95"] = (
                None if None in ends else [median(end) for end in zip(*ends, strict=True)]
            )
        entry["num_turns"] = sum(numbers[name]["num_turns"] for numbers in alone)
        entry["num_rows_unlike_first_repeat"] = sum(
            a != b for later in rows[1:] for a, b in zip(later[name], rows[0][name], strict=True)
        )
        entry["vs_rival"] = None
        if rival is not None:
            entry["vs_rival"] = {"rival": rival, **paired(rows[0][name], rows[0][rival])}
    return {
        "arms": entries,
        "rows": [row for name in arbiters for row in lean(rows[0][name], rows[0][TARGET])],
        "chunks": [
            turn.timing | {"repeat": i} for i, turns in enumerate(repeats) for turn in turns
        ],
    }


def _mean(repeats: Sequence[Sequence[Turn]]) -> list[Turn]:
    """Return the turns of the first repeat, with the mean seconds of all repeats."""
    seconds: dict[tuple[int, str], list[float]] = {}
    for turn in (turn for repeat in repeats for turn in repeat):
        seconds.setdefault((turn.chunk, turn.arm), []).append(turn.seconds)
    return [replace(turn, seconds=fmean(seconds[turn.chunk, turn.arm])) for turn in repeats[0]]


def lean(ours: Sequence[Json], target: Sequence[Json]) -> list[Json]:
    """Return the rows of an arm as they are stored: short, since many arms make large files."""
    return [
        {name: row[name] for name in _STORED if name in row}
        | {"text": row["text"] if row["arm"] == TARGET or row["text"] != exact["text"] else None}
        for row, exact in zip(ours, target, strict=True)
    ]


def _arm(
    benchmark: Benchmark, spec: ArmSpec, settings: Mapping[str, Setting], batch_size: int
) -> Arm:
    """Return an arm with the setting that was chosen for it."""
    name = spec.name
    arbiter: str | None = None
    engine: Decoder
    if name == TARGET:
        engine = benchmark.plain("target", batch_size)
    elif name == DRAFT:
        engine = benchmark.plain("draft", batch_size)
    elif name == ASSISTED:
        threshold = benchmark.config.draft_confidence_threshold
        engine = AssistedEngine(benchmark.pair, settings[LOSSLESS].k, threshold)
    else:
        arbiter = settings[name].spec
        engine = benchmark.ruled(benchmark.arbiter(arbiter), settings[name].k, batch_size)
    return Arm(name, arbiter, engine)
