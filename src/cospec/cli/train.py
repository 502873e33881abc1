"""``cospec train``: a pair and a task in, a trained arbiter out."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import tyro

from cospec.cli.common.backends import BackendOptions
from cospec.cli.common.config_file import read_config
from cospec.cli.common.logged import OBJECTIVE, LogOptions, train_from_log
from cospec.cli.common.options import PairOptions, check_task, given, set_threads
from cospec.cli.common.progress import Progress, duration
from cospec.cli.common.run import to_json
from cospec.errors import ConfigError
from cospec.results import Json, Provenance, write_text
from cospec.rl.config import TrainConfig
from cospec.tasks.extras import import_extra

if TYPE_CHECKING:
    from cospec.backends.base import RolloutBackend
    from cospec.cli.common.trackers import Tracker
    from cospec.models import ModelPair
    from cospec.rl.trainer import Trainer
    from cospec.tasks import Example, Task

_SOLUTION_SEED = 1_000_000  # far from the rounds' seeds; fixed, so that runs can share a reading
_SHOWN = (
    "accuracy",
    "accuracy_target",
    "reward",
    "override_rate",
    "mean_acceptance_length",
    "frac_reward_zero_std",
    "entropy",
    "kl",
    "clip_fraction",
    "branch_gain",
    "tune_accuracy",
    "tune_accuracy_target",
    "tune_relative_cost",
)


class Problems(NamedTuple):
    """The problems of a run."""

    task: Task
    train: list[Example]
    """Problems of the rounds."""
    tune: list[Example]
    solved: list[Example]
    """Problems whose worked solutions are trained on first."""


@dataclass(frozen=True)
class TrainTaskOptions:
    """Problems to train on; the tune split of the same task picks the policy that is kept."""

    task: str = ""
    """gsm8k, reasoning_gym:NAME, jsonl:FILE,scorer=numeric, ... as in cospec eval. An arbiter that
    will rule on many kinds of text should train on all of them: mix:TASK@4+TASK@1."""
    num_problems: int | None = None
    """Problems of the train split; by default as many as the rounds take."""
    data_dir: Path | None = None
    """Folder of the data sets; by default $COSPEC_DATA, or data."""
    allow_code_execution: bool = False
    """Run programs that the models write, in a sandbox."""

    def __post_init__(self) -> None:
        if self.num_problems is not None and self.num_problems < 1:
            raise ConfigError(
                f"num_problems is {self.num_problems}; it must be at least 1. Leave it out to "
                "draw as many as the rounds take."
            )


@dataclass(frozen=True)
class Train:
    """Train an arbiter by reinforcement learning on final answers.

    The folder --out keeps the state after each round: the same command resumes from there. The
    trained arbiter is written into it at the end, for --arbiter FOLDER. Settings without a flag
    are set by --config: each run writes all of its own as train.json into its folder.
    """

    task: TrainTaskOptions
    out: Path
    """Folder of the arbiter and of the run's state."""
    log: LogOptions = field(default_factory=LogOptions)
    pair: PairOptions = field(default_factory=PairOptions)
    train: TrainConfig = field(default_factory=TrainConfig)
    engine: BackendOptions = field(default_factory=BackendOptions)
    config: str | None = None
    """JSON file of training settings, such as train.json of another run, or a JSON object as in
    '{"ridge": {"scalars": ["gap_p"]}}'. Flags override it."""
    name: str | None = None
    """Name of the arbiter in reports; by default the folder's."""
    wandb_project: str | None = None
    """Log each round to this project of Weights & Biases as well."""
    threads: int | None = None
    """CPU threads; by default as many as torch takes."""
    dry_run: bool = False
    """Print the plan and the expected time from a few problems, and stop."""

    def __post_init__(self) -> None:
        if isinstance(self.out, Path):  # beside a config file it is missing at first
            # bash leaves the ~ of --out=~/x to us.
            object.__setattr__(self, "out", self.out.expanduser())

    def run(self) -> None:
        """Train, show and write."""
        from cospec.evaluation.audit.dataset import read_origin
        from cospec.evaluation.turns import lock
        from cospec.rl.checkpoint import check_run, open_run

        self._check_way()
        if self.out.exists() and not self.out.is_dir():
            raise ConfigError(f"out is {self.out}, which is a file; name a folder.")
        if self.log.from_log is not None:
            set_threads(self.threads)
            train_from_log(self.log, self.pair, self.train, self.out, self.name)
            return
        check_task(self.task.task)
        check_run(self.out, self._settings(), is_whole=False)
        set_threads(self.threads)
        problems = self._problems()
        provenance = Provenance()
        pair = self.engine.load(self.pair, problems.task)
        audited = None
        if (path := self.train.warmup.warm_start) is not None:
            audited = read_origin(path, pair.fingerprint)
        if self.dry_run:
            self._plan(pair, problems)
            return
        self.out.mkdir(parents=True, exist_ok=True)
        with lock(self.out / "run.lock"):
            settings = self._settings() | self._inputs(pair, problems)
            check_run(self.out, settings)
            trainer = self._trainer(pair, problems)  # refuses problems before they are stored
            open_run(self.out, settings)
            write_text(self.out / "train.json", json.dumps(self.train.to_dict(), indent=1) + "\n")
            self._train(trainer, provenance, audited)

    def _check_way(self) -> None:
        """Refuse options that training from a log does not take, or training by rollouts.

        Raises:
            ConfigError: Such an option is given, and would be ignored.
            MissingExtraError: A project of W&B is named, and wandb is not installed.
        """
        log = self.log
        wrong = given(log, LogOptions())
        told = "is for training from a log; pass the log by --from-log FILE, or leave it out"
        if log.from_log is not None:
            wrong = given(self, self._options_of_a_log())
            told = f"is not for training from a log; leave it out, or --from-log {log.from_log}"
        for name, value in wrong.items():
            raise ConfigError(f"{name} is {value}, which {told}.")
        if self.wandb_project is not None:
            import_extra("wandb", "wandb", "wandb")

    def _options_of_a_log(self) -> Train:
        """Return the options that training from a log takes, with defaults for all others."""
        names = ("out", "log", "config", "name", "threads")
        used = {name: getattr(self, name) for name in names}
        used["pair"] = PairOptions(pair=self.pair.pair)
        file = None if self.config is None else defaults(self.config)
        config, ours = TrainConfig() if file is None else file.train, self.train
        weights = {name: getattr(ours.objective, name) for name in OBJECTIVE}
        objective = replace(config.objective, **weights)
        config = replace(config, seed=ours.seed, objective=objective, optimizer=ours.optimizer)
        return Train(TrainTaskOptions(), train=config, **used)

    def _trainer(self, pair: ModelPair, problems: Problems) -> Trainer:
        """Make the trainer, which resumes from its folder."""
        from cospec.cli.common.play import tell
        from cospec.rl.trainer import Trainer

        task, train, tune, solved = problems
        backend = self._backend(pair)
        trainer = Trainer(pair, backend, task, self.train, train, tune, self.out, solved)
        tell(trainer.notes)
        return trainer

    def _train(
        self, trainer: Trainer, provenance: Provenance, audited: dict[str, list[str]] | None
    ) -> None:
        """Train to the end and write the arbiter; `audited` hashes the questions of an audit."""
        from cospec.cli.common.trackers import open_trackers
        from cospec.rl.card import write_card
        from cospec.tasks.trained_on import write_trained_on

        trackers = open_trackers(self.out, self._settings(), self.wandb_project)
        if trainer.state.round:
            print(f"resuming after round {trainer.state.round}", flush=True)
        with Progress(self._num_completions(trainer), "completions", label="train") as progress:
            trainer.backend.on_finished = trainer.on_read = progress.advance
            arbiter = trainer.run(lambda metrics: self._report(trainer, metrics, trackers))
        target = trainer.pair.target
        told: Json = {
            "name": self.name or self.out.resolve().name,
            "pair": self._pair() | arbiter.about["pair"],
            "training": self._settings(),
            "provenance": provenance.to_dict(str(target.device), str(target.dtype)),
        }
        self._write_metrics(trainer.state.history)  # if the last round was saved and not reported
        about = told | {key: value for key, value in arbiter.about.items() if key not in told}
        arbiter = replace(arbiter, about=about)
        write_trained_on(self.out, [*trainer.train, *trainer.tune, *trainer.solved], audited)
        arbiter.save(self.out, write_card(about))
        print(f"wrote {self.out}: use it with --arbiter {self.out}")

    def _inputs(self, pair: ModelPair, problems: Problems) -> Json:
        """Return hashes of the pair and of the data: a run resumes with the same ones only."""
        from cospec.evaluation.problems import describe_models
        from cospec.rl.checkpoint import hash_data

        found: Json = dict(hash_data(problems.train, problems.tune, problems.solved))
        if self.train.warmup.warm_start is not None:
            found["data_warm_start"] = sha256(self.train.warmup.warm_start.read_bytes()).hexdigest()
        return {"inputs": found | describe_models(pair)}

    def _settings(self) -> Json:
        """Return all options that the result depends on, as JSON."""
        left_out = ("out", "dry_run", "threads", "name", "wandb_project", "config", "engine", "log")
        settings = {key: value for key, value in to_json(self).items() if key not in left_out}
        if self.engine.backend != "transformers":  # its first tokens differ; replicas do not
            settings["backend"] = self.engine.backend
        if self.engine.vllm_options != "{}":
            settings["vllm_options"] = self.engine.vllm_options
        return settings

    def _backend(self, pair: ModelPair) -> RolloutBackend:
        """Build the backend of the rollouts."""
        if self.engine.backend == "vllm" and self.train.warmup.num_solutions:
            print("worked solutions are read on transformers, rollouts played on vLLM", flush=True)
        return self.engine.open(
            self.pair, pair, self.train.rollouts, self.train.features, self.threads
        )

    def _pair(self) -> Json:
        """Return the options of the pair that were given or have a default."""
        return {key: value for key, value in asdict(self.pair).items() if value is not None}

    def _problems(self) -> Problems:
        """Load the task, and draw its problems."""
        from cospec.tasks import load_task

        options, config = self.task, self.train
        task = load_task(
            options.task,
            data_dir=options.data_dir,
            allow_code_execution=options.allow_code_execution,
        )
        number = options.num_problems
        if number is None:
            number = config.num_rounds * config.rollouts.prompts_per_round
        train = task.examples("train", number, config.seed) if number else []
        tune = task.examples("tune", config.evaluation.num_tune, config.seed)
        num_solved = config.warmup.num_solutions
        solved = task.examples("train", num_solved, _SOLUTION_SEED) if num_solved else []
        return Problems(task, train, tune, solved)

    def _num_completions(self, trainer: Trainer) -> int:
        """Return the most texts left: solutions, lossless, rollouts, branches, tune split."""
        from cospec.rl.warmstart import num_texts

        config, left = self.train, self.train.num_rounds - trainer.state.round
        round_size = config.rollouts.prompts_per_round * (
            1 + round(config.rollouts.group_size * (1 + config.branches_per_rollout))
        )
        warmup, num_tune = config.warmup, config.evaluation.num_tune
        num_first = 0
        if not trainer.state.best and (warmup.num_solutions or warmup.warm_start is not None):
            num_first = warmup.num_solutions * num_texts(config) + num_tune
        return num_first + left * round_size + num_tune * (1 + left // config.evaluation.tune_every)

    def _report(self, trainer: Trainer, metrics: Json, trackers: list[Tracker]) -> None:
        """Print a line, write one to metrics.jsonl, and hand the metrics to the trackers."""
        shown = "  ".join(f"{name} {metrics[name]:.3g}" for name in _SHOWN if name in metrics)
        number = f"{metrics['round']}/{self.train.num_rounds}"
        print(f"round {number}  {metrics['seconds']:.0f} s  {shown}", flush=True)
        self._write_metrics(trainer.state.history)
        for tracker in trackers:
            tracker(metrics)

    def _write_metrics(self, history: Sequence[Json]) -> None:
        """Write the metrics of all rounds, unless they are there."""
        path = self.out / "metrics.jsonl"
        lines = "".join(json.dumps(row) + "\n" for row in history)
        if not path.exists() or path.read_bytes() != lines.encode():
            write_text(path, lines)

    def _plan(self, pair: ModelPair, problems: Problems) -> None:
        """Print the plan and the expected time, estimated from a small round."""
        from cospec.cli.common.play import tell
        from cospec.rl.trainer import Trainer
        from cospec.rl.warmstart import num_cached

        task, train, tune, solved = problems
        config = self.train
        size = min(16, config.rollouts.prompts_per_round)
        few = replace(
            config,
            rollouts=replace(config.rollouts, prompts_per_round=size),
            warmup=replace(config.warmup, solutions=None),
        )
        first = train[:size] or solved[:size] or tune[:size]
        backend = self._backend(pair)
        small = Trainer(pair, backend, task, few, first, tune, solved=solved[:64])
        tell(small.notes)
        if solved:
            started = time.perf_counter()
            small.warm_up()
            num_left = len(solved) - num_cached(config.warmup.solutions)
            read_s = (time.perf_counter() - started) * num_left / len(small.solved)
            print(f"{num_left} worked solutions first: {duration(read_s)}")
        seconds = small.play_round()["seconds"]
        round_s = seconds * config.rollouts.prompts_per_round / size
        share = config.evaluation.num_tune / (size * (1 + config.rollouts.group_size))
        tune_s = seconds / 2 * share * (1 + config.num_rounds // config.evaluation.tune_every)
        num_rollouts = config.rollouts.prompts_per_round * config.rollouts.group_size
        num_branches = round(num_rollouts * config.branches_per_rollout)
        print(
            f"{config.num_rounds} rounds of {config.rollouts.prompts_per_round} problems: "
            f"{num_rollouts} rollouts and {num_branches} branches each; "
            f"{len(train)} train and {len(tune)} tune problems\n"
            f"expected: {round_s:.0f} s a round, "
            f"{duration(config.num_rounds * round_s + tune_s)} in all "
            f"(a round of {size} problems took {seconds:.0f} s; longer batches are faster)"
        )


def defaults(config: str) -> Train:
    """Return the command with the training settings of a file.

    Raises:
        ConfigError: The file cannot be read, or its settings are not allowed.
    """
    train = TrainConfig.from_dict(read_config(config))
    return Train(TrainTaskOptions(), out=tyro.MISSING, train=train)
