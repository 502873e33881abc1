"""The record of a trained arbiter in its config: its pair, its task and its accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cospec.settings import flat

if TYPE_CHECKING:
    from cospec.results import Json

CARD = "README.md"
FILES = ("config.json", "model.safetensors", CARD, "trained_on.safetensors")
"""Files of an arbiter; the folder of a training run also holds its state and metrics."""


@dataclass(frozen=True, slots=True)
class Record:
    """The record of an arbiter in its config; "" or None for missing entries."""

    name: str
    pair: str
    """Name of a bundled pair, or both models."""
    task: str
    k: int | None
    """Drafted tokens per block in training."""
    tune_accuracy: float | None
    """Accuracy on the tune problems, by which the round was chosen."""
    tune_accuracy_target: float | None
    """Accuracy of the target alone on the same problems."""

    @classmethod
    def of(cls, config: Json) -> Record:
        """Read the record of a config.

        Args:
            config: Config, as in `LearnedArbiter.about`.
        """
        pair, training = config.get("pair", {}), flat(config.get("training", {}))
        best, history = config.get("best"), config.get("history")
        found = [best, *history] if isinstance(history, list) else [best]
        best, *rows = [row if isinstance(row, dict) else {} for row in found]
        tuned = best | next((row for row in rows if row.get("round") == best.get("round")), {})
        models = [str(model) for key in ("target", "draft") if (model := pair.get(key))]
        k = training.get("num_speculative_tokens")
        return cls(
            str(config.get("name", "")),
            str(pair.get("pair") or " with ".join(models)),
            str(training.get("task", "")),
            k if isinstance(k, int) else None,
            _number(tuned.get("tune_accuracy")),
            _number(tuned.get("tune_accuracy_target")),
        )


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
