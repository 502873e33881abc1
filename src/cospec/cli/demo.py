"""``cospec demo``: what an arbiter does, on a pair that ships with the package, in a minute."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import cospec
from cospec.cli.common.options import DecodeOptions, OutputOptions, PairOptions
from cospec.cli.common.run import Run
from cospec.errors import ConfigError, TaskError

if TYPE_CHECKING:
    from cospec.tasks import Example, Task

_PAIR = "bundled:specialist"
_NEXT = """
Try your own pair and task:
  cospec info  --target T --draft D                                   whether it works, and pays
  cospec audit --target T --draft D --task gsm8k --num-problems 200   what an arbiter could win
  cospec train --target T --draft D --task gsm8k --out arbiter        an arbiter for this pair
T and D are hub ids or folders of models that share a tokenizer; gsm8k may be jsonl:FILE."""
_NUM_SHIPPED = 80
"""Number of problems that are solved by default, in about a minute on one core."""
_MAX_NEW_TOKENS = 300
"""Room for the longest solution of these problems in the bundled tokenizer (291 tokens)."""


@dataclass(frozen=True)
class Demo:
    """Compare target, draft, lossless and an arbiter on word problems, then show one of them.

    Needs no options, network or GPU: the pair bundled:specialist, its trained arbiter and the
    problems ship with the package. The target of that pair was trained without the drills in bare
    equations that its draft had, so that there is something to win.
    """

    pair: PairOptions = field(default_factory=PairOptions)
    decode: DecodeOptions = field(
        default_factory=lambda: DecodeOptions(arbiter="bundled", batch_size=16)
    )
    output: OutputOptions = field(default_factory=OutputOptions)
    num_problems: int | None = None
    """Number of problems; by default 80 of the 400 that ship with the package, or all of FILE."""
    threads: int | None = None
    """CPU threads; by default one for a pair that ships with the package, else torch's number."""
    problems: Path | None = None
    """JSON lines with id, question and answer (a number); by default those of the package."""

    def __post_init__(self) -> None:
        self.decode.check_cost()

    def run(self) -> None:
        """Compare, show one problem, and write."""
        from cospec.arbiters import load_arbiter
        from cospec.cli.common.play import play, print_notes
        from cospec.cli.views.arms import print_table
        from cospec.cli.views.showcase import pick, show
        from cospec.engine import Engine
        from cospec.evaluation.arms import make_arms
        from cospec.evaluation.evaluate import Evaluation

        models, threads = self.pair, self.threads
        if threads is None and models.target is None and models.draft is None:
            threads = 1  # two threads of so small a pair wait for each other on a busy machine
        run = Run("demo", self.output, threads=threads)
        if models.pair is None and models.target is None and models.draft is None:
            models = replace(models, pair=_PAIR)
        spec = models.find_arbiter(self.decode.arbiter)
        task, examples = _load_problems(self.problems, self.num_problems)
        pair = models.load()
        arbiter = load_arbiter(spec, pair)
        decode = self.decode.for_arbiters([arbiter])
        arms = make_arms(pair, [(decode.arbiter, arbiter)], decode)
        evaluation = Evaluation(arms, task, examples, max_new_tokens=_MAX_NEW_TOKENS)
        print_notes(pair, evaluation)
        options, about = replace(self, decode=decode), {"evaluation": evaluation.config()}
        with run.log(options, pair, {decode.arbiter: arbiter}, **about) as log:
            parts = evaluation.result(play(evaluation, log))
            engine = Engine(pair, arbiter, decode)
            shown = pick(evaluation, engine, parts["rows"])
            run.write(**parts, shown_id=shown.example.id if shown else None)
        print_table(parts["arms"])  # last: a closed pipe must not cost the result
        show(evaluation, engine, shown)
        print(_NEXT)


def _load_problems(path: Path | None, num_problems: int | None) -> tuple[Task, list[Example]]:
    """Load the problems under their own ids, as a task that is scored by the final number."""
    from cospec.tasks.jsonl import jsonl

    if path is None:
        num_problems = _NUM_SHIPPED if num_problems is None else num_problems
        path = Path(cospec.__file__).parent / "bundled" / "problems.jsonl"
        if not path.is_file():
            raise ConfigError("this build ships no problems; pass some by --problems FILE.")
    task = jsonl(str(path), {"scorer": "numeric", "split": "test"})
    examples = task.examples("test", num_problems)
    task = replace(task, name=f"jsonl:{path.name},scorer=numeric,split=test")  # as anywhere else
    examples = [replace(e, id=str(e.metadata.get("id", e.id))) for e in examples]
    ((twice, number),) = Counter(example.id for example in examples).most_common(1)
    if number > 1:
        raise TaskError(
            f"{path} has {number} problems with the id {twice!r}; give each an id of its own, or "
            "leave the ids out."
        )
    return task, examples
