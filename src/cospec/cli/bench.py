"""``cospec bench``: all arbiters, tuned alike, against each other on one pair and task."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from cospec.cli.common.backends import BackendOptions, records_for
from cospec.cli.common.options import OutputOptions, PairOptions, TaskOptions
from cospec.cli.common.run import Run
from cospec.errors import ConfigError
from cospec.evaluation.benchmark.config import BenchConfig
from cospec.evaluation.benchmark.names import ASSISTED, MATCH, ORACLE
from cospec.models.bundled import BUNDLED_ARBITERS, bundled_arbiter_folder

if TYPE_CHECKING:
    from cospec.evaluation.benchmark.arms import ArmSpec


@dataclass(frozen=True)
class Bench:
    """Compare all arbiters on one pair and task: tune k and settings alike, then test once.

    target, draft and lossless are always there. With --json FILE, finished parts are kept in
    FILE.part.jsonl until the result is written: after an interruption the same command resumes from
    there. The protocol is in docs/bench.md.
    """

    task: TaskOptions = field(default_factory=TaskOptions)
    pair: PairOptions = field(default_factory=PairOptions)
    bench: BenchConfig = field(default_factory=BenchConfig)
    output: OutputOptions = field(default_factory=OutputOptions)
    engine: BackendOptions = field(default_factory=BackendOptions)
    arms: tuple[str, ...] = ("all",)
    """Arms to compare: arbiters as in eval, or these names. assisted: transformers' assisted
    generation, greedy and batch 1. random:match=ARM: overrides by chance, as often as ARM. oracle:
    a reference that knows the answers, and no upper bound. rules: every cited rule. all: rules,
    gap, agreement, assisted, the pair's trained arbiter and chance at its rate."""
    strict: bool = False
    """Refuse problems that an arbiter was trained on, and an arbiter without a record of them; by
    default such problems are counted and noted."""
    list_arms: bool = False
    """Print the arms that can be asked for, one a line, and stop."""
    threads: int | None = None
    """CPU threads; by default as many as torch takes."""

    def run(self) -> None:
        """Tune, measure, show and write."""
        if self.list_arms:
            print("\n".join(self._known_arms()))
            return
        from cospec.arbiters import load_arbiter
        from cospec.cli.common.play import check_trained_on
        from cospec.cli.views.bench import print_cells, run_benchmark
        from cospec.evaluation.benchmark.config import Benchmark, describe

        if self.engine.backend == "vllm":
            self._check_vllm()
        if self.bench.tune_k and self.bench.num_speculative_tokens is not None:
            raise ConfigError(
                f"num_speculative_tokens is {self.bench.num_speculative_tokens}, and --tune-k "
                "chooses it; leave out one of them."
            )
        sizes, size = self.bench.batch_sizes, self.bench.batch_size
        if sizes != (size,) and size != BenchConfig().batch_size:
            raise ConfigError(
                f"batch_size is {size}, and --batch-sizes are {' '.join(map(str, sizes))}; leave "
                "one of them out."
            )
        run = Run("bench", self.output, threads=self.threads)
        specs = self._arm_specs()
        bench = self.bench if self.bench.tune_k else self._for_arbiters(specs)
        if self.task.split == "tune":
            raise ConfigError("split is tune, which the settings are chosen on; pass test.")
        task, test = self.task.load()
        num_tune = self.bench.num_tune_problems
        tune = task.examples("tune", num_tune, self.task.seed) if num_tune else []
        tries = {self._find(each) for spec in specs for each in spec.tries}
        loaded = [load_arbiter(each) for each in sorted(tries)]
        check_trained_on(loaded, test, self.strict)
        pair = self.engine.load(self.pair, task)
        records = records_for(loaded)
        with self.engine.arms(self.pair, pair, records, self.threads) as how:
            benchmark = Benchmark(pair, task, tune, test, bench, self.task.seed, *how, self._find)
            first = {spec.name: self._find(spec.tries[0]) for spec in specs if spec.tries}
            arbiters = {name: load_arbiter(spec, pair) for name, spec in first.items()}
            options = replace(self, bench=bench)
            with run.log(options, pair, arbiters, evaluation=describe(benchmark)) as log:
                parts = run_benchmark(benchmark, specs, log)
                run.write(**parts)
        print_cells(parts["cells"])  # last: a closed pipe must not cost the result

    def _find(self, spec: str) -> str:
        """The spec that `load_arbiter` takes; ``csd`` may count on the tune problems, if any."""
        return self.pair.find_arbiter(spec, has_tune=self.bench.num_tune_problems > 0)

    def _check_vllm(self) -> None:
        """Refuse options that need more than one engine with the pair, sampling, or an oracle."""
        bench = self.bench
        refused = {
            "--tune-k": (bench.tune_k, len(bench.tune_k) > 1),
            "--batch-sizes": (bench.batch_sizes, len(bench.batch_sizes) > 1),
            "--temperatures": (bench.temperatures, any(bench.temperatures)),
            "--arms": (self.arms, ORACLE in self.arms),
        }
        for name, (value, is_refused) in refused.items():
            if is_refused:
                shown = " ".join(map(str, value))
                raise ConfigError(
                    f"{name} is {shown}; a benchmark on vLLM is greedy, has one block length and "
                    "one batch size, and no oracle. Run one for each, or leave out --backend vllm."
                )

    def _known_arms(self) -> list[str]:
        """Return the arms that can be asked for with this pair; all of them without one."""
        from cospec.arbiters import RULES

        pair = self.pair.pair
        trained = [
            name
            for name in BUNDLED_ARBITERS
            if pair is None or bundled_arbiter_folder(pair, name).is_dir()
        ]
        matched = [MATCH + name for name in trained]
        return [*RULES, *trained, *matched, ASSISTED, ORACLE]

    def _for_arbiters(self, specs: list[ArmSpec]) -> BenchConfig:
        """The settings with the block length that the trained arbiters among the arms ask for."""
        from cospec.arbiters import load_arbiter

        tries = [one for spec in specs for one in spec.tries[:1]]
        return self.bench.for_arbiters(load_arbiter(self._find(one)) for one in tries)

    def _arm_specs(self) -> list[ArmSpec]:
        """Return the arms to measure, checked before any model is loaded."""
        from cospec.evaluation.benchmark.arms import expand_sets, make_specs

        pair = self.pair.pair
        has_bundled = pair is not None and bundled_arbiter_folder(pair, "bundled").is_dir()
        names = expand_sets(self.arms, has_bundled, self.bench.num_tune_problems > 0)
        specs = make_specs(names, self._find, tune_knobs=self.bench.tune_knobs)
        bench = self.bench
        ends_early = bench.ends_blocks_early or bench.drafter != "model"
        if ends_early and ORACLE in [each.name for each in specs]:
            raise ConfigError(
                "the oracle's path is one of whole blocks of the draft model; leave out "
                "draft_confidence_threshold, adaptive, end_blocks_at_stop, max_corrections and "
                "drafter, or the oracle."
            )
        matched = next((spec.name for spec in specs if spec.match), None)
        if matched is not None and not self.bench.num_tune_problems:
            raise ConfigError(
                f"{matched} takes its rate from the tune split, and num_tune_problems is 0; give "
                "some, or a rate: random:rate=0.3."
            )
        return specs
