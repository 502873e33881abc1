"""Reading of result files into the few shapes that the report shows.

A document is recognized by its ``command``, a data set of an audit by the names of its features,
the ``metrics.jsonl`` of a training by its rounds. Files in a folder that are none of these are
skipped and named; a file that is given by itself has to be one.
"""

from __future__ import annotations

import json
from dataclasses import fields, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from cospec.config import DecodeConfig
from cospec.errors import ConfigError
from cospec.evaluation.compare import full_rows
from cospec.evaluation.summary import speeds_alike
from cospec.report.inputs import (
    KINDS,
    Acceptance,
    AuditResult,
    Cell,
    Inputs,
    Mismatches,
    Reliability,
    ResultSource,
    Texts,
    Training,
)
from cospec.report.shapes import check_arm, check_trace
from cospec.report.tables import audit_rows
from cospec.results import read_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from cospec.results import Json


_DAMAGE = (
    OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, ZeroDivisionError,
    RecursionError, OverflowError,
)  # fmt: skip
"""Exceptions that a file of another shape can cause while it is read."""
_ENDS = (".json", ".json.gz", ".jsonl", ".safetensors")
"""Endings of the files that are read in a folder; logs of unfinished runs are not."""
_SAID_ELSEWHERE = ("num_speculative_tokens", "batch_size", "enable_prefix_caching", "keep_trace")
"""Options of decoding that are shown elsewhere, or that change no draft."""


def read_all(paths: Sequence[Path | str]) -> Inputs:
    """Read files, and the result files directly in folders.

    Raises:
        ConfigError: A path does not exist, a named file holds no result, a result is damaged, or
            nothing was found at all.
    """
    inputs = Inputs()
    for path in map(Path, paths):
        if path.is_dir():
            for file in sorted(p for p in path.iterdir() if p.name.endswith(_ENDS)):
                if _is_foreign(file) or not _read(file, inputs):
                    inputs.passed_over.append(file)
        elif not path.exists():
            raise ConfigError(f"{path} does not exist; pass result files or folders of them.")
        elif not _read(path, inputs):
            raise ConfigError(
                f"{path} holds nothing for a report; pass documents of cospec "
                f"{', '.join(_READERS)}, metrics.jsonl of a training or a data set of an audit."
            )
    if not inputs.sources:
        raise ConfigError(
            f"found no results in {', '.join(map(str, paths))}; pass documents of cospec "
            f"{', '.join(_READERS)}."
        )
    return inputs


def _is_foreign(path: Path) -> bool:
    """Return whether a file of a folder is of something else: no results, not even damaged ones."""
    if path.name.endswith(".part.jsonl"):
        return True
    if path.suffix == ".safetensors":
        return False
    try:
        return not read_text(path).lstrip().startswith("{")
    except UnicodeDecodeError:
        return True
    except (OSError, ValueError):
        return False


def _read(path: Path, inputs: Inputs) -> bool:
    """Add the results of a file; return whether it has any for a report."""
    try:
        if path.suffix == ".safetensors":
            return _read_dataset(path, inputs)
        text = read_text(path)
        if path.suffix == ".jsonl":
            return _read_training(path, text, inputs)
        document = json.loads(text)
        command = document.get("command") if isinstance(document, dict) else None
        if command not in _READERS:
            return False
        _READERS[command](path, document, inputs)
    except _DAMAGE as error:
        raise ConfigError(
            f"{path} is damaged or of another version ({type(error).__name__}: {error!s:.200}); "
            "write it again, or leave it out."
        ) from None
    inputs.sources.append(
        ResultSource(path.name, command, document.get("argv", []), document.get("provenance", {}))
    )
    return True


def _pair(config: Json) -> str:
    """Names of the models, without the folders that they lie in."""
    pair = config.get("pair") or {}
    if isinstance(pair, str) or pair.get("pair"):
        return pair if isinstance(pair, str) else str(pair["pair"])
    return " / ".join(_short(str(pair[name])) for name in ("target", "draft") if pair.get(name))


def _short(name: str) -> str:
    """The last part of a path or hub id, with the part before if the last is only the role."""
    *folders, last = name.rstrip("/").split("/")
    return f"{folders[-1]}/{last}" if folders and last in ("target", "draft") else last


def _title(config: Json, task: str) -> str:
    return ", ".join(filter(None, (task, _pair(config))))


def _about(provenance: Json, *parts: str) -> str:
    return " · ".join(filter(None, [*parts, str(provenance.get("device", ""))]))


def _sampling(temperature: float) -> str:
    return f"temperature {temperature:g}" if temperature else "greedy"


def _drafting(config: Json) -> str:
    """Name the options of drafting that are not the defaults."""
    settings = config.get("decode") or config.get("bench") or {}
    found = []
    for option in fields(DecodeConfig):
        value = settings.get(option.name, option.default)
        if option.name in _SAID_ELSEWHERE or value == option.default:
            continue
        if option.name == "draft_confidence_threshold":
            found.append(f"drafts end below {value:g}")
        else:
            found.append(option.name if value is True else f"{option.name} = {value}")
    return ", ".join(found)


def _comparison(path: Path, document: Json, inputs: Inputs) -> None:
    """Read an evaluation or a demo: one cell."""
    config = document["config"]
    settings = config["evaluation"]
    about = _about(
        document["provenance"],
        f"{settings['num_problems']} problems",
        f"k = {settings['num_speculative_tokens']}",
        _drafting(config),
        f"batch {settings['max_batch_size']}",
        _sampling(settings.get("temperature", 0.0)),
    )
    title = _title(config, "demo" if document["command"] == "demo" else settings["task"])
    _add_cell(inputs, Cell(title, about, document["arms"], path.name), document)


def _bench(path: Path, document: Json, inputs: Inputs) -> None:
    """Read a benchmark: a cell for each task, batch size and temperature."""
    for cell in document["cells"]:
        temperature = cell["temperature"]
        about = _about(
            document["provenance"],
            f"{cell['arms'][0]['num_problems']} problems",
            _drafting(document["config"]),
            f"batch {cell['batch_size']}",
            _sampling(temperature),
        )
        title = f"{_title(document['config'], cell['task'])}, batch {cell['batch_size']}"
        title += f", temperature {temperature:g}" if temperature else ""
        notes = [
            f"{each['arm']} is left out: {each['reason']}." for each in cell.get("left_out", [])
        ]
        if cell.get("best_rival"):
            notes.insert(0, f"Best rival on the tune split: {cell['best_rival']}.")
        tuning = [t for t in document.get("tuning", []) if t.get("temperature") == temperature]
        _add_cell(inputs, Cell(title, about, cell["arms"], path.name, notes, tuning), cell)


def _add_cell(inputs: Inputs, cell: Cell, part: Json) -> None:
    """Add a cell, once its arms have what every view needs."""
    arms = [{"kind": _kind(arm), **speeds_alike(arm, part)} for arm in cell.arms]
    if all(arm["kind"] == "ceiling" for arm in arms):
        raise ValueError("no arms besides ceilings")
    for arm in arms:
        check_arm(arm)
        if arm["kind"] not in KINDS:
            raise ValueError(f"kind {arm['kind']!r} of arm {arm['name']}")
    inputs.cells.append(replace(cell, arms=arms))
    rows = part.get("rows", [])
    if rates := acceptance_rates(rows):
        inputs.acceptances.append(Acceptance(f"{cell.title} ({cell.source})", rates))
    whole = [row for row in rows if row.keys() >= {"arm", "id", "text", "correct"}]
    if whole:
        texts = {
            arm: {
                name: {"id": name, "text": row["text"], "correct": bool(row["correct"])}
                for name, row in found.items()
            }
            for arm, found in full_rows({"rows": whole}).items()
        }
        inputs.texts.append(Texts(f"{cell.source}, {cell.title}", texts))


def _kind(arm: Json) -> str:
    """Return the kind of an arm whose entry does not name it."""
    from cospec.arbiters import RULES  # noqa: PLC0415  # loads torch
    from cospec.registered import registered_names  # noqa: PLC0415

    if arm["name"] in ("target", "lossless"):
        return "exact"
    if arm["arbiter"] is None:
        return "reference"
    name = str(arm["arbiter"]).partition(":")[0]
    if name == "random":
        return "random"
    is_rule = name in RULES or name in registered_names("cospec.arbiters")
    return "rule" if is_rule else "learned"


def acceptance_rates(rows: Iterable[Json]) -> dict[str, list[float]]:
    """By arm, the share of blocks in which more than i drafted tokens stood.

    Args:
        rows: Rows of results; those without ``num_accepted_tokens_per_pos`` are skipped.
    """
    counts: dict[str, list[int]] = {}
    blocks: dict[str, int] = {}
    for row in rows:
        theirs = row.get("num_accepted_tokens_per_pos")
        if theirs is None:
            continue
        arm = row["arm"]
        both = zip_longest(counts.get(arm, []), theirs, fillvalue=0)
        counts[arm] = [a + b for a, b in both]
        blocks[arm] = blocks.get(arm, 0) + int(
            row["num_drafts" if "num_drafts" in row else "num_target_forwards"]
        )
    return {arm: [n / blocks[arm] for n in each] for arm, each in counts.items() if each}


def _generated(path: Path, document: Json, inputs: Inputs) -> None:
    """Read completions of `cospec generate`: acceptance by position, arms of one setting together.

    An arm that is there already, or that was run on other prompts or sampled in another way, gets
    a figure of its own, with the name of its file in the title.
    """
    config = document["config"]
    rates = acceptance_rates(document["rows"])
    sampling = config.get("sampling") or {}
    k = f"k = {config['decode']['num_speculative_tokens']}"
    warmth = sampling.get("temperature")
    told = _pair(config), k, _drafting(config), _sampling(warmth) if warmth else ""
    title = ", ".join(filter(None, told))
    setting = json.dumps([title, sampling, config.get("prompts")], sort_keys=True)
    for known in inputs.acceptances:
        if known.setting == setting and known.rates.keys().isdisjoint(rates):
            known.rates.update(rates)
            return
    if any(known.title == title for known in inputs.acceptances):
        title += f" ({path.name})"
    if rates:
        inputs.acceptances.append(Acceptance(title, rates, setting))


def _audit(path: Path, document: Json, inputs: Inputs) -> None:
    config = document["config"]
    path_of = document["summary"].get("path")
    title = _title(config, config["task"]["task"]) + (f", path of {path_of}" if path_of else "")
    for name in ("outcomes", "target_accuracy", "draft_accuracy", "one_step_oracle"):
        document["summary"][name]
    audit = AuditResult(title, document["summary"])
    audit_rows([audit])  # fails here, with the name of the file, if a number is missing
    inputs.audits.append(audit)


def _calibration(path: Path, document: Json, inputs: Inputs) -> None:
    scores = document["calibration"]["reliability"]
    config = document["config"]
    if scores and scores["bins"]:
        arbiter = Path(config["calibrate"]["arbiter"]).name
        title = f"{arbiter}, {config['task']['task']}"
        inputs.reliabilities.append(
            Reliability(title, scores["bins"], scores["expected_calibration_error"])
        )


def _traced(path: Path, document: Json, inputs: Inputs) -> None:
    import numpy as np  # noqa: PLC0415  # so that the command line starts without it

    rows = document["rows"]
    for row in rows:
        check_trace(row)
    inputs.traces += rows
    config = document["config"]
    title = f"{_title(config, config['task']['task'])} ({path.name})"
    if rates := acceptance_rates(rows):
        inputs.acceptances.append(Acceptance(f"recorded problems: {title}", rates))
    names = ("p_draft_id", "p_target_id", "q_draft_id")
    every = [m for row in rows for m in row["mismatches"]]
    found = [m for m in every if all(m[name] is not None for name in names)]
    if found:
        p_draft, p_target = (np.clip([m[name] for m in found], 1e-9, 1.0) for name in names[:2])
        ruled = ["override" if m["keep_draft"] else "target's token" for m in found]
        q_draft = np.array([m["q_draft_id"] for m in found])
        gap_p = np.log(p_target) - np.log(p_draft)
        inputs.mismatches.append(Mismatches(f"rulings: {title}", gap_p, q_draft, ruled))


_READERS: dict[str, Callable[[Path, Json, Inputs], None]] = {
    "eval": _comparison,
    "demo": _comparison,
    "bench": _bench,
    "audit": _audit,
    "calibrate": _calibration,
    "trace": _traced,
    "generate": _generated,
}


def _read_dataset(path: Path, inputs: Inputs) -> bool:
    """Read the data set of an audit."""
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415  # loads numpy

    try:
        with safe_open(path, "numpy") as file:
            about = file.metadata() or {}
            if "feature_names" not in about or "draft_correct" not in file.keys():  # noqa: SIM118
                return False
            names = json.loads(about["feature_names"])
            features = file.get_tensor("features")
            correct = zip(
                *(file.get_tensor(f"{who}_correct").tolist() for who in ("draft", "target")),
                strict=True,
            )
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    import numpy as np  # noqa: PLC0415

    from cospec.evaluation.audit.summary import outcome  # noqa: PLC0415

    labels = [outcome({"draft_correct": d, "target_correct": t}) for d, t in correct]
    gap_p, log_q = (features[:, names.index(name)] for name in ("gap_p", "log_q_draft"))
    pair = {"pair": json.loads(about.get("pair", "{}"))}
    title = _title(pair, about.get("task", path.stem))
    inputs.mismatches.append(Mismatches(f"outcomes: {title}", gap_p, np.exp(log_q), labels))
    inputs.sources.append(ResultSource(path.name, "audit --dataset", [], {}))
    return True


def _is_round(line: str) -> bool:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and "round" in found


def _read_training(path: Path, text: str, inputs: Inputs) -> bool:
    """Read the progress of a training: JSON lines with rounds."""
    written = [line for line in text.split("\n") if line.strip()]
    if not written or not _is_round(written[0]):  # another kind of file, which may be cut off
        return False
    lines = [json.loads(line) for line in written]
    if not all(isinstance(line, dict) and "round" in line for line in lines):
        return False
    name = path.name.removesuffix(".jsonl").removesuffix("metrics").rstrip(".")
    inputs.trainings.append(Training(name or path.resolve().parent.name, lines))
    inputs.sources.append(ResultSource(path.name, "train", [], {}))
    return True
