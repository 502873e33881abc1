"""``cospec trace``: problems with every token's origin and every ruling, for the report."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from cospec.cli.common.options import (
    AnswerOptions,
    DecodeOptions,
    OutputOptions,
    PairOptions,
    TaskOptions,
)
from cospec.cli.common.progress import Progress
from cospec.cli.common.run import Run
from cospec.config import SamplingConfig
from cospec.errors import ConfigError, check_least


@dataclass(frozen=True)
class TraceOptions(DecodeOptions, AnswerOptions):
    """Recording."""

    keep: int = 20
    """Problems to record: first those won or lost against the target, then by overrides."""
    branches: bool = True
    """Play the other branch of each mismatch as well, to tell which leads to the right answer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        AnswerOptions.__post_init__(self)
        check_least(1, keep=self.keep)


@dataclass(frozen=True)
class Trace:
    """Record problems token by token, with every ruling, as a document for cospec report."""

    task: TaskOptions = field(default_factory=TaskOptions)
    pair: PairOptions = field(default_factory=PairOptions)
    trace: TraceOptions = field(default_factory=TraceOptions)
    output: OutputOptions = field(default_factory=OutputOptions)

    def run(self) -> None:
        """Decode, play branches, and write.

        Raises:
            ConfigError: No file is named for the result.
        """
        from cospec.arbiters import load_arbiter
        from cospec.arbiters.learned import notes_on
        from cospec.cli.common.play import tell
        from cospec.engine import Engine
        from cospec.evaluation.problems import describe_problems
        from cospec.evaluation.trace import trace_problems

        options = self.trace
        if self.output.json is None:
            raise ConfigError("the traces go to a file; name it by --json FILE.")
        run = Run("trace", self.output, threads=options.threads)
        spec = self.pair.find_arbiter(options.arbiter)
        task, examples = self.task.load()
        pair = self.pair.load()
        arbiter = load_arbiter(spec, pair)
        options = options.for_arbiters([arbiter])
        limit = options.max_new_tokens or task.max_new_tokens
        sampling = SamplingConfig(limit, options.temperature)
        tell([*pair.notes, *notes_on(arbiter, options, sampling)])
        about = {"evaluation": {"task": task.name, **describe_problems(examples)}}
        settled = replace(self, trace=options)
        with run.log(settled, pair, {options.arbiter: arbiter}, **about):
            with Progress(2 * len(examples), "answers") as progress:
                rows = trace_problems(
                    Engine(pair, arbiter, options, on_finished=progress.advance),
                    task,
                    examples,
                    keep=options.keep,
                    branches=options.branches,
                    max_new_tokens=options.max_new_tokens,
                    seed=self.task.seed,
                    temperature=options.temperature,
                    on_branches=progress.extend,
                )
            run.write(rows=rows)
        num_changed = sum(row["correct"] != row["target_correct"] for row in rows)
        print(
            f"{len(rows)} of {len(examples)} problems recorded, {num_changed} of them won or lost "
            f"against the target: {self.output.json}"
        )
