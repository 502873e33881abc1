"""``cospec audit``: what an arbiter could win on a pair and task, before anyone trains one."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cospec.cli.common.backends import BackendOptions
from cospec.cli.common.options import OutputOptions, PairOptions, TaskOptions, check_answers
from cospec.cli.common.progress import Progress
from cospec.cli.common.run import Run, to_json
from cospec.cli.views.audit import standing
from cospec.config import SamplingConfig
from cospec.errors import ConfigError, check_least, is_out_of_memory
from cospec.evaluation.audit.config import AuditConfig
from cospec.results import Json
from cospec.tasks import Split

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cospec.evaluation.audit.auditor import Auditor
    from cospec.evaluation.turns import TurnLog
    from cospec.models import ModelPair
    from cospec.models.costs import Costs
    from cospec.tasks import Example, Task


@dataclass(frozen=True)
class AuditTaskOptions(TaskOptions):
    """Problems."""

    split: Split = "train"
    """train, tune or test; no problem is in two of them."""


@dataclass(frozen=True)
class AuditOptions(AuditConfig):
    """Audit."""

    problems_per_chunk: int = 32
    """Number of problems after which the progress is saved."""
    cost_batch_sizes: tuple[int, ...] = (1, 8)
    """Batch sizes for which forwards are timed and the speed-up is predicted."""
    max_k: int = 16
    """Longest block that a speed-up is predicted for."""
    threads: int | None = None
    """CPU threads; by default as many as torch takes."""
    dataset: Path | None = None
    """Write the mismatches and the outcomes of their branches as a safetensors file."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_answers(self.max_new_tokens, self.temperature)
        self.check_cost()
        check_least(1, branches_per_problem=self.branches_per_problem, max_k=self.max_k)
        check_least(1, problems_per_chunk=self.problems_per_chunk)
        if not self.cost_batch_sizes or min(self.cost_batch_sizes) < 1:
            raise ConfigError(
                f"cost_batch_sizes is {self.cost_batch_sizes}; pass numbers of at least 1."
            )


@dataclass(frozen=True)
class Audit:
    """Play both branches of every mismatch: how often is the draft right where the target is wrong?

    With --json FILE, finished parts are kept in FILE.part.jsonl until the result is written: after
    an interruption the same command resumes from there.
    """

    task: AuditTaskOptions = field(default_factory=AuditTaskOptions)
    pair: PairOptions = field(default_factory=PairOptions)
    audit: AuditOptions = field(default_factory=AuditOptions)
    output: OutputOptions = field(default_factory=OutputOptions)
    engine: BackendOptions = field(default_factory=BackendOptions)

    def run(self) -> None:
        """Audit, show and write."""
        from cospec.arbiters import load_arbiter
        from cospec.arbiters.learned import notes_on
        from cospec.cli.common.play import tell
        from cospec.cli.views.audit import show
        from cospec.evaluation.audit.auditor import Auditor
        from cospec.evaluation.audit.dataset import check_own, write_dataset
        from cospec.evaluation.audit.summary import summarize
        from cospec.evaluation.problems import describe_problems

        files = [self.audit.dataset]
        run = Run("audit", self.output, threads=self.audit.threads, files=files)
        spec = self.pair.find_arbiter(self.audit.arbiter)
        arbiter = load_arbiter(spec)
        options = self.audit.for_arbiters([arbiter])
        task, examples = self.task.load()
        pair = self.engine.load(self.pair, task)
        backend = self.engine.open(self.pair, pair, options, options.features, options.threads)
        decoders = self.engine.decoders(self.pair, pair, options.features)
        draft = decoders.plain("draft", options)
        settings = replace(options, arbiter=spec)
        auditor = Auditor(pair, task, settings, self.task.seed, backend=backend, draft=draft)
        auditor.encode(examples)  # refuses a prompt that is too long before anything is played
        limit = options.max_new_tokens or task.max_new_tokens
        sampling = SamplingConfig(limit, options.temperature)
        tell(
            [
                *pair.notes,
                *self.engine.notes(),
                *notes_on(load_arbiter(spec, pair), options, sampling),
            ]
        )
        about = {"evaluation": {"task": task.name, **describe_problems(examples)}}
        settled = replace(self, audit=options)
        origin = settled._origin(task, examples, pair)
        with run.log(settled, pair, {options.arbiter: arbiter}, **about) as log:
            if options.dataset is not None and not self.output.overwrite:
                check_own(options.dataset, [example.id for example in examples], origin)
            records = self._play(auditor, examples, log)
            # Speed-ups are predicted only for the target's own path, on the measured engine.
            is_told = arbiter.name == "lossless" and not options.temperature
            is_told = is_told and self.engine.backend == "transformers"
            costs = self._costs(pair, options, records) if is_told else []
            names = list(auditor.features.names)
            path = None if arbiter.name == "lossless" else options.arbiter
            if options.temperature:
                path = f"{path or 'the target'} at temperature {options.temperature:g}"
            summary = summarize(records, names, costs, options.k, path)
            if options.dataset is not None:
                write_dataset(options.dataset, records, names, origin)
            run.write(
                summary=summary,
                costs=[asdict(cost) for cost in costs],
                feature_names=names,
                rows=[_slim(record) for record in records],
            )
        show(summary)  # last: a closed pipe must not cost the result

    def _costs(self, pair: ModelPair, options: AuditOptions, records: list[Json]) -> list[Costs]:
        """Measure the cost of forwards, at each batch size that fits into memory."""
        from cospec.cli.common.play import tell
        from cospec.models.costs import measure_costs

        lengths = [r["num_prompt_tokens"] + r["num_tokens"] // 2 for r in records]
        context, found = sum(lengths) // len(lengths), []
        longest = options.max_k + 1
        with Progress(len(options.cost_batch_sizes), "batch sizes", label="costs") as progress:
            for size in options.cost_batch_sizes:
                try:
                    costs = measure_costs(
                        pair, max_tokens=longest, context=context, batch_size=size
                    )
                    found.append(costs)
                except (MemoryError, RuntimeError) as error:
                    if not is_out_of_memory(error):
                        raise
                    left_out = f"costs at batch {size} are left out"
                    tell([f"{left_out}: the forwards do not fit into memory"])
                progress.advance(1)
        return found

    def _origin(self, task: Task, examples: Sequence[Example], pair: ModelPair) -> dict[str, str]:
        """Return the origin of a data set, as its file records it."""
        from cospec.evaluation.audit.dataset import describe_decoding
        from cospec.tasks.trained_on import hashes_of

        return {
            **describe_decoding(self.audit),
            "task": task.name,
            "split": self.task.split,
            "pair": json.dumps(to_json(self.pair)),
            "fingerprint": pair.fingerprint,
            "trained_on": json.dumps(hashes_of(examples)),
        }

    def _play(
        self, auditor: Auditor, examples: Sequence[Example], log: TurnLog | None
    ) -> list[Json]:
        """Return the records of all problems, played chunk by chunk with their progress shown."""
        from cospec.evaluation.turns import Turn

        size = self.audit.problems_per_chunk
        chunks = [examples[start : start + size] for start in range(0, len(examples), size)]
        done = {turn.chunk: turn.rows for turn in log.done} if log else {}
        records: list[Json] = []
        num_done = sum(map(len, done.values()))
        with Progress(len(examples), "problems", done=num_done, label="audit") as progress:
            for i, chunk in enumerate(chunks):
                if i not in done:
                    start, before = time.perf_counter(), progress.done
                    auditor.on_progress = lambda share: progress.update(
                        before + share * len(chunk)  # noqa: B023  # called within this round
                    )
                    done[i] = auditor.audit(chunk, i * size)
                    if log is not None:
                        log.append(Turn(i, "audit", time.perf_counter() - start, done[i]))
                    progress.update(before + len(chunk))
                records += done[i]
                progress.update(progress.done, standing(records))
                progress.line(f"{len(records)}/{len(examples)} problems, {standing(records)}")
        return records


def _slim(record: Json) -> Json:
    """A record without the features, which belong in the data set."""
    mismatches = [{k: v for k, v in m.items() if k != "features"} for m in record["mismatches"]]
    return record | {"mismatches": mismatches}
