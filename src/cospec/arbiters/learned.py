"""A trained arbiter: features, a policy, and the threshold it is used with.

A checkpoint is a folder: ``config.json`` (feature spec with its hash, policy, operating points, the
pair and data it was trained on, measured results), ``model.safetensors`` and a model card.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cospec.arbiters.policy import Policy, PolicyConfig
from cospec.errors import ArbiterError, CheckpointError, unknown_name
from cospec.features import HiddenFeatures, ScalarFeatures, make_features
from cospec.results import write_text
from cospec.types import MismatchBatch, Needs, Ruling

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from cospec.config import DecodeConfig
    from cospec.models import ModelPair
    from cospec.types import Arbiter

FORMAT = 1
DEFAULT_POINT = "default"
_HEAD_START = 5.0  # tokens, so that a mismatch at the start of a text is nothing unusual


@dataclass(frozen=True)
class LearnedArbiter:
    """Keeps the draft's token where the policy's probability exceeds a threshold."""

    policy: Policy
    features: ScalarFeatures
    threshold: float = 0.5
    """In probability; 1 and more is lossless."""
    max_mismatch_rate: float = math.inf
    """It keeps nothing where a text has more mismatches for its length (`mismatch_rate`)."""
    label: str = "cospec"
    """Its name in reports."""
    is_stochastic: bool = False
    """Rule by chance with the policy's probability, as in training, in place of the threshold."""
    about: dict[str, Any] = field(default_factory=dict)  # Any: a JSON object
    """The rest of ``config.json``: operating points, pair, training, results."""
    is_bound: bool = True
    """False if it rules by hidden states and was loaded without the pair that they are of."""
    notes: tuple[str, ...] = ()
    """What a user should know about it on the pair it was loaded for."""
    folder: Path | None = None
    """Where it was loaded from."""

    @property
    def name(self) -> str:
        """The label with the threshold, and with the guard if it is not the trained one."""
        name = f"{self.label}:threshold={self.threshold:.4g}"
        if self.max_mismatch_rate == _saved_rate(self.about):
            return name
        return f"{name},max_mismatch_rate={self.max_mismatch_rate:.4g}"

    @property
    def trained_k(self) -> int | None:
        """Drafted tokens a block that it was trained with, where that is recorded."""
        found: int | None = self._trained.get("num_speculative_tokens")
        return found

    @property
    def _trained(self) -> dict[str, Any]:  # Any: a JSON object
        """Settings that it was trained with, as far as they are recorded."""
        found: dict[str, Any] = self.about.get("training", {}).get("train", {})
        return found

    def notes_for(self, config: DecodeConfig) -> tuple[str, ...]:
        """What a user should know about it on its pair, and on blocks unlike those of training."""
        notes, threshold = self.notes, config.draft_confidence_threshold
        if self.trained_k not in (None, config.k):
            notes += (
                f"the arbiter {self.label} was trained at {self.trained_k} drafted tokens a block "
                f"and rules at {config.k}, where it sees more or less of what is ahead: train it "
                "at that number, or measure it there (cospec eval) before you trust it",
            )
        if threshold and threshold != self._trained.get("draft_confidence_threshold", 0.0):
            notes += (
                f"the arbiter {self.label} was trained on whole blocks, or on blocks that end at "
                "another confidence of the draft, and here it sees less or more of what is ahead: "
                "measure it so (cospec eval) before you trust it",
            )
        return notes

    @property
    def needs(self) -> Needs:
        """What its features need, and chance if it is stochastic."""
        return self.features.needs | (Needs.UNIFORMS if self.is_stochastic else Needs.NOTHING)

    def rule(self, batch: MismatchBatch) -> Ruling:
        """One forward of the policy for all mismatches; the score is the probability.

        Where the draft disagrees with the target much more often than in training, it may be sure
        of what it knows nothing of, and nothing it says of itself would show it: there the
        probability is 0.

        Raises:
            ArbiterError: It rules by hidden states and was loaded without a pair, so that nobody
                has checked whose states it would see.
        """
        if not self.is_bound:
            raise ArbiterError(
                f"arbiter {self.label} rules by the hidden states of the pair that it was trained "
                "on, and was loaded without a pair to compare with that; pass it: "
                "load_arbiter(spec, pair)."
            )
        x = self.features(batch)  # (M, F)
        with torch.no_grad():
            logits = self.policy(x.to(self.policy.mean.device)).to(x.device)  # apart in training
        # Not finite stays so: the sigmoid of infinity would be a sound-looking 1.
        probability = torch.where(logits.isfinite(), torch.sigmoid(logits), torch.nan)
        rate = mismatch_rate(batch.num_mismatches, batch.positions)
        probability = probability.masked_fill(rate > self.max_mismatch_rate, 0.0)
        if self.is_stochastic:
            assert batch.uniforms is not None
            return Ruling(batch.uniforms < probability, probability, x)
        return Ruling(probability > self.threshold, probability, x)

    def save(self, folder: Path, card: str = "") -> None:
        """Write the checkpoint; weights first, so that a folder with a config is whole.

        Args:
            folder: Made if it does not exist.
            card: Text of its README.md.
        """
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"policy.{k}": v.contiguous() for k, v in self.policy.state_dict().items()}
        tensors["kinds"] = self.features.kinds.to(torch.uint8)
        part = folder / "model.safetensors.part"
        save_file(tensors, part)
        part.replace(folder / "model.safetensors")
        points, rate = {DEFAULT_POINT: {"threshold": self.threshold}}, self.max_mismatch_rate
        config = {
            "cospec_arbiter": FORMAT,
            "features": self.features.to_dict(),
            "policy": self.policy.config.to_dict(),
            "operating_points": self.about.get("operating_points", {}) | points,
            "max_mismatch_rate": rate if math.isfinite(rate) else None,  # JSON has no infinity
        }
        config |= {k: v for k, v in self.about.items() if k not in config}
        if card:
            write_text(folder / "README.md", card)
        write_text(folder / "config.json", json.dumps(config, indent=1) + "\n")

    @classmethod
    def load(
        cls,
        folder: Path,
        pair: ModelPair | None = None,
        *,
        threshold: float | None = None,
        max_mismatch_rate: float | None = None,
        point: str = DEFAULT_POINT,
    ) -> LearnedArbiter:
        """Read a checkpoint.

        Args:
            folder: Of `save`.
            pair: What it will rule on. If it was not trained on it, that is noted, and token kinds
                are looked up in its tokenizer; with hidden states it is refused. Without a pair, an
                arbiter with hidden states can be looked at, and refuses to rule.
            threshold: In place of the saved operating point.
            max_mismatch_rate: In place of the saved one; infinity switches the guard off.
            point: Name of an operating point.

        Raises:
            CheckpointError: The folder is no such checkpoint, or is damaged.
            ArbiterError: It was made with other features, has no such operating point, or was
                trained on the hidden states of another pair.
        """
        config, tensors = _read(folder)
        features = _saved_features(folder, config["features"], tensors.pop("kinds").long())
        points = config["operating_points"]
        if threshold is None:
            if point not in points:
                raise ArbiterError(unknown_name(f"operating point of {folder}", point, points))
            threshold = float(points[point]["threshold"])
        notes: tuple[str, ...] = ()
        trained_on = config.get("pair", {})
        if pair is not None and trained_on.get("fingerprint") != pair.fingerprint:
            if features.num_hidden:
                raise ArbiterError(
                    f"{folder} rules by the hidden states of the pair that it was trained on, "
                    f"{trained_on or 'not recorded'}; this pair has fingerprint "
                    f"{pair.fingerprint!r}. Load the same models in the same dtype, or train an "
                    "arbiter for these."
                )
            notes = (f"the arbiter {folder.name} was not trained on this pair",)
            features = make_features("scalar", pair)
        shape = PolicyConfig(**config["policy"])
        policy = Policy(len(features.names), shape, num_hidden=features.num_hidden)
        try:
            policy.load_state_dict({k.removeprefix("policy."): v for k, v in tensors.items()})
        except RuntimeError as error:
            raise CheckpointError(f"{folder}: the weights do not fit the config: {error}") from None
        if pair is not None:
            policy.to(pair.target.device)
            features = features.on(pair)
        label = str(config.get("name", folder.name))
        rate = _saved_rate(config) if max_mismatch_rate is None else max_mismatch_rate
        it = cls(policy.eval(), features, threshold, rate, label, about=config, notes=notes)
        it = replace(it, folder=folder)
        return replace(it, is_bound=pair is not None or not features.num_hidden)

    def with_threshold(self, threshold: float) -> LearnedArbiter:
        """The same arbiter, used more or less boldly."""
        return replace(self, threshold=threshold)


def mismatch_rate(num_mismatches: Tensor, positions: Tensor) -> Tensor:
    """Mismatches a token in a text up to each of its mismatches, (M,) float32.

    Args:
        num_mismatches: Before each, (M,).
        positions: Of each in the text, (M,).
    """
    return (num_mismatches + 1) / (positions + _HEAD_START)


def _saved_rate(config: dict[str, Any]) -> float:  # Any: a JSON object
    rate: float | None = config.get("max_mismatch_rate")
    return math.inf if rate is None else rate


def notes_on(arbiter: Arbiter, config: DecodeConfig) -> tuple[str, ...]:
    """What a user should know about an arbiter that rules on such blocks."""
    return arbiter.notes_for(config) if isinstance(arbiter, LearnedArbiter) else ()


def _saved_features(
    folder: Path,
    saved: dict[str, Any],  # Any: a JSON object
    kinds: torch.Tensor,
) -> ScalarFeatures:
    """The features of a checkpoint, if this version makes the same ones."""
    features = ScalarFeatures(kinds)
    if sizes := saved.get("hidden_sizes"):
        width = saved.get("embedding_size")  # version 1 has none
        embeddings = None if width is None else torch.empty(0, width)
        features = HiddenFeatures(kinds, (sizes[0], sizes[1]), embeddings)
    ours = features.to_dict()
    if saved["hash"] != ours["hash"]:
        raise ArbiterError(
            f"{folder} was trained on other features (spec {saved.get('spec')!r}, hash "
            f"{saved['hash']}; this version has {ours['spec']}, {ours['hash']}); train it again, "
            "or install the version that made it."
        )
    return features


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:  # Any: a JSON object
    """Config and tensors of a checkpoint."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        tensors = load_file(folder / "model.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} is no trained arbiter: {error}; pass a folder that cospec train wrote."
        ) from None
    if not isinstance(config, dict) or config.get("cospec_arbiter") != FORMAT:
        raise CheckpointError(
            f"{path} is not of a trained arbiter (cospec_arbiter is not {FORMAT}); pass a folder "
            "that cospec train wrote."
        )
    if missing := _missing(config, tensors):
        raise CheckpointError(
            f"{path} is damaged: {missing} is missing or of another kind; restore the folder, or "
            "train the arbiter again."
        )
    return config, tensors


def _missing(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> str | None:  # Any: JSON
    """What a whole checkpoint has and this one has not, by name."""
    for key in ("features", "policy", "operating_points"):
        if not isinstance(config.get(key), dict):
            return key
    sizes = config["features"].get("hidden_sizes", [0, 0])  # scalar has none
    is_sound = isinstance(sizes, list) and [type(size) for size in sizes] == [int, int]
    width = config["features"].get("embedding_size", 0)
    if "hash" not in config["features"] or not is_sound or type(width) is not int or width < 0:
        return "features.hash, features.hidden_sizes or features.embedding_size"
    if unknown := set(config["policy"]) - {f.name for f in fields(PolicyConfig)}:
        return f"policy (unknown: {', '.join(sorted(unknown))})"
    numbers = {
        f"operating_points.{name}.threshold": isinstance(point, dict) and point.get("threshold")
        for name, point in config["operating_points"].items()
    }
    numbers["max_mismatch_rate"] = _saved_rate(config)
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int | float):
            return name
    if not isinstance(config.get("pair", {}), dict):
        return "pair"
    return None if "kinds" in tensors else "kinds (of model.safetensors)"
