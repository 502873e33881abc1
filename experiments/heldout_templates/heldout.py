"""Train arbiters on some templates of gsm_symbolic and test them on the others, fold by fold.

    python experiments/heldout_templates/heldout.py PAIR STAGE --work FOLDER

The stages, in order (`run.sh` has the whole sequence):

* ``read``: read worked solutions of each fold's templates, once. What they tell is kept by fold, so
  that the solutions of four folds are those of the templates that the fifth leaves out.
* ``train``: for each fold, learn from the solutions of the other four; with ``--seen``, from as
  many of all five. With ``--rounds``, go on with rounds on problems of the same templates: of
  reinforcement, or of a supervised control (``--method``), which learns from the same solutions.
* ``scratch``: for each fold, rounds of reinforcement from nothing, with the settings of the
  published arbiters that had no solutions (`experiments/rounds_alone`).
* ``test``: decode the test problems of each fold under each arm, and keep a bit for each problem.

Every step writes a file or a folder and is skipped where that exists: a run that was stopped goes
on where it was. Solutions and test problems come in tiers, and a larger number begins with what a
smaller one has.

Greedy texts under an arbiter are lossless decoding's up to the first override. So an arm decodes
only the problems on which it keeps a token on that path; ``--check`` decodes all and compares.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import torch

from cospec.arbiters import AlwaysTarget, load_arbiter
from cospec.arbiters.learned import LearnedArbiter
from cospec.arbiters.observed import Observed
from cospec.arbiters.policy import PolicyConfig
from cospec.backends.engine import EngineBackend
from cospec.engine import Engine
from cospec.evaluation.audit.auditor import reached
from cospec.evaluation.audit.dataset import read_tensors, write_tensors
from cospec.evaluation.problems import describe_problems, encode_problems
from cospec.features import SCALAR_NAMES, make_features
from cospec.models import ModelPair
from cospec.models.bundled import bundled_models
from cospec.results import Json, Provenance, write_json, write_text
from cospec.rl.config import (
    EvaluationConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RolloutConfig,
    TrainConfig,
    WarmupConfig,
)
from cospec.rl.methods import METHODS, MethodName
from cospec.rl.solutions import encode_solutions, solution_decisions
from cospec.rl.trainer import Trainer
from cospec.rl.types import SolutionData
from cospec.rl.updates import imitate
from cospec.tasks import load_task
from cospec.tasks.gsm_symbolic import all_templates

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from cospec.tasks import Example, Task
    from cospec.types import Completion

NUM_FOLDS, FOLD_SEED = 5, 0
SOLUTION_SEED, TEST_SEED = 1_000_000, 95
TIER = 200
"""Solutions, and test problems, of a fold in a tier."""
RULE_ALPHA = {"bundled:specialist": 0.1, "bundled:family": -0.2}
"""The setting of ``cascade_diff``, the best rule, that the tune split chose in earlier tables."""
_K = 16
_COUNTS = ("num_tokens", "num_target_forwards", "num_overrides", "num_mismatches")


def folds() -> list[str]:
    """The templates of each fold, as the task's option takes them."""
    order = list(all_templates())
    Random(FOLD_SEED).shuffle(order)
    return ["/".join(map(str, sorted(order[i::NUM_FOLDS]))) for i in range(NUM_FOLDS)]


def task_of(fold: int | None, *, held_out: bool = False) -> Task:
    """The problems of a fold's templates, of all others, or of all."""
    if fold is None:
        return load_task("reasoning_gym:gsm_symbolic")
    option = "templates" if held_out else "without_templates"
    return load_task(f"reasoning_gym:gsm_symbolic,{option}={folds()[fold]}")


def parts_of(fold: int | None, num_tiers: int) -> list[tuple[int, int]]:
    """Folds and tiers of the solutions that are learned from.

    Args:
        fold: Which is left out; None for ``seen``, which leaves out another one in each tier and so
            has as many solutions.
        num_tiers: How many tiers there are.
    """
    return [
        (each, tier)
        for tier in range(num_tiers)
        for each in range(NUM_FOLDS)
        if each != (tier % NUM_FOLDS if fold is None else fold)
    ]


def config_of(
    seed: int, num_tune: int, num_rounds: int, *, from_nothing: bool, method: MethodName = "rl"
) -> TrainConfig:
    """The settings of published arbiters, but for the sizes and the method.

    They are those of ``*-corrected-seed*``; from nothing, those of `experiments/rounds_alone`.
    AutoJudge's policy sees hidden states alone, so that its rounds change all of it: a correction
    is of scalars.
    """
    alone = TrainConfig(
        num_rounds=num_rounds,
        rollouts=RolloutConfig(num_speculative_tokens=_K),
        evaluation=EvaluationConfig(tune_every=1, num_tune=num_tune),
        seed=seed,
    )
    if from_nothing:
        return alone
    shape = {"hidden_size": 256, "num_layers": 2, "hidden_projection": 128, "dropout": 0.5}
    return replace(
        alone,
        method=method,
        features="hidden",
        policy=PolicyConfig(**shape, correction=method != "autojudge"),
        objective=ObjectiveConfig(cost_weight=0.3, kl_weight=0.03, entropy_bonus=0.0),
        optimizer=OptimizerConfig(weight_decay=0.1, learning_rate=3e-3),
        warmup=WarmupConfig(num_solutions=1),  # the decisions are handed over
        evaluation=EvaluationConfig(tune_every=num_rounds, num_tune=num_tune),
    )


class Run:
    """One pair's run: where its files are, and its models."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.folder = Path(args.work) / args.pair.partition(":")[2]
        self.folder.mkdir(parents=True, exist_ok=True)
        target, draft = bundled_models(args.pair)
        self.pair = ModelPair.from_pretrained(
            args.target or target, args.draft or draft, dtype="float32"
        )
        self.features = make_features("hidden", self.pair)

    def read(self) -> None:
        """Read the solutions of all folds, a tier of each in turn."""
        solved: dict[int, list[Example]] = {}
        for tier in range(self.args.tiers):
            for fold in range(NUM_FOLDS):
                path = self._solutions(fold, tier)
                if path.exists():
                    continue
                task = task_of(fold, held_out=True)
                if fold not in solved:
                    num_solved = self.args.tiers * TIER
                    solved[fold] = task.examples("train", num_solved, SOLUTION_SEED)
                examples = solved[fold][tier * TIER : (tier + 1) * TIER]
                started = time.process_time()
                solutions = encode_solutions(self.pair, task, examples, tier * TIER)
                features, delta = solution_decisions(self.pair, self.features, solutions)
                seconds = time.process_time() - started
                about = {"num_read": str(len(examples)), "cpu_seconds": f"{seconds:.1f}"}
                write_tensors(path, {"features": features.half(), "delta": delta}, about)
                print(f"{path.name}: {len(delta)} decisions, {seconds:.0f} CPU s", flush=True)

    def _solutions(self, fold: int, tier: int) -> Path:
        return self.folder / f"solutions-fold{fold}-tier{tier}.safetensors"

    def _decisions(self, fold: int | None) -> tuple[Tensor, Tensor]:
        """What is learned from if a fold is left out, or none."""
        found = [
            read_tensors(self._solutions(*part), "what was read of solutions")[0]
            for part in parts_of(fold, self.args.tiers)
        ]
        features = torch.cat([tensors["features"].float() for tensors in found])
        return features, torch.cat([tensors["delta"] for tensors in found])

    def train(self, fold: int | None, seed: int) -> None:
        """Learn from solutions, then by rounds if those are asked for."""
        num_solutions = self.args.tiers * TIER * (NUM_FOLDS - 1)
        label = f"{'seen' if fold is None else f'fold{fold}'}-seed{seed}-n{num_solutions}"
        method = self.args.method
        after = self.folder / f"{label}-{'rounds' if method == 'rl' else method}"
        before = self.folder / (f"{label}-autojudge-start" if method == "autojudge" else label)
        if (before / "config.json").exists():
            policy = LearnedArbiter.load(before, self.pair).policy
        else:
            started = time.process_time()
            trainer = self._trainer(fold, seed, None)
            features, delta = self._decisions(fold)
            seen = METHODS[method].features(trainer.arbiter.features)
            trainer.state.policy.normalize_by(features, math.inf, seen)
            data = SolutionData(features, delta)
            loss = imitate(trainer.state.policy, data, trainer.config)
            seconds = time.process_time() - started
            trainer.state.history.append(
                {"loss": loss, "num_solution_decisions": len(delta), "cpu_seconds": seconds}
            )
            self._save(trainer, trainer.arbiter, before)
            policy = trainer.state.policy
        if self.args.rounds and not (after / "config.json").exists():
            trainer = self._trainer(fold, seed, after.with_name(f"{after.name}-state"))
            if not trainer.state.best:
                trainer.state.policy.load_state_dict(policy.state_dict())
                trainer.state.start.load_state_dict(policy.state_dict())
                trainer.keep(trainer.evaluate() | {"round": 0}, print)
            self._save(trainer, trainer.run(print), after)

    def scratch(self, fold: int, seed: int) -> None:
        """Rounds from nothing."""
        folder = self.folder / f"fold{fold}-seed{seed}-scratch{self.args.num_rounds}"
        if not (folder / "config.json").exists():
            state = folder.with_name(f"{folder.name}-state")
            trainer = self._trainer(fold, seed, state, from_nothing=True)
            self._save(trainer, trainer.run(print), folder)

    def _trainer(
        self, fold: int | None, seed: int, state: Path | None, *, from_nothing: bool = False
    ) -> Trainer:
        """With problems for rounds if there is a folder for their state."""
        task, args = task_of(fold), self.args
        config = config_of(
            seed, args.num_tune, args.num_rounds, from_nothing=from_nothing, method=args.method
        )
        backend = EngineBackend(self.pair, config.rollouts)
        if state is None:
            return Trainer(self.pair, backend, task, config, [], [])
        state.mkdir(exist_ok=True)
        train = task.examples("train", config.num_rounds * config.rollouts.prompts_per_round, seed)
        tune = task.examples("tune", config.evaluation.num_tune, seed)
        return Trainer(self.pair, backend, task, config, train, tune, state)

    def _save(self, trainer: Trainer, arbiter: LearnedArbiter, folder: Path) -> None:
        about: Json = {
            "name": folder.name,
            "pair": {"pair": self.args.pair, "fingerprint": self.pair.fingerprint},
            "training": {
                "task": {"task": trainer.task.name},
                "train": json.loads(json.dumps(trainer.config.to_dict(), default=str)),
            },
            "best": trainer.state.best,
            "history": trainer.state.history,
        }
        # No guards: nothing but the templates differs between what is learned from and the tests.
        bare = replace(arbiter, about=about, max_mismatch_rate=math.inf, prompt_guard=None)
        bare.save(folder)
        lines = "".join(json.dumps(row) + "\n" for row in trainer.state.history)
        write_text(folder.with_name(folder.name + ".metrics.jsonl"), lines)
        print(f"wrote {folder.name}", flush=True)

    def test(self, arm: str, fold: int, tier: int) -> None:
        """Decode the problems of a fold's tier under an arm.

        Args:
            arm: target, draft, lossless, rule, shipped, the name of an arbiter of this run, or
                ``fold-NAME`` for the fold's own.
            fold: Whose templates are tested.
            tier: Which problems.
        """
        path = self.folder / f"test-fold{fold}-tier{tier}-{arm}.json"
        if path.exists() and not self.args.check:
            return
        started, provenance = time.process_time(), Provenance()
        task = task_of(fold, held_out=True)
        examples = task.examples("test", (tier + 1) * TIER, TEST_SEED)[tier * TIER :]
        trace = path.with_name(f"test-fold{fold}-tier{tier}-lossless.safetensors")
        engine, spec, places = self._arm(arm, fold, trace)
        chosen = range(TIER) if places is None or self.args.check else places
        prompts, samplings = encode_problems(self.pair, task, [examples[i] for i in chosen])
        done = engine.generate(prompts, samplings) if prompts else []
        if arm == "lossless":
            _keep_trace(trace, done, len(self.features.names))
        rows = {
            i: {"correct": int(task.score(examples[i], c.text).correct)}
            | {name: getattr(c.stats, name) for name in _COUNTS}
            for i, c in zip(chosen, done, strict=True)
        }
        if places is not None:
            other = json.loads(path.with_name(trace.stem + ".json").read_text())
            kept = {i: {n: other[n][i] for n in ("correct", *_COUNTS)} for i in range(TIER)}
            if self.args.check:
                unlike = [i for i in range(TIER) if i not in places and rows[i] != kept[i]]
                print(f"{path.name}: {len(places)} to decode; of the others {len(unlike)} differ")
                return
            rows = kept | rows
        seconds = time.process_time() - started
        where = provenance.to_dict(str(self.pair.target.device), str(self.pair.target.dtype))
        document = {
            "arm": arm,
            "arbiter": spec,
            "task": task.name,
            **describe_problems(examples),
            "templates": [e.metadata["template"] for e in examples],
            "num_decoded": len(done),
            "cpu_seconds": seconds,
            "provenance": where,
            **{n: [rows[i][n] for i in range(TIER)] for n in ("correct", *_COUNTS)},
        }
        write_json(path, document)
        right = sum(document["correct"]) / TIER
        print(f"{path.name}: {right:.1%}, {len(done)} decoded, {seconds:.0f} CPU s", flush=True)

    def _arm(self, arm: str, fold: int, trace: Path) -> tuple[Engine, str | None, list[int] | None]:
        """The engine, the arbiter's name, and the problems to decode; None for all."""
        size = self.args.batch_size
        if arm == "target":
            return Engine.target_only(self.pair, batch_size=size), None, None
        if arm == "draft":
            return Engine.draft_only(self.pair, batch_size=size), None, None
        options = {"num_speculative_tokens": _K, "batch_size": size}
        if arm == "lossless":
            watched = Observed(AlwaysTarget(), self.features)
            return Engine(self.pair, watched, **options), arm, None
        tensors, _ = read_tensors(trace, "the mismatches of lossless decoding")
        if arm == "rule":
            given = self.args.alpha
            alpha = RULE_ALPHA[self.args.pair] if given is None else given
            spec = name = f"cascade_diff:alpha={alpha}"
            at = [SCALAR_NAMES.index(n) for n in ("log_q_draft", "log_p_target")]
            q, p = tensors["features"][:, at].exp().T
            keeps = q - p + alpha > -1e-3
        else:
            name = arm.replace("fold-", f"fold{fold}-")
            spec = str(self.folder / name)
            if arm == "shipped":
                spec = self.args.shipped
                name = Path(spec).name
            learned = LearnedArbiter.load(Path(spec), self.pair)
            width = len(learned.features.names)  # the scalars are the first of the hidden features
            with torch.no_grad():
                keeps = learned.policy(tensors["features"][:, :width]) > -0.02
        places = sorted(set(tensors["problem"][keeps].tolist()))
        engine = Engine(self.pair, load_arbiter(spec, self.pair), keep_trace=False, **options)
        return engine, name, places


def _keep_trace(path: Path, done: Sequence[Completion], num_features: int) -> None:
    """The features of the mismatches that lossless decoding reached."""
    found = [(i, m.features) for i, c in enumerate(done) for m in reached(c)]
    features = [f for _, f in found]
    tensors = {
        "problem": torch.tensor([i for i, _ in found], dtype=torch.int64),
        "features": torch.stack(features) if features else torch.empty(0, num_features),
    }
    write_tensors(path, tensors, {})


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("pair", choices=list(RULE_ALPHA))
    parser.add_argument("stage", choices=("read", "train", "scratch", "test"))
    parser.add_argument("--work", required=True, help="folder of what is made on the way")
    parser.add_argument("--target", help="folder of a target to use in place of the pair's")
    parser.add_argument("--draft", help="folder of a draft to use in place of the pair's")
    parser.add_argument("--tiers", type=int, default=5, help="200 solutions of each fold")
    parser.add_argument("--test-tiers", type=int, default=1, help="200 test problems of each fold")
    parser.add_argument("--num-tune", type=int, default=400)
    parser.add_argument("--num-rounds", type=int, default=4)
    parser.add_argument("--rounds", action="store_true", help="go on with rounds (train)")
    parser.add_argument(
        "--method", choices=("rl", "gold", "autojudge"), default="rl", help="of the rounds (train)"
    )
    parser.add_argument("--seen", action="store_true", help="learn from all templates (train)")
    parser.add_argument("--check", action="store_true", help="decode all problems and compare")
    parser.add_argument("--folds", type=int, nargs="+", default=list(range(NUM_FOLDS)))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--arms", nargs="+", default=["lossless", "draft", "rule"])
    parser.add_argument("--alpha", type=float, help="of the rule, in place of the published one")
    parser.add_argument("--shipped", help="folder of an arbiter that was trained elsewhere (test)")
    parser.add_argument("--batch-size", type=int, default=100)
    args = parser.parse_args()
    torch.set_num_threads(1)
    run = Run(args)
    if args.stage == "read":
        run.read()
    elif args.stage == "test":
        for tier in range(args.test_tiers):
            for fold in args.folds:
                for arm in args.arms:
                    run.test(arm, fold, tier)
    else:
        for fold in [None] if args.seen else args.folds:
            for seed in args.seeds:
                run.train(fold, seed) if args.stage == "train" else run.scratch(fold, seed)


if __name__ == "__main__":
    main()
