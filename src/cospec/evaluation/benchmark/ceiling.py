"""The oracle path as an entry of a benchmark: a reference whose rulings know the answers.

It has to know how every branch ends (see `Auditor`), so it is not an arbiter, and the time of its
search says nothing about decoding. Its times are estimates: those of lossless decoding, scaled by
the number of target forwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cospec.evaluation.arms import Arm
from cospec.evaluation.audit.auditor import Auditor
from cospec.evaluation.audit.config import AuditConfig
from cospec.evaluation.benchmark.cells import lean
from cospec.evaluation.benchmark.names import ORACLE
from cospec.evaluation.evaluate import Evaluation
from cospec.evaluation.summary import LOSSLESS, TARGET, counts, paired, quality, rows_by_arm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cospec.config import Prompt, SamplingConfig
    from cospec.evaluation.benchmark.config import Benchmark, PlayPart
    from cospec.results import Json
    from cospec.types import Completion


class OracleEngine:
    """Finds the oracle path of problems whose answers it knows.

    Args:
        benchmark: Models, problems and settings.
        k: Drafted tokens a block.
        batch_size: Most completions decoded together.
    """

    def __init__(self, benchmark: Benchmark, k: int, batch_size: int) -> None:
        self.pair = benchmark.pair
        self.context_length = self.pair.context_length
        self.num_speculative_tokens = k
        self.batch_size = batch_size
        self._examples, self._seed = benchmark.test, benchmark.seed
        config = AuditConfig(
            num_speculative_tokens=k,
            batch_size=batch_size,
            max_new_tokens=benchmark.config.max_new_tokens,
        )
        self._auditor = Auditor(benchmark.pair, benchmark.task, config, benchmark.seed)
        self._num_exact = benchmark.config.exact_prefix_tokens

    def generate(
        self,
        prompts: Sequence[Prompt],  # two problems may share one
        sampling: Sequence[SamplingConfig],
        *,
        streams: Sequence[int] | None = None,  # greedy: nothing is drawn
    ) -> list[Completion]:
        """Return the oracle path of each prompt, with the settings of the benchmark."""
        # An evaluation counts its problems' seeds up from its own.
        examples = [self._examples[(config.seed or 0) - self._seed] for config in sampling]
        return self._auditor.oracle_paths(examples, exact_prefix_tokens=self._num_exact)


def search(benchmark: Benchmark, k: int, play: PlayPart) -> list[Json]:
    """Return the rows of the oracle path on the test problems, decoded greedily.

    Args:
        benchmark: Models, problems and settings.
        k: Drafted tokens a block.
        play: Plays the turns.
    """
    engine = OracleEngine(benchmark, k, max(benchmark.config.batch_sizes))
    evaluation = Evaluation(
        [Arm(ORACLE, None, engine)],
        benchmark.task,
        benchmark.test,
        max_new_tokens=benchmark.config.max_new_tokens,
        seed=benchmark.seed,
    )
    return rows_by_arm(play(evaluation, "oracle", warm_up=False))[ORACLE]


def add(cell: Json, rows: Sequence[Json], k: int) -> Json:
    """Return a cell with the ceiling as its last arm.

    Args:
        cell: Cell from `cospec.evaluation.benchmark.cells.measure`.
        rows: Rows from `search`.
        k: Drafted tokens a block.
    """
    target, rival = (
        [row for row in cell["rows"] if row["arm"] == name] for name in (TARGET, cell["best_rival"])
    )
    num_tokens = sum(row["num_tokens"] for row in rows)
    found = counts(rows)
    exact = next(arm for arm in cell["arms"] if arm["name"] == LOSSLESS)
    share = found["num_target_forwards"] / exact["num_target_forwards"]
    speedup = num_tokens / (share * exact["num_tokens"])
    seconds, num_right = share * exact["seconds"], sum(row["correct"] for row in rows)
    entry = {
        "name": ORACLE,
        "arbiter": None,
        "num_problems": len(rows),
        **quality(rows, target),
        "num_turns": exact["num_turns"],
        "num_tokens": num_tokens,
        "seconds": seconds,
        "tokens_per_s": num_tokens / seconds,
        "seconds_per_token": seconds / num_tokens,
        "seconds_per_solved": seconds / num_right if num_right else None,
        "speedup_vs_target": speedup * exact["speedup_vs_target"],
        "speedup_vs_target_ci95": None,
        "speedup_vs_lossless": speedup,
        "speedup_vs_lossless_ci95": None,
        "speedup_bound": None,
        **found,
        "repeats": {"tokens_per_s": [], "speedup_vs_target": [], "speedup_vs_lossless": []},
        "num_rows_unlike_first_repeat": 0,
        "vs_rival": {"rival": cell["best_rival"], **paired(rows, rival)} if rival else None,
        "kind": "ceiling",
        "k": k,
        "knob": None,
    }
    return cell | {"arms": [*cell["arms"], entry], "rows": [*cell["rows"], *lean(rows, target)]}
