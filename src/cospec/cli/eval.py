"""``cospec eval``: accuracy and speed of arbiters against target, draft and lossless on a task."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace

from cospec.cli.options import ArmOptions, OutputOptions, PairOptions, TaskOptions, set_threads
from cospec.results import Provenance, check_writable, document, write_json


@dataclass(frozen=True)
class Eval:
    """Compare arbiters with target, draft and lossless on a task: quality and speed together.

    With --json FILE, finished parts are kept in FILE.part.jsonl until the result is written: after
    an interruption the same command goes on from there.
    """

    task: TaskOptions
    pair: PairOptions = field(default_factory=PairOptions)
    decode: ArmOptions = field(default_factory=ArmOptions)
    output: OutputOptions = field(default_factory=OutputOptions)
    max_new_tokens: int | None = None
    """Most tokens of an answer; by default the task's."""
    temperature: float = 0.0
    """Of sampling; 0 is greedy."""
    exact_prefix_tokens: int = 0
    """Keep this many first tokens of every answer lossless: no override there."""
    strict: bool = False
    """Refuse problems that an arbiter was trained on; by default they are counted and noted."""
    threads: int | None = None
    """CPU threads; by default as many as torch takes."""

    def run(self) -> None:
        """Evaluate, show and write."""
        from cospec.arbiters import load_arbiter
        from cospec.cli.arms import (
            check_trained_on,
            play,
            print_notes,
            print_parts,
            print_table,
        )
        from cospec.evaluation.arms import make_arms
        from cospec.evaluation.evaluate import Evaluation
        from cospec.evaluation.problems import describe_models
        from cospec.evaluation.turns import TurnLog

        path = self.output.json
        check_writable(path, self.output.overwrite)
        set_threads(self.threads)
        specs = [(spec, self.pair.find_arbiter(spec)) for spec in self.decode.arbiter]
        task, examples = self.task.load()
        provenance = Provenance()
        check_trained_on([load_arbiter(found) for _, found in specs], examples, self.strict)
        pair = self.pair.load()
        arbiters = [(spec, load_arbiter(found, pair)) for spec, found in specs]
        decode = self.decode.for_arbiters(arbiter for _, arbiter in arbiters)
        arms = make_arms(pair, arbiters, decode)
        evaluation = Evaluation(
            arms,
            task,
            examples,
            max_new_tokens=self.max_new_tokens,
            seed=self.task.seed,
            temperature=self.temperature,
            exact_prefix_tokens=self.exact_prefix_tokens,
        )
        print_notes(pair, evaluation)
        options = json.loads(json.dumps(asdict(replace(self, decode=decode)), default=str))
        del options["output"]
        config = options | {"evaluation": evaluation.config(), "models": describe_models(pair)}
        where = str(pair.target.device), str(pair.target.dtype)
        log = TurnLog.beside(path, config, provenance.to_dict(*where)) if path else None
        parts = evaluation.result(play(evaluation, log))
        if path is not None and log is not None:
            resumed = {"num_resumed_turns": len(log.done)}
            write_json(
                path, document("eval", config, provenance.to_dict(*where), **parts, **resumed)
            )
            log.remove()
        if "parts" in parts:
            print_parts(parts["parts"])
        print_table(parts["arms"])  # last: a closed pipe must not cost the result
