"""``cospec eval``: accuracy and speed of arbiters against target, draft and lossless on a task."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from cospec.cli.common.backends import BackendOptions, records_for
from cospec.cli.common.options import (
    AnswerOptions,
    ArmOptions,
    OutputOptions,
    PairOptions,
    TaskOptions,
)
from cospec.cli.common.run import Run


@dataclass(frozen=True)
class Eval(AnswerOptions):
    """Compare arbiters with target, draft and lossless on a task: quality and speed together.

    With --json FILE, finished parts are kept in FILE.part.jsonl until the result is written: after
    an interruption the same command resumes from there.
    """

    task: TaskOptions = field(default_factory=TaskOptions)
    pair: PairOptions = field(default_factory=PairOptions)
    decode: ArmOptions = field(default_factory=ArmOptions)
    output: OutputOptions = field(default_factory=OutputOptions)
    engine: BackendOptions = field(default_factory=BackendOptions)
    exact_prefix_tokens: int = 0
    """Keep this many first tokens of every answer lossless: no override there."""
    strict: bool = False
    """Refuse problems that an arbiter was trained on, and an arbiter without a record of them; by
    default such problems are counted and noted."""

    def run(self) -> None:
        """Evaluate, show and write."""
        from cospec.arbiters import load_arbiter
        from cospec.cli.common.play import check_trained_on, play, print_notes
        from cospec.cli.views.arms import (
            print_fixed_answer,
            print_pairs,
            print_parts,
            print_table,
        )
        from cospec.evaluation.arms import check_names, make_arms
        from cospec.evaluation.evaluate import Evaluation, default_chunk_size

        run = Run("eval", self.output, threads=self.threads)
        specs = [(spec, self.pair.find_arbiter(spec)) for spec in self.decode.arbiter]
        loaded = [load_arbiter(found) for _, found in specs]
        check_names((one.name, spec) for one, (spec, _) in zip(loaded, specs, strict=True))
        task, examples = self.task.load()
        check_trained_on(loaded, examples, self.strict)
        pair = self.engine.load(self.pair, task)
        arbiters = [(spec, load_arbiter(found, pair)) for spec, found in specs]
        decode = self.decode.for_arbiters(arbiter for _, arbiter in arbiters)
        records = records_for(arbiter for _, arbiter in arbiters)
        size = default_chunk_size(len(examples), decode.batch_size, self.engine.num_replicas)
        num_chunks = run.interrupted("evaluation", "num_chunks")
        if isinstance(num_chunks, int) and num_chunks > 0:
            size = max(1, len(examples) // num_chunks)  # as cut by the interrupted run
        with self.engine.arms(self.pair, pair, records, self.threads) as (decoders, player):
            evaluation = Evaluation(
                make_arms(pair, arbiters, decode, decoders),
                task,
                examples,
                max_new_tokens=self.max_new_tokens,
                seed=self.task.seed,
                temperature=self.temperature,
                chunk_size=size,
                exact_prefix_tokens=self.exact_prefix_tokens,
                play=player,
            )
            print_notes(pair, evaluation)
            options = replace(self, decode=decode)
            with run.log(options, pair, dict(arbiters), evaluation=evaluation.config()) as log:
                parts = evaluation.result(play(evaluation, log))
                run.write(**parts)
        if "parts" in parts:
            print_parts(parts["parts"])
        print_table(parts["arms"])  # after writing: a closed pipe must not cost the result
        print_pairs(parts["arms"])
        if "fixed_answer" in parts:
            print_fixed_answer(parts["fixed_answer"], parts["arms"])
