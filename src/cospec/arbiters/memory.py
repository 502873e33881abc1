"""Calibrated speculative decoding: a memory of the mismatches that recur, and a gate.

CSD (2604.13634, ACL 2026; no code is released). Its text was not available: the formula comes from
several summaries, tau from two of them and lambda from one. What they leave open is decided here
(see `CSD`).
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from safetensors import SafetensorError, safe_open

from cospec.arbiters.rules import Limits, Rule, gathered
from cospec.errors import ArbiterError
from cospec.results import write_tensors
from cospec.types import MismatchBatch, Needs, Ruling

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from cospec.models import ModelPair
    from cospec.types import Completion

TUNE = "tune"
"""Value in place of a file: the caller counts mismatches and calls `CSD.remembering`."""
_COLUMNS = ("draft_id", "target_id")
"""Tensors of a file of mismatches; a data set of ``cospec audit`` has them among others."""
_WEIGHT = "weight"
"""Tensor of a data set: the number of mismatches that each row stands for. Without it each counts
once."""
_FINGERPRINT = "fingerprint"
"""Metadata of a file: the pair whose mismatches it holds. Older memories do not say."""
_DECIMALS = 3
"""Decimals that sums of weights are rounded to: thirds in float32 do not add up to whole
numbers."""
_BASE = 2**31
"""Larger than any token id, so that a pair of ids fits in one int64."""


@dataclass(frozen=True)
class CSD(Rule):
    """Calibrated speculative decoding: the pair (x, t) recurs, and p(x) > ratio * p(t).

    ``t`` is the target's best token. A pair recurs if calibration saw it at more than `frequency`
    mismatches (the paper's lambda, 6); the gate's ratio is its tau, 0.01, which it writes as a
    difference of logits. Both conditions are needed there as well: either alone loses answers.

    The paper goes on counting while it decodes. Here the memory stays as calibration left it: with
    growing counts, a text would depend on those before it and beside it in its batch. Calibration
    there reads 2,000 to 8,000 prompts; fewer prompts need a smaller `frequency`. If an audit played
    only some mismatches of a problem, each counts for all that it stands for. Assumed, since the
    summaries do not tell: mismatches are counted on the target's own path, and a bound that is met
    exactly does not suffice. The paper decodes greedily; here it rules at sampled mismatches too.
    Lossless with ``ratio=1``.
    """

    kind = "csd"
    needs = Needs.TARGET_LOGITS
    limits: ClassVar[Limits] = {"frequency": (0, math.inf), "ratio": (0, 1)}

    frequency: int = 6
    """A pair recurs if it was counted more often than this."""
    ratio: float = 0.01
    """Least probability relative to that of the target's best token."""
    memory: str = TUNE
    """File of the mismatches to count, from the same pair of models: ``cospec audit --dataset`` or
    `write_memory` makes one. With ``tune``, ``cospec bench`` counts those of its tune problems."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.memory != TUNE:
            self.pairs  # noqa: B018  # a bad file is an error now, not at the first mismatch

    def check_pair(self, pair: ModelPair) -> None:
        """Refuse a file of another pair; the draft's quantization does not matter.

        Args:
            pair: Pair that the rule will rule on.

        Raises:
            ArbiterError: The file names another pair. One that names none passes.
        """
        if self.memory == TUNE:
            return
        counted_on = self._about.get(_FINGERPRINT)
        if counted_on is None or _models(counted_on) == _models(pair.fingerprint):
            return
        raise ArbiterError(
            f"memory of arbiter csd is {self.memory!r}, whose mismatches are of another pair, or "
            f"of this one in another dtype (its fingerprint is {counted_on!r}, and this one's "
            f"{pair.fingerprint!r}); count those of this pair (docs/arbiters.md tells how)."
        )

    @property
    def counted_on(self) -> dict[str, list[str]] | None:
        """Hashes of the questions whose mismatches the memory holds; None if it does not say."""
        found = None if self.memory == TUNE else self._about.get("trained_on")
        hashes: dict[str, list[str]] | None = None if found is None else json.loads(found)
        return hashes

    @property
    def _about(self) -> dict[str, str]:
        """Metadata of the file."""
        with safe_open(Path(os.path.expanduser(self.memory)), "pt") as file:
            return file.metadata() or {}

    def remembering(self, pairs: Tensor) -> CSD:
        """The same rule with these mismatches in place of those in a file.

        Args:
            pairs: From `mismatch_pairs`.
        """
        rule = replace(self)
        rule.__dict__["_counted"] = pairs, torch.ones(len(pairs))  # fills the cached property
        return rule

    @property
    def pairs(self) -> Tensor:
        """The mismatches of the memory, as `mismatch_pairs` gives them.

        Raises:
            ArbiterError: There is no memory.
        """
        return self._counted[0]

    @property
    def weights(self) -> Tensor:
        """Return how often each of `pairs` counts, (N,) float.

        Raises:
            ArbiterError: There is no memory.
        """
        return self._counted[1]

    @cached_property
    def _counted(self) -> tuple[Tensor, Tensor]:
        """The mismatches of the memory, and how often each counts, as `read_memory` gives them."""
        if self.memory == TUNE:
            raise ArbiterError(
                "memory of arbiter csd is 'tune', which only cospec bench fills, from its tune "
                "problems; give a file, csd:memory=FILE (docs/arbiters.md tells how to make one)."
            )
        return read_memory(Path(os.path.expanduser(self.memory)))

    @cached_property
    def _recurring(self) -> Tensor:
        """Pairs that recur, each as one number, (N,) int64."""
        pairs, weights = self._counted
        # On the CPU: others have no float64, or add in an order that changes.
        found: tuple[Tensor, Tensor] = torch.unique(_keys(pairs.cpu()), return_inverse=True)
        keys, index = found
        counts = torch.zeros(len(keys), dtype=torch.float64, device=keys.device)
        counts.scatter_add_(0, index, weights.to(counts))
        return keys[counts.round(decimals=_DECIMALS) > self.frequency]

    def rule(self, batch: MismatchBatch) -> Ruling:
        """Rule by memory and gate; the score is the probability above the gate."""
        p = batch.log_p.exp()
        score = gathered(p, batch.draft_ids) - self.ratio * p.amax(dim=1)
        keys = _keys(torch.stack((batch.draft_ids, batch.log_p.argmax(dim=1)), dim=1))
        recurs = torch.isin(keys, self._recurring.to(keys.device))
        return Ruling(recurs & (score > 0), score)


def mismatch_pairs(completions: Iterable[Completion]) -> Tensor:
    """The draft's and the target's token of every mismatch that was reached, (N, 2) int64.

    Args:
        completions: Greedy completions of the lossless arbiter, with traces: where a target
            samples, its token need not be its best one, which `CSD` looks up.
    """
    pairs = [
        (mismatch.draft_id, mismatch.target_id)
        for completion in completions
        for mismatch in completion.reached
    ]
    return torch.tensor(pairs, dtype=torch.int64).view(-1, 2)


def write_memory(path: Path, pairs: Tensor, fingerprint: str | None = None) -> None:
    """Write mismatches to a file that `CSD` takes.

    Args:
        path: A safetensors file.
        pairs: From `mismatch_pairs`.
        fingerprint: `ModelPair.fingerprint` of the pair, so that no other pair loads the file.
    """
    about = None if fingerprint is None else {_FINGERPRINT: fingerprint}
    write_tensors(path, {name: pairs[:, i].contiguous() for i, name in enumerate(_COLUMNS)}, about)


def read_memory(path: Path) -> tuple[Tensor, Tensor]:
    """The mismatches of a file, as `mismatch_pairs` gives them, and how often each counts.

    Returns:
        (N, 2) int64, and (N,) float: 1 each, except in audits that played only some branches.

    Raises:
        ArbiterError: There is no such file, or it holds no mismatches of greedy decoding.
    """
    hint = "it must be a file that cospec audit --dataset FILE or write_memory wrote."
    if not path.is_file():
        raise ArbiterError(f"memory of arbiter csd is {str(path)!r}, which is no file; {hint}")
    try:
        with safe_open(path, "pt") as file:
            columns = [file.get_tensor(name) for name in _COLUMNS]
            about = file.metadata() or {}
            has_weights = _WEIGHT in file.keys()  # noqa: SIM118
            weights = file.get_tensor(_WEIGHT) if has_weights else torch.ones(columns[0].shape)
    except (OSError, SafetensorError) as error:
        raise ArbiterError(f"memory of arbiter csd is {str(path)!r}: {error}; {hint}") from error
    if float(about.get("temperature", 0)) > 0:
        raise ArbiterError(
            f"memory of arbiter csd is {str(path)!r}, an audit at temperature "
            f"{about['temperature']}, whose target tokens are draws; count mismatches of greedy "
            "decoding (cospec audit --temperature 0)."
        )
    first, second = columns
    is_int = first.dtype == second.dtype == torch.int64
    if not is_int or first.dim() != 1 or first.shape != second.shape:
        shown = ", ".join(f"{c.dtype} {tuple(c.shape)}" for c in columns)
        raise ArbiterError(
            f"memory of arbiter csd is {str(path)!r}, whose ids are {shown} rather than two lists "
            f"of whole numbers of one length; {hint}"
        )
    if weights.shape != first.shape or not (weights.isfinite() & (weights > 0)).all():
        raise ArbiterError(
            f"memory of arbiter csd is {str(path)!r}, whose weights are {weights.dtype} "
            f"{tuple(weights.shape)} rather than a positive number for each of its "
            f"{len(first)} mismatches; {hint}"
        )
    return torch.stack(columns, dim=1), weights


def _models(fingerprint: str) -> str:
    """The part of a fingerprint without the draft's quantization."""
    return fingerprint.partition("-")[0]


def _keys(pairs: Tensor) -> Tensor:
    """One number for each pair of ids, (N, 2) to (N,)."""
    return pairs[:, 0] * _BASE + pairs[:, 1]
