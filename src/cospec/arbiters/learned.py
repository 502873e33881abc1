"""A trained arbiter: features, a policy, and the threshold it is used with."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cospec.arbiters.checkpoint import read_checkpoint, write_checkpoint
from cospec.arbiters.guard import PromptGuard, guarded
from cospec.config import DECIDING, DecodeConfig, SamplingConfig
from cospec.errors import ArbiterError, CheckpointError, unknown_name
from cospec.features import ScalarFeatures, make_features
from cospec.settings import flat
from cospec.types import MismatchBatch, Needs, Ruling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from cospec.arbiters.policy import Policy
    from cospec.models import ModelPair
    from cospec.results import Json
    from cospec.types import Arbiter

DEFAULT_POINT = "default"
_SAMPLING = (
    "temperature",
    "max_new_tokens",
    "top_k",
    "top_p",
    "min_p",
    "override_stop_tokens",
    "exact_prefix_tokens",
)
"""Settings of sampling for which an operating point is valid, besides `DECIDING`."""
_NEWER = ("adaptive_cost", "prompt_lookup_max", "prompt_lookup_min")
"""Fields of `DECIDING` that points of older versions do not record; newer ones always do."""


@dataclass(frozen=True)
class LearnedArbiter:
    """Keeps the draft's token where the policy's probability exceeds a threshold."""

    policy: Policy
    features: ScalarFeatures
    threshold: float = 0.5
    """Probability above which the draft's token is kept; 1 is lossless. It may not be negative, so
    that the guard's 0 never passes."""
    max_mismatch_rate: float = math.inf
    """Guard: mismatches per token above which nothing is kept."""
    prompt_guard: PromptGuard | None = None
    """Guard: it stands back from prompts unlike those of its training."""
    label: str = "cospec"
    """Its name in reports."""
    explore: float = 0.0
    """Share of rulings that are drawn by chance, with the policy's probability; the rest follow the
    threshold. In training it is 1."""
    about: dict[str, Any] = field(default_factory=dict)  # Any: a JSON object
    """The rest of ``config.json``: operating points, pair, training, results."""
    is_bound: bool = True
    """False if it rules by hidden states and was loaded without the pair that they come from."""
    notes: tuple[str, ...] = ()
    """Warnings for the user about the pair that it was loaded for."""
    folder: Path | None = None
    """Folder that it was loaded from."""
    chosen_for: dict[str, Any] | None = None  # Any: a JSON object
    """Settings that its operating point was chosen for (`decoding_of`); None if not recorded."""

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ArbiterError(
                f"threshold of {self.label} is {self.threshold}; it is a probability, from 0 to 1 "
                "(lossless)."
            )

    @property
    def name(self) -> str:
        """Label with the threshold, and with the guards that differ from the trained ones."""
        changed = "".join(f",{key}={value:.4g}" for key, value in self._changed_guards.items())
        return f"{self.label}:threshold={self.threshold:.4g}{changed}"

    @property
    def _changed_guards(self) -> dict[str, float]:
        """Limits of the guards that differ from the trained ones."""
        found, guard = {}, self.prompt_guard
        if self.max_mismatch_rate != _saved_rate(self.about):
            found["max_mismatch_rate"] = self.max_mismatch_rate
        saved = self.about.get("min_prompt_likeness")
        if guard is not None and saved is not None and guard.min_likeness != saved:
            found["min_prompt_likeness"] = guard.min_likeness
        return found

    @property
    def trained_k(self) -> int | None:
        """Drafted tokens per block in its training, if that is recorded."""
        found: int | None = self._trained.get("num_speculative_tokens")
        return found

    @property
    def _trained(self) -> dict[str, Any]:  # Any: a JSON object
        """Settings that it was trained with, as far as they are recorded."""
        return flat(self.about.get("training", {}).get("train", {}))

    def on(self, pair: ModelPair) -> LearnedArbiter:
        """Return the same with the lookup tables of the features on the device of a pair."""
        return replace(self, features=self.features.on(pair))

    def notes_for(
        self, config: DecodeConfig, sampling: SamplingConfig | None = None
    ) -> tuple[str, ...]:
        """Return warnings on its pair, its operating point, and blocks unlike those of training."""
        notes, threshold = self.notes, config.draft_confidence_threshold
        if self.trained_k not in (None, config.k):
            notes += (
                f"the arbiter {self.label} was trained at {self.trained_k} drafted tokens a block "
                f"and rules at {config.k}, where it sees more or less of what is ahead: train it "
                "at that number, or measure it there (cospec eval) before you trust it",
            )
        is_new = threshold != self._trained.get("draft_confidence_threshold", 0.0)
        is_new = is_new or any(
            getattr(config, name) != self._trained.get(name, False)
            for name in ("adaptive", "end_blocks_at_stop")
        )
        if is_new:
            notes += (
                f"the arbiter {self.label} was trained on whole blocks, or on blocks that end "
                "elsewhere, and here it sees less or more of what is ahead: "
                "measure it so (cospec eval) before you trust it",
            )
        limit = self._trained.get("max_corrections")
        if self._trained and config.max_corrections != limit:
            notes += (
                f"the arbiter {self.label} was trained with max_corrections {limit} and rules with "
                f"{config.max_corrections}, so it is asked at other mismatches: pass the former, "
                "or measure it so (cospec eval) before you trust it",
            )
        ours, theirs = decoding_of(config, sampling), self.chosen_for
        names = DECIDING if sampling is None else DECIDING + _SAMPLING
        unlike: list[str] = []
        if theirs is not None:
            told = [n for n in names if n in theirs or n not in _NEWER]
            unlike = [n for n in told if ours.get(n) != theirs.get(n)]
            unlike += self._changed_guards
        if unlike and self.threshold < 1:  # 1 is lossless with any settings
            notes += (
                f"the operating point of {self.label} was chosen for another {', '.join(unlike)}: "
                "what was measured or certified of it does not hold here; calibrate it for these "
                "settings (cospec calibrate), or go back to those",
            )
        return notes

    @property
    def needs(self) -> Needs:
        """Needs of its features, and uniform numbers if it explores."""
        return self.features.needs | (Needs.UNIFORMS if self.explore else Needs.NOTHING)

    def keep_probability(self, score: Tensor) -> Tensor:
        """Return the probability that it keeps the draft's token, by its score; both (M,)."""
        return self.explore * score + (1 - self.explore) * (score > self.threshold)

    def is_foreign(self, prompt_ids: Sequence[int]) -> bool:
        """Return whether a prompt is unlike those of its training, so that it stands back."""
        return self.prompt_guard is not None and self.prompt_guard.is_foreign(prompt_ids)

    def rule(self, batch: MismatchBatch) -> Ruling:
        """Rule by one forward of the policy for all mismatches; the score is the probability.

        Where the draft disagrees with the target much more often than in training, the policy may
        be confident about texts that it knows nothing about, and no feature would show it. There
        the probability is 0.

        Raises:
            ArbiterError: It rules by hidden states and was loaded without a pair, so it was not
                checked which pair's states it would see.
        """
        if not self.is_bound:
            raise ArbiterError(
                f"arbiter {self.label} rules by the hidden states of the pair that it was trained "
                "on, and was loaded without a pair to compare with that; pass it: "
                "load_arbiter(spec, pair)."
            )
        x = self.features(batch)  # (M, F)
        with torch.no_grad():
            logits = self.policy(x.to(self.policy.mean.device)).to(x.device)  # devices can differ
        # Keep non-finite logits visible: the sigmoid of infinity would be a sound-looking 1.
        probability = torch.where(logits.isfinite(), torch.sigmoid(logits), torch.nan)
        probability = guarded(probability, batch, self.max_mismatch_rate)
        if self.explore:
            assert batch.uniforms is not None
            return Ruling(batch.uniforms < self.keep_probability(probability), probability, x)
        return Ruling(probability > self.threshold, probability, x)

    def save(self, folder: Path | str, card: str = "") -> None:
        """Write the checkpoint; weights first, so that a folder with a config is whole.

        Args:
            folder: Folder to write, made if it does not exist. Another arbiter in it is replaced:
                its card and its list of training problems are removed.
            card: Text of its README.md.
        """
        rate, points = self.max_mismatch_rate, dict(self.about.get("operating_points", {}))
        if points.get(DEFAULT_POINT, {}).get("threshold") != self.threshold:
            points[DEFAULT_POINT] = {"threshold": self.threshold}
        config = {
            "features": self.features.to_dict(),
            "policy": asdict(self.policy.config),
            "operating_points": points,
            "max_mismatch_rate": rate if math.isfinite(rate) else None,  # JSON has no infinity
        }
        tensors, guard = {"kinds": self.features.kinds.to(torch.uint8)}, self.prompt_guard
        known = config.keys() | {"min_prompt_likeness"}
        if guard is not None:
            tensors["prompt_profile"] = guard.profile
            config["min_prompt_likeness"] = guard.min_likeness
        config |= {k: v for k, v in self.about.items() if k not in known}
        where = Path(os.path.expanduser(folder))
        write_checkpoint(where, self.policy, tensors, config, card)

    @classmethod
    def load(
        cls,
        folder: Path | str,
        pair: ModelPair | None = None,
        *,
        threshold: float | None = None,
        max_mismatch_rate: float | None = None,
        min_prompt_likeness: float | None = None,
        point: str = DEFAULT_POINT,
    ) -> LearnedArbiter:
        """Read a checkpoint.

        Args:
            folder: Folder that `save` wrote.
            pair: Pair that it will rule on. If it was trained on another pair, a note says so, and
                token kinds come from this pair's tokenizer; with hidden states it is refused.
                Without a pair, an arbiter with hidden states can be inspected, but refuses to rule.
            threshold: Threshold in place of the saved operating point's.
            max_mismatch_rate: Rate in place of the saved one; infinity switches this guard off.
            min_prompt_likeness: Likeness in place of the saved one; 0 switches this guard off.
            point: Name of an operating point.

        Raises:
            CheckpointError: The folder is no such checkpoint, or is damaged.
            ArbiterError: It was made with other features, has no such operating point, or was
                trained on the hidden states of another pair.
        """
        folder = Path(os.path.expanduser(folder))
        config, features, policy, profile = read_checkpoint(folder)
        chosen_for: Json | None = None
        if threshold is None or point != DEFAULT_POINT:
            saved, found = _point(folder, config["operating_points"], point)
            if threshold is None:
                threshold, chosen_for = saved, found
        notes: tuple[str, ...] = ()
        if pair is not None:
            kinds = features.kinds
            features, notes = _fit(folder, features, config.get("pair", {}), pair)
            if profile is not None and are_other(kinds, features.kinds, pair.tokenizer):
                profile = None
                notes += (f"the prompt guard of {folder.name} is off: this pair has other tokens",)
            policy.to(pair.target.device)
        least: float | None = config.get("min_prompt_likeness")
        if min_prompt_likeness is not None:
            _check_likeness(folder, min_prompt_likeness, is_known=profile is not None)
            least = min_prompt_likeness
        rate = _saved_rate(config) if max_mismatch_rate is None else max_mismatch_rate
        return cls(
            policy,
            features,
            threshold,
            rate,
            None if profile is None or least is None else PromptGuard(profile, least),
            str(config.get("name", folder.name)),
            about=config,
            is_bound=pair is not None or not features.num_hidden,
            notes=notes,
            folder=folder,
            chosen_for=chosen_for,
        )

    def with_threshold(self, threshold: float) -> LearnedArbiter:
        """Return the same arbiter with another threshold."""
        return replace(self, threshold=threshold, chosen_for=None)


def are_other(trained: Tensor, ours: Tensor, tokenizer: object) -> bool:
    """Return whether kinds of tokens come from another tokenizer; rows of padding do not count."""
    if tokenizer is None:
        return len(trained) != len(ours)
    size = min(len(trained), len(ours))
    return not torch.equal(trained[:size].cpu(), ours[:size].cpu())


def _point(folder: Path, points: Json, name: str) -> tuple[float, Json | None]:
    """Return the threshold of an operating point, and the settings it was chosen for, if known."""
    if name not in points:
        raise ArbiterError(unknown_name(f"operating point of {folder}", name, points))
    chosen_for = points[name].get("decoding")
    return float(points[name]["threshold"]), chosen_for if isinstance(chosen_for, dict) else None


def _check_likeness(folder: Path, value: float, *, is_known: bool) -> None:
    if not 0 <= value <= 1:
        raise ArbiterError(
            f"min_prompt_likeness is {value:g}; it must be from 0 (off) to 1 (nothing passes)."
        )
    if value and not is_known:
        raise ArbiterError(
            f"min_prompt_likeness is {value:g}, and {folder} does not know the prompts of its "
            "training, or not in the tokens of this pair; leave it out."
        )


def _fit(
    folder: Path, features: ScalarFeatures, trained_on: Json, pair: ModelPair
) -> tuple[ScalarFeatures, tuple[str, ...]]:
    """Return the features of a checkpoint on a pair, and notes if it was trained on another."""
    trained, ours = str(trained_on.get("fingerprint")), pair.fingerprint
    is_requantized = trained != ours and trained.partition("-")[0] == ours.partition("-")[0]
    if trained == ours or (is_requantized and not features.num_hidden):
        vocab_size = pair.target.config.get_text_config().vocab_size
        if len(features.kinds) != vocab_size:
            raise CheckpointError(
                f"{folder} has kinds of {len(features.kinds)} tokens, and its pair has "
                f"{vocab_size}; restore the folder, or train the arbiter again."
            )
        note = (
            f"the arbiter {folder.name} was trained with draft_quantization "
            f"{trained.partition('-')[2] or 'none'}, and here it is "
            f"{ours.partition('-')[2] or 'none'}: the draft proposes other tokens, with other "
            "probabilities"
        )
        return features.on(pair), (note,) if is_requantized else ()
    if features.num_hidden:
        raise ArbiterError(
            f"{folder} rules by the hidden states of the pair that it was trained on, "
            f"{trained_on or 'not recorded'}; this pair has fingerprint {pair.fingerprint!r}. Load "
            "the same models in the same dtype and quantization, or train an arbiter for these."
        )
    fitted = make_features("scalar", pair)
    fitted = replace(fitted, version=features.version).on(pair)
    return fitted, (f"the arbiter {folder.name} was not trained on this pair",)


def _saved_rate(config: dict[str, Any]) -> float:  # Any: a JSON object
    rate: float | None = config.get("max_mismatch_rate")
    return math.inf if rate is None else rate


def decoding_of(config: DecodeConfig, sampling: SamplingConfig | None = None) -> Json:
    """Return the settings for which an operating point is valid, without most of the defaults."""
    plain = DecodeConfig()
    found = {name: getattr(config, name) for name in DECIDING}
    found = {n: value for n, value in found.items() if n in _NEWER or value != getattr(plain, n)}
    if sampling is None:
        return found
    for name in _SAMPLING:
        value = getattr(sampling, name)
        if name in ("temperature", "max_new_tokens") or value != getattr(SamplingConfig(), name):
            found[name] = value
    return found


def notes_on(
    arbiter: Arbiter, config: DecodeConfig, sampling: SamplingConfig | None = None
) -> tuple[str, ...]:
    """Return an arbiter's warnings for these settings of decoding and sampling."""
    return arbiter.notes_for(config, sampling) if isinstance(arbiter, LearnedArbiter) else ()
