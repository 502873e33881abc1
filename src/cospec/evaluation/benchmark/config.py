"""Settings of a benchmark, and the order of its parts.

First everything is tuned on the tune split, then the test split is touched, once. The protocol is
Spec-Bench's (2401.07851: one process, plain decoding in the same run, warm-up, three runs). It adds
what Spec-Bench leaves open: k and settings tuned for every arm alike, paired tests, batches and
temperatures. No clock has a part in the choice of k and settings, so that the same problems give
the same choice on any machine:

* Settings are tried at the longest block. An arm takes the one that is right most often, ties by
  cost.
* That setting is tried with each k. An arm takes the k that costs least.

Cost is the number of target forwards, plus that of draft forwards at `BenchConfig.draft_cost` each,
over all problems. Target forwards alone would always choose the longest block.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, Protocol

from cospec.config import DecodeConfig, SamplingConfig
from cospec.errors import ConfigError, check_least

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from cospec.backends.jobs import Decoder, Decoders, Player
    from cospec.evaluation.arms import Arm
    from cospec.evaluation.evaluate import Evaluation
    from cospec.evaluation.turns import Turn
    from cospec.models import ModelPair
    from cospec.results import Json
    from cospec.tasks import Example, Task
    from cospec.types import Arbiter


@dataclass(frozen=True)
class BenchConfig(DecodeConfig):
    """Tuning and measuring of arms."""

    batch_sizes: tuple[int, ...] = ()
    """Several batch sizes, a table for each; by default that of --batch-size alone."""
    temperatures: tuple[float, ...] = (0.0,)
    """Temperatures, a table for each; 0 is greedy."""
    repeats: int = 3
    """Number of times that the test problems are decoded. Seconds are means over the repeats,
    speed-ups are medians, and quality comes from the first one."""
    tune_k: tuple[int, ...] = ()
    """Drafted tokens a block to try for each arm on the tune split."""
    tune_knobs: bool = False
    """Try the grid of settings of each arbiter on the tune split (docs/bench.md). Settings that are
    given with an arbiter stay as they are."""
    num_tune_problems: int = 100
    """Problems of the tune split, which also choose the best rival; 0 for no tuning."""
    draft_cost: float | None = None
    """Cost of a draft forward in target forwards, for choosing k; by default the ratio of the
    sizes of the models' weights."""
    max_new_tokens: int | None = None
    """Most tokens of an answer; by default the task's."""
    exact_prefix_tokens: int = 0
    """Keep this many first tokens of every answer lossless: no override there."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "batch_sizes", self.batch_sizes or (self.batch_size,))
        positive = {
            "batch_sizes": self.batch_sizes,
            "repeats": (self.repeats,),
            "tune_k": self.tune_k,
        }
        for name, numbers in positive.items():
            for number in numbers:
                if number < 1:
                    raise ConfigError(f"{name} has {number}; it must be at least 1.")
        for name in ("batch_sizes", "temperatures", "tune_k"):
            values = getattr(self, name)
            if len(set(values)) < len(values) or not (values or name == "tune_k"):
                raise ConfigError(f"{name} is {values}; give one or more numbers, each once.")
        if self.num_tune_problems < 0:
            raise ConfigError(f"num_tune_problems is {self.num_tune_problems}; 0 turns tuning off.")
        if not self.num_tune_problems and (self.tune_k or self.tune_knobs):
            raise ConfigError(
                "num_tune_problems is 0, and --tune-k and --tune-knobs choose on these problems; "
                "give some, or leave both out."
            )
        self.check_cost()
        for temperature in self.temperatures:
            SamplingConfig(self.max_new_tokens or 1, temperature)
        check_least(1, max_new_tokens=self.max_new_tokens)
        if self.exact_prefix_tokens < 0:
            raise ConfigError(
                f"exact_prefix_tokens is {self.exact_prefix_tokens}; it must be 0 or positive."
            )
        if self.draft_cost is not None and not self.draft_cost >= 0:
            raise ConfigError(f"draft_cost is {self.draft_cost}; it must be 0 or positive.")


@dataclass(frozen=True, slots=True)
class Setting:
    """Settings that an arm decodes with: the spec of its arbiter and its k."""

    spec: str
    k: int


class PlayPart(Protocol):
    """Plays the turns of a part of the run, or finds them in the log."""

    def __call__(self, evaluation: Evaluation, part: str, *, warm_up: bool) -> list[Turn]:
        """Return all turns of the evaluation, under the name of the part."""
        ...


@dataclass(frozen=True)
class Benchmark:
    """Models, problems and settings that all parts of a benchmark share.

    Attributes:
        pair: The models.
        task: Makes the prompts and scores the answers.
        tune: Problems of the tune split; none if nothing is tuned.
        test: Problems of the test split.
        config: Settings of the benchmark.
        seed: Seed of sampling, and of arbiters that rule by chance.
        decoders: Makes the decoders of the arms.
        play: Plays jobs on the decoders.
        find: Turns the spec of an arbiter into one that `load_arbiter` takes. Documents hold the
            former, which does not depend on where something is installed.
    """

    pair: ModelPair
    task: Task
    tune: Sequence[Example]
    test: Sequence[Example]
    config: BenchConfig
    seed: int
    decoders: Decoders
    play: Player
    find: Callable[[str], str] = str

    def plain(self, role: Literal["target", "draft"], batch_size: int) -> Decoder:
        """Return a decoder with one model alone."""
        return self.decoders.plain(role, DecodeConfig(batch_size=batch_size))

    def ruled(self, arbiter: Arbiter, k: int, batch_size: int, *, trace: bool = False) -> Decoder:
        """Return a decoder with the pair under an arbiter."""
        decode = self.config.with_options(
            num_speculative_tokens=k, batch_size=batch_size, keep_trace=trace
        )
        return self.decoders.ruled(arbiter, decode)

    def arbiter(self, spec: str) -> Arbiter:
        """Return the arbiter that a spec names, for the pair."""
        from cospec.arbiters import CSD, load_arbiter  # noqa: PLC0415  # brings torch
        from cospec.arbiters.memory import TUNE  # noqa: PLC0415  # brings torch

        arbiter = load_arbiter(self.find(spec), self.pair)
        if isinstance(arbiter, CSD) and arbiter.memory == TUNE:
            return arbiter.remembering(self.tune_mismatches)
        return arbiter

    def knob(self, arm: Arm) -> str | None:
        """Return the settings in the name of an arm's arbiter; None without settings or arbiter."""
        if arm.arbiter is None:
            return None
        return self.arbiter(arm.arbiter).name.partition(":")[2] or None

    @cached_property
    def tune_mismatches(self) -> Tensor:
        """Pairs of tokens at the mismatches of the target's own answers to the tune problems."""
        from cospec.arbiters import AlwaysTarget  # noqa: PLC0415  # brings torch
        from cospec.arbiters.memory import mismatch_pairs  # noqa: PLC0415  # brings torch
        from cospec.evaluation.problems import encode_problems  # noqa: PLC0415  # heavy

        config = self.config
        k, batch_size = max(config.tune_k or (config.k,)), max(config.batch_sizes)
        decoder = self.ruled(AlwaysTarget(), k, batch_size, trace=True)
        encoded = encode_problems(
            self.pair,
            self.task,
            self.tune,
            config.max_new_tokens,
            self.seed,
            context_length=decoder.context_length,
        )
        return mismatch_pairs(decoder.generate(*encoded))

    def evaluation(
        self, arms: Sequence[Arm], examples: Sequence[Example], temperature: float
    ) -> Evaluation:
        """Return an evaluation of arms on problems, with the settings of all parts."""
        from cospec.evaluation.evaluate import Evaluation  # noqa: PLC0415  # brings torch

        return Evaluation(
            arms,
            self.task,
            examples,
            max_new_tokens=self.config.max_new_tokens,
            seed=self.seed,
            temperature=temperature,
            exact_prefix_tokens=self.config.exact_prefix_tokens,
            play=self.play,
        )

    @property
    def draft_cost(self) -> float:
        """Cost of a draft forward in target forwards."""
        if self.config.draft_cost is not None:
            return self.config.draft_cost
        return self.pair.draft_size


def describe(benchmark: Benchmark) -> Json:
    """Describe the problems of both splits, for the configuration of a run."""
    from cospec.evaluation.problems import describe_problems  # noqa: PLC0415  # heavy

    config = benchmark.config
    limit = config.max_new_tokens
    return {
        "task": benchmark.task.name,
        **describe_problems(benchmark.test),
        "tune": describe_problems(benchmark.tune),
        "max_new_tokens": benchmark.task.max_new_tokens if limit is None else limit,
        "exact_prefix_tokens": config.exact_prefix_tokens,
        "draft_cost": benchmark.draft_cost,
        "seed": benchmark.seed,
    }
