"""State of a run on disk, so that a run that was killed resumes with the round it was in."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from cospec.arbiters.record import CARD
from cospec.errors import CheckpointError, ConfigError
from cospec.evaluation.problems import describe_problems
from cospec.results import parse_json, write_bytes, write_text
from cospec.rl.types import Baseline, BranchData
from cospec.settings import flat

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from cospec.arbiters.policy import Policy
    from cospec.results import Json
    from cospec.rl.warmstart import WarmStart
    from cospec.tasks import Example

STATE, SETTINGS = "state.pt", "run.json"
_PLAIN = ("round", "best", "best_policy", "history", "running_reward")
_AGAIN = "restore it from a copy, or name another folder to start again."


@dataclass
class TrainState:
    """All that a run carries from round to round."""

    policy: Policy
    start: Policy
    """Policy that the divergence is measured from."""
    best_policy: dict[str, Tensor] = field(default_factory=dict)
    """Weights at the best evaluation."""
    best: Json = field(default_factory=dict)
    """Round, reward and guard of the best evaluation."""
    round: int = 0
    """Rounds that are done."""
    history: list[Json] = field(default_factory=list)
    """Metrics of each round."""
    replay: list[BranchData] = field(default_factory=list)
    """Branches of each round."""
    baselines: dict[str, Baseline] = field(default_factory=dict)
    """Lossless decoding of each problem, by id."""
    running_reward: float | None = None
    """Running mean of rewards, for methods that have one."""
    made_from: Json = field(default_factory=dict)
    """All that the result depends on: settings, and hashes of the pair and of the data."""

    def __post_init__(self) -> None:
        self.best_policy = self.best_policy or self.policy.state_dict()

    def take(self, learned: WarmStart) -> None:
        """Start the rounds from the policy that was trained before them."""
        self.policy.load_state_dict(learned.policy.state_dict())
        self.start.load_state_dict(learned.start.state_dict())
        if learned.branches is not None:
            self.replay.append(learned.branches)

    def keep_best(self, reward: float, max_mismatch_rate: float | None) -> None:
        """Keep the policy as the best so far."""
        self.best = {
            "round": self.round,
            "tune_reward": reward,
            "max_mismatch_rate": max_mismatch_rate,
        }
        self.best_policy = {k: v.clone() for k, v in self.policy.state_dict().items()}

    def save(self, folder: Path | None) -> None:
        """Write the state whole or not at all, also where the machine loses power."""
        if folder is None:
            return
        # Plain values and tensors only: a state is read without unpickling classes.
        state = {name: getattr(self, name) for name in _PLAIN} | {
            "policy": self.policy.state_dict(),
            "start": self.start.state_dict(),
            "replay": [one.columns for one in self.replay],
            "baselines": {key: tuple(base) for key, base in self.baselines.items()},
            "made_from": self.made_from,
        }
        data = io.BytesIO()
        torch.save(state, data)
        write_bytes(folder / STATE, data.getbuffer())

    def restore(self, folder: Path | None) -> None:
        """Take up the saved state, if there is one.

        Raises:
            CheckpointError: The file is damaged, or comes from another version.
            ConfigError: It belongs to a run with other settings, another pair or other data.
        """
        path = None if folder is None else folder / STATE
        if path is None or not path.exists():
            return
        try:
            state = torch.load(path, weights_only=True)
            # Older versions do not record what a state was made from.
            names = _unlike(self.made_from, state.get("made_from", self.made_from))
            if not names:
                self.policy.load_state_dict(state["policy"])
                self.start.load_state_dict(state["start"])
                self.replay = [BranchData(*columns) for columns in state["replay"]]
                self.baselines = {key: Baseline(*base) for key, base in state["baselines"].items()}
                for name in _PLAIN:
                    setattr(self, name, state[name])
        except Exception as error:  # torch raises many kinds for a file that was cut short
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise CheckpointError(
                f"{path} cannot be resumed from: it is damaged, or from another version of cospec "
                f"({reason}); {_AGAIN}"
            ) from None
        if names:
            raise ConfigError(
                f"{path} is from a run with other settings ({', '.join(names)}); make the Trainer "
                "with the same ones to resume it, or name another folder."
            )


def hash_data(
    train: Sequence[Example], tune: Sequence[Example], solved: Sequence[Example]
) -> dict[str, str]:
    """Return hashes of the problems of a run, which can only be resumed with the same ones.

    They include the metadata: a scorer may read it, and solutions are part of it.
    """
    data = {"data_train": train, "data_tune": tune, "data_solutions": solved}
    told = {name: describe_problems(each) for name, each in data.items()}
    return {
        name: f"{one['problems_sha256']} {one['metadata_sha256']}" for name, one in told.items()
    }


def open_run(folder: Path, settings: Json) -> None:
    """Make the folder of a run and write its settings, or check that they are the same.

    Args:
        folder: Folder of the run.
        settings: All that the result depends on.

    Raises:
        ConfigError: The folder holds a finished arbiter, or a run with other settings.
        CheckpointError: The folder's files are damaged.
    """
    check_run(folder, settings)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / SETTINGS, json.dumps(settings, indent=1) + "\n")


def check_run(folder: Path, settings: Json, *, is_whole: bool = True) -> None:
    """Refuse a folder that holds a finished arbiter or another run; see `open_run`.

    A run without a finished round does not count: wrong settings may have ended it.

    Args:
        folder: Folder of the run.
        settings: All that the result depends on.
        is_whole: False if hashes of the pair and the data are not known yet.
    """
    if (folder / "config.json").exists():
        raise ConfigError(f"{folder} holds a finished arbiter; name another folder.")
    path = folder / SETTINGS
    if not path.exists() and (folder / CARD).exists():
        raise ConfigError(
            f"{folder} has a {CARD} of something else, which the arbiter's would replace; name "
            "another folder."
        )
    if not (path.exists() and (folder / STATE).exists()):
        return
    try:
        theirs = parse_json(path.read_text(encoding="utf-8"))
        names = _unlike(settings, theirs if is_whole else {**theirs, "inputs": {}})
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); {_AGAIN}") from None
    if names:
        raise ConfigError(
            f"{folder} holds an interrupted run with other settings ({', '.join(names)}); "
            "repeat its command to finish it, or name another folder."
        )


def _unlike(ours: Json, theirs: Json) -> list[str]:
    """Return the names of settings that differ."""
    ours, theirs = flat(ours), flat(theirs)
    return sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
