"""``cospec train --from-log``: an arbiter trained further on what a server logged."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from cospec.errors import ConfigError

if TYPE_CHECKING:
    from cospec.cli.common.options import PairOptions
    from cospec.results import Json
    from cospec.rl.config import TrainConfig

_MEASURED = ("operating_points", "best", "history")
OBJECTIVE = ("entropy_bonus", "kl_weight")
"""Settings of the objective that training from a log uses."""


@dataclass(frozen=True)
class LogOptions:
    """Training from production logs, in place of rollouts: no task and no models are needed."""

    from_log: Path | None = None
    """Log that cospec serve --decisions FILE --explore SHARE wrote."""
    rewards: Path | None = None
    """Reward of each request: JSON lines with request_id, reward, and maybe group."""
    arbiter: str | None = None
    """Arbiter that was served, where training starts."""


def train_from_log(
    options: LogOptions, pair: PairOptions, config: TrainConfig, out: Path, name: str | None
) -> None:
    """Train an arbiter on logged decisions, and write it.

    Args:
        options: The log, the rewards and the arbiter that was served.
        pair: Says which arbiter ``bundled`` is; no model is loaded.
        config: Settings of the training.
        out: Folder of the new arbiter.
        name: Name of the new arbiter; by default the folder's.

    Raises:
        CospecError: An option is missing, or a file cannot be used.
    """
    from cospec.arbiters import load_arbiter
    from cospec.arbiters.learned import LearnedArbiter
    from cospec.rl.checkpoint import check_run
    from cospec.rl.logged import read_log, read_rewards, train_on_log
    from cospec.tasks.trained_on import FILE

    check_run(out, {})
    assert options.from_log is not None
    if options.rewards is None or options.arbiter is None:
        missing = "--rewards" if options.rewards is None else "--arbiter"
        raise ConfigError(f"{missing} is missing; --from-log goes with --rewards and --arbiter.")
    arbiter = load_arbiter(pair.find_arbiter(options.arbiter))
    if not isinstance(arbiter, LearnedArbiter):
        raise ConfigError(
            f"arbiter is {options.arbiter}, a rule; pass the trained arbiter that was served."
        )
    rewards = read_rewards(options.rewards)
    data = read_log(options.from_log, rewards, arbiter.features.names)
    trained, metrics = train_on_log(arbiter, data, config)
    digest = {
        "from_log": sha256(options.from_log.read_bytes()).hexdigest(),
        "rewards": sha256(options.rewards.read_bytes()).hexdigest(),
        "start": arbiter.name,
        "optimizer": asdict(config.optimizer),
        "objective": {name: getattr(config.objective, name) for name in OBJECTIVE},
    }
    # Measurements of the served arbiter do not hold for the new one.
    kept = {key: value for key, value in arbiter.about.items() if key not in _MEASURED}
    name = name or out.resolve().name
    about = kept | {"name": name, "further_training": digest | metrics}
    out.mkdir(parents=True, exist_ok=True)
    if arbiter.folder is not None and (arbiter.folder / FILE).exists():
        shutil.copyfile(arbiter.folder / FILE, out / FILE)
    replace(trained, about=about, label=name).save(out, log_card(about))
    shown = "  ".join(f"{key} {value:.4g}" for key, value in metrics.items())
    print(f"{shown}\nwrote {out}: use it with --arbiter {out}")


def log_card(about: Json) -> str:
    """Return the README.md of an arbiter that was trained further on a log."""
    told = about["further_training"]
    return (
        f"# {about['name']}: an arbiter trained further on a log\n\nIt started from "
        f"{told['start']} and was trained with CoSpec on {told['num_decisions_used']} decisions of "
        f"{told['num_requests_used']} served requests. Measure it with `cospec eval`.\n"
    )
