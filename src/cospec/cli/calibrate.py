"""``cospec calibrate``: choose the threshold that a trained arbiter is used with."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cospec.cli.common.options import AnswerOptions, OutputOptions, PairOptions, TaskOptions
from cospec.cli.common.run import Run
from cospec.config import DecodeConfig, SamplingConfig
from cospec.errors import ConfigError
from cospec.models.bundled import BUNDLED_ARBITERS
from cospec.results import Json

if TYPE_CHECKING:
    from cospec.arbiters.learned import LearnedArbiter
    from cospec.evaluation.arms import Arm
    from cospec.models import ModelPair
    from cospec.tasks import Example, Task

_RISKS = {
    "harm": "the share of problems that the target gets right and the arbiter wrong",
    "loss": "the target's accuracy minus the arbiter's",
}
_GRID = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)


@dataclass(frozen=True)
class CalibrateTaskOptions(TaskOptions):
    """Problems."""

    split: Literal["train", "tune"] = "tune"
    """A guarantee needs problems that the arbiter was not trained on: tune."""


@dataclass(frozen=True)
class CalibrateOptions(DecodeConfig, AnswerOptions):
    """Operating point."""

    arbiter: str = "bundled"
    """The trained arbiter: its folder, bundled or bundled-scalar."""
    aim: Literal["accuracy", "speed", "guarantee"] = "accuracy"
    """accuracy: most right answers. speed: fewest target forwards per right answer, with no fewer
    right answers than the target. guarantee: the boldest threshold whose risk is certified."""
    thresholds: tuple[float, ...] = _GRID
    """Probabilities to try; 1, which is lossless, is always among them."""
    risk: Literal["harm", "loss"] = "harm"
    """Risk of aim guarantee. harm: share of problems that the target gets right, the arbiter wrong.
    loss: the target's accuracy minus the arbiter's."""
    epsilon: float = 0.02
    """Largest risk allowed by aim guarantee."""
    delta: float = 0.1
    """Probability, over the draw of independent problems, that the guarantee fails. It holds for
    the first run on them, not for the best of several."""
    cost_weight: float = 0.0
    """Price of time with aim accuracy: accuracy lost per target forward, as a share of lossless
    decoding's."""
    out: Path | None = None
    """Folder that becomes a copy of the arbiter with the operating point. By default the point goes
    into the arbiter's own folder; the folders of bundled arbiters belong to the package."""
    name: str | None = None
    """Name of the operating point; by default the aim. --overwrite replaces one that exists."""
    dataset: Path | None = None
    """Mismatches from cospec audit --dataset, to show how reliable the arbiter's scores are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        AnswerOptions.__post_init__(self)
        self.check_cost()
        if self.out is not None:  # bash leaves the ~ of --out=~/x to us
            object.__setattr__(self, "out", self.out.expanduser())
        if not all(0 <= threshold <= 1 for threshold in self.thresholds):
            raise ConfigError(f"thresholds is {self.thresholds}; each must be in [0, 1].")
        for name in ("epsilon", "delta"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be in (0, 1).")
        names, default = ("risk", "epsilon", "delta"), CalibrateOptions
        unused = [name for name in names if getattr(self, name) != getattr(default, name)]
        if self.aim != "guarantee" and unused:
            raise ConfigError(
                f"{unused[0]} is {getattr(self, unused[0])}, which only --aim guarantee reads, and "
                f"the aim is {self.aim}; leave it out."
            )
        if self.aim == "guarantee" and self.risk == "harm" and self.temperature:
            raise ConfigError(
                f"temperature is {self.temperature}: samples of the target and of lossless differ "
                "by chance, which counts as harm; bound the risk 'loss' (--risk loss), or set it "
                "to 0."
            )
        if self.cost_weight < 0 or (self.cost_weight and self.aim != "accuracy"):
            raise ConfigError(
                f"cost_weight is {self.cost_weight}; it must be 0, or positive with --aim accuracy."
            )

    @property
    def sequence(self) -> list[float]:
        """The thresholds from the safest to the boldest, lossless first."""
        return sorted({1.0, *self.thresholds}, reverse=True)


@dataclass(frozen=True)
class Calibrate:
    """Choose the threshold of a trained arbiter, and store it as an operating point of its folder.

    It is used as --arbiter FOLDER:point=NAME. With --json FILE, finished parts are kept in
    FILE.part.jsonl until the result is written: after an interruption the same command resumes from
    there.
    """

    task: CalibrateTaskOptions = field(default_factory=CalibrateTaskOptions)
    pair: PairOptions = field(default_factory=PairOptions)
    calibrate: CalibrateOptions = field(default_factory=CalibrateOptions)
    output: OutputOptions = field(default_factory=OutputOptions)

    def __post_init__(self) -> None:
        if self.calibrate.aim == "guarantee" and self.task.split == "train":
            raise ConfigError("split is 'train'; a guarantee needs --split tune.")

    def run(self) -> None:
        """Decode, choose, show and write."""
        from cospec.arbiters.learned import LearnedArbiter
        from cospec.cli.common.play import play, print_notes
        from cospec.cli.views.arms import print_table
        from cospec.evaluation.audit.dataset import read_dataset
        from cospec.evaluation.evaluate import Evaluation
        from cospec.rl.calibrate import check_point, write_point

        options, overwrite = self.calibrate, self.output.overwrite
        name = options.name or options.aim
        run = Run("calibrate", self.output, threads=options.threads)
        folder = self._folder()
        check_point(folder, name, overwrite or run.is_resumed, options.out)
        arbiter = LearnedArbiter.load(folder)
        options = options.for_arbiters([arbiter])
        settled = replace(self, calibrate=options)
        if options.dataset:
            read_dataset(options.dataset, arbiter.features.names)  # refused before the models load
        task, examples = self._problems(folder, arbiter.about)
        pair = self.pair.load()
        scores = None
        if options.dataset:
            scores = _reliability(arbiter, options.dataset, pair.fingerprint)
        arms = settled._arms(pair, LearnedArbiter.load(folder, pair))
        evaluation = Evaluation(
            arms,
            task,
            examples,
            max_new_tokens=options.max_new_tokens,
            seed=self.task.seed,
            temperature=options.temperature,
        )
        print_notes(pair, evaluation)
        about = {"evaluation": evaluation.config()}
        with run.log(settled, pair, {options.arbiter: arbiter.with_threshold(0)}, **about) as log:
            # A run that was killed at its end has written the point.
            overwrite = overwrite or bool(log and log.done)
            check_point(folder, name, overwrite, options.out)
            parts = evaluation.result(play(evaluation, log))
            sampling = SamplingConfig(evaluation.max_new_tokens, evaluation.temperature)
            calibration = settled._choose(parts["arms"], sampling)
            calibration |= {"name": name, "reliability": scores}
            write_point(folder, name, calibration["point"], overwrite, options.out)
            run.write(**parts, calibration=calibration)
        print_table(parts["arms"])
        _show(calibration)
        print(
            f"wrote the operating point: use it with --arbiter {options.out or folder}:point={name}"
        )

    def _folder(self) -> Path:
        """The folder of the arbiter.

        Raises:
            ConfigError: The arbiter is no folder, or the folder belongs to the package and no other
                one is given.
        """
        from cospec.arbiters import is_folder

        arbiter = self.calibrate.arbiter
        if arbiter not in BUNDLED_ARBITERS and not is_folder(arbiter):
            raise ConfigError(
                f"arbiter is {arbiter!r}; it must be the folder of a trained arbiter, where the "
                f"operating point is written, or {' or '.join(BUNDLED_ARBITERS)}."
            )
        folder = Path(self.pair.find_arbiter(arbiter)).expanduser()
        if arbiter in BUNDLED_ARBITERS and self.calibrate.out is None:
            raise ConfigError(
                f"arbiter is {arbiter!r}, whose folder belongs to the package; pass --out FOLDER "
                "for a copy that gets the operating point."
            )
        return folder

    def _problems(self, folder: Path, about: Json) -> tuple[Task, list[Example]]:
        """Load the task and its problems; for a guarantee, without those that chose the arbiter.

        Training keeps the policy of the round that was best on problems of the tune split: on these
        the arbiter looks better than it is.

        Raises:
            ConfigError: There are too few for the guarantee, or they depend on each other.
        """
        from collections import Counter

        from cospec.rl.calibrate import least_num_problems
        from cospec.settings import flat
        from cospec.tasks.gsm_symbolic import TEMPLATE
        from cospec.tasks.trained_on import read_hashes, unseen

        options = self.calibrate
        task, examples = self.task.load()
        if options.aim != "guarantee":
            return task, examples
        # Templates are drawn for each problem: the bound holds for problems from the same ones.
        groups = Counter(e.group for e in examples if e.group and TEMPLATE not in e.metadata)
        if len(groups) < groups.total():
            raise ConfigError(
                f"aim is 'guarantee', and {groups.total()} problems are of {len(groups)} groups, "
                "such as databases: the bound holds for independent problems, and those of one "
                "group succeed and fail together. Choose --aim accuracy or speed, or pass problems "
                "with one question a group."
            )
        training = about.get("training", {})
        trained_on, ours = training.get("task", {}).get("task", ""), self.task.task
        if trained_on == ours or (trained_on and "mix:" in (trained_on[:4], ours[:4])):
            trained = flat(training["train"])
            number, seed = trained["num_tune"], trained["seed"]
            watched = replace(
                self.task, task=trained_on, split="tune", num_problems=number, seed=seed
            )
            seen = {example.question for example in watched.load()[1]}
            examples = [example for example in examples if example.question not in seen]
        elif trained_on and read_hashes(folder) is None:
            raise ConfigError(
                f"aim is 'guarantee', and {folder}, trained on {trained_on}, does not tell its "
                "problems: the bound holds for others alone. Name the task as it does, train it "
                "again, or choose --aim accuracy or speed."
            )
        examples = unseen(folder, examples)  # whatever the task was called
        once = {example.question: example for example in reversed(examples)}
        examples = list(once.values())[::-1]  # a question that comes twice is one problem
        least = least_num_problems(options.risk, options.epsilon, options.delta)
        if len(examples) < least:
            raise ConfigError(
                f"there are {len(examples)} problems, each question once and without those that "
                "training was watched on; "
                f"{options.risk} {options.epsilon} at delta {options.delta} takes at least {least}"
                ": pass more by --num-problems, others by --seed, or a larger --epsilon."
            )
        return task, examples

    def _arms(self, pair: ModelPair, arbiter: LearnedArbiter) -> list[Arm]:
        """Target, draft, lossless, and the arbiter at each threshold."""
        from cospec.evaluation.arms import make_arms

        options, (_, *thresholds) = self.calibrate, self.calibrate.sequence
        quiet = replace(arbiter, notes=())  # the first one carries the notes of all
        arbiters = [
            (f"{options.arbiter}:threshold={t}", (quiet if i else arbiter).with_threshold(t))
            for i, t in enumerate(thresholds)
        ]
        return make_arms(pair, arbiters, options)

    def _choose(self, arms: list[Json], sampling: SamplingConfig) -> Json:
        """Return the operating point, its tests and a verdict, from the numbers of the arms."""
        from cospec.arbiters.learned import decoding_of
        from cospec.rl.calibrate import Candidate, certify, fastest, most_accurate

        options, size = self.calibrate, arms[0]["num_problems"]
        names = ("accuracy", "wins", "losses", "num_target_forwards")
        candidates = [
            Candidate(threshold, *(arm[name] for name in names))
            for threshold, arm in zip(options.sequence, arms[2:], strict=True)
        ]
        tests: list[Json] = []
        if options.aim == "accuracy":
            chosen = most_accurate(candidates, options.cost_weight)
        elif options.aim == "speed":
            chosen = fastest(candidates)
        else:
            chosen, tests = certify(candidates, size, options.risk, options.epsilon, options.delta)
        point: Json = {"threshold": chosen.threshold, "aim": options.aim}
        for name in ("risk", "epsilon", "delta"):
            point[name] = getattr(options, name) if tests else None
        point |= {
            "num_problems": size,
            "task": self.task.task,
            "split": self.task.split,
            "seed": self.task.seed,
            "num_speculative_tokens": options.k,
            "decoding": decoding_of(options, sampling),
        }
        right = f"{chosen.accuracy:.1%} right, the target {arms[0]['accuracy']:.1%}"
        return {"point": point, "tests": tests, "verdict": f"{_verdict(point)} Here: {right}."}


def _verdict(point: Json) -> str:
    """Say what the operating point promises, and what it does not."""
    threshold, size = point["threshold"], point["num_problems"]
    problems = f"{size} problems of the {point['split']} split"
    if point["aim"] != "guarantee":
        return (
            f"Threshold {threshold:g} is the choice for {point['aim']} on {problems}, and not a "
            "guarantee: measure it on test problems."
        )
    if threshold == 1:
        return (
            f"No threshold below 1 is certified on {problems}: the operating point is lossless "
            "(threshold 1), whose output is the target's."
        )
    return (
        f"Threshold {threshold:g} is certified on {problems}: {_RISKS[point['risk']]} is at most "
        f"{point['epsilon']:g} on problems drawn like these. The claim fails with probability at "
        f"most {point['delta']:g} over the draw, provided that the problems are independent and "
        "that nothing was fitted to them. To repeat the command with other settings on the same "
        "problems, and keep the best, voids this level."
    )


def _show(calibration: Json) -> None:
    """Print the tests, the reliability of the scores, and the verdict."""
    for test in calibration["tests"]:
        fate = "certified" if test["is_certified"] else "not certified"
        print(f"threshold {test['threshold']:<6g} p {test['p_value']:<8.2g} {fate}")
    if calibration["reliability"]:
        print("\nscore       mismatches whose branches differ, mean score, draft's branch right")
        for row in calibration["reliability"]["bins"]:
            low, high = row["ci95"]
            print(
                f"{row['from']:.1f} to {row['to']:.1f}  {row['num_mismatches']:6}  "
                f"{row['mean_score']:.3f}  {row['share_draft_right']:.3f} ({low:.3f} to {high:.3f})"
            )
        error = calibration["reliability"]["expected_calibration_error"]
        print("no branches differ" if error is None else f"expected calibration error {error:.3f}")
    print(f"\n{calibration['verdict']}")


def _reliability(arbiter: LearnedArbiter, path: Path, fingerprint: str) -> Json:
    """Compare the scores of an arbiter with the outcomes of an audit's mismatches.

    Problems that it was trained on are noted on stderr: on these its scores look better.

    Raises:
        ConfigError: The file is no such data set, has other features, or comes from another pair.
    """
    import torch

    from cospec.cli.common.play import tell
    from cospec.evaluation.audit.dataset import count_met, read_dataset, read_metadata
    from cospec.rl.calibrate import reliability

    data = read_dataset(path, arbiter.features.names)
    metadata = read_metadata(path, fingerprint)
    number, size = count_met(metadata, arbiter.folder) if arbiter.folder is not None else (0, 0)
    if number:
        tell([f"{arbiter.label} was trained on {number} of the {size} problems of {path}"])
    with torch.no_grad():
        scores = torch.sigmoid(arbiter.policy(data["features"]))
    columns = (data[name].numpy() for name in ("draft_correct", "target_correct", "weight"))
    return reliability(scores.numpy(), *columns)
