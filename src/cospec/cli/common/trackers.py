"""Trackers of training metrics, besides the run's own file: TensorBoard, Weights & Biases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from cospec.results import Json, write_text
from cospec.tasks.extras import import_extra

Tracker: TypeAlias = Callable[[Json], None]
"""Takes the metrics of a round."""


def open_trackers(folder: Path, settings: Json, wandb_project: str | None) -> list[Tracker]:
    """Open TensorBoard if it is installed, and W&B if a project is named.

    Raises:
        MissingExtraError: A project is named, and wandb is not installed.
    """
    trackers = [] if wandb_project is None else [_wandb(folder, settings, wandb_project)]
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return trackers

    def write(metrics: Json) -> None:
        with SummaryWriter(str(folder / "tensorboard")) as writer:
            for name, value in _numbers(metrics).items():
                writer.add_scalar(name, value, metrics["round"])

    return [*trackers, write]


def _wandb(folder: Path, settings: Json, project: str) -> Tracker:
    """Open a run of W&B; a resumed training logs to the same one."""
    wandb = import_extra("wandb", "wandb", "wandb")
    path = folder / "wandb_id"
    run = wandb.init(
        project=project,
        id=path.read_text(encoding="utf-8") if path.exists() else None,
        resume="allow",
        name=folder.name,
        config=settings,
        dir=str(folder),
    )
    write_text(path, run.id)
    return lambda metrics: run.log(_numbers(metrics), step=metrics["round"])


def _numbers(metrics: Json) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if isinstance(value, int | float)}
