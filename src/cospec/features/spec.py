"""Feature specs: which features an arbiter sees, fitted to a pair, and how a checkpoint names them.

Features are raw; the learner normalizes them with means and spreads that it freezes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from operator import or_
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, get_args

import torch

from cospec.errors import ConfigError, unknown_name
from cospec.features.table import HIDDEN, SCALARS, Feature, MismatchView, States
from cospec.features.tokens import token_kinds

if TYPE_CHECKING:
    from torch import Tensor

    from cospec.models import ModelPair
    from cospec.types import MismatchBatch, Needs

FeatureSpec: TypeAlias = Literal["scalar", "hidden"]
"""Names of specs that `make_features` takes."""

SCALAR_NAMES = tuple(feature.name for feature in SCALARS[max(SCALARS)])
"""Names of the latest scalars, in order."""


@dataclass(frozen=True)
class ScalarFeatures:
    """The ``scalar`` spec.

    Attributes:
        kinds: Index into `KINDS` of each token, (V,) int64.
        version: Version of the spec.
    """

    kinds: Tensor
    version: int = field(default=max(SCALARS), kw_only=True)

    @property
    def scalars(self) -> tuple[Feature, ...]:
        """The scalars, in order."""
        return SCALARS[self.version]

    @property
    def states(self) -> tuple[States, ...]:
        """The states after the scalars."""
        return ()

    @cached_property
    def needs(self) -> Needs:
        """Union of the features' needs."""
        needs = [one.needs for one in self.scalars] + [one.needs for one in self.states]
        return reduce(or_, needs)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the F features, in order; those of states come last."""
        states = (f"{one.name}_{i}" for one in self.states for i in range(self.width(one)))
        return (*(one.name for one in self.scalars), *states)

    @property
    def is_of_draft(self) -> Tensor:
        """Mask of the features that are known before the target has read anything, (F,) bool."""
        scalars = [one.of_draft for one in self.scalars]
        return torch.tensor(
            scalars + [s.of_draft for s in self.states for _ in range(self.width(s))]
        )

    @property
    def is_of_judge(self) -> Tensor:
        """Mask of the features that AutoJudge looks at, (F,) bool; none of the scalars."""
        judged = [one.of_judge for one in self.states for _ in range(self.width(one))]
        return torch.tensor([False] * len(self.scalars) + judged)

    @property
    def num_hidden(self) -> int:
        """Number of features that are states."""
        return sum(map(self.width, self.states))

    def width(self, states: States) -> int:
        """Return the width of some states."""
        raise AssertionError(f"the scalar spec has no {states.name}")

    def on(self, pair: ModelPair) -> Self:
        """Return the same features with their lookup tables on the device of a pair."""
        return replace(self, kinds=self.kinds.to(pair.target.device))

    def __call__(self, batch: MismatchBatch) -> Tensor:
        """Compute the features of each mismatch, (M, F) float32, finite if the logits are."""
        view = MismatchView(batch, self.kinds)
        return torch.stack([one.value(view) for one in self.scalars], dim=1)

    def to_dict(self) -> dict[str, Any]:  # Any: a JSON object
        """Return the spec as a saved arbiter records it."""
        names = [one.name for one in self.scalars]
        head = {"spec": "scalar", "version": self.version}
        return head | {"hash": spec_hash(self.names), "names": names}


@dataclass(frozen=True)
class HiddenFeatures(ScalarFeatures):
    """The ``hidden`` spec: the scalars, last hidden states, embeddings of both tokens.

    The states are the target's before and after it read the drafted token, and the draft's; the
    embeddings are the target's. Version 1, which older checkpoints have, has no embeddings.

    Attributes:
        hidden_sizes: Widths of the target's and the draft's states.
        embeddings: The target's embeddings of all tokens, (V, E); (0, E) until fitted to a pair;
            None in version 1.
    """

    hidden_sizes: tuple[int, int]
    embeddings: Tensor | None = None
    version: int = field(default=max(HIDDEN), kw_only=True)

    def __post_init__(self) -> None:
        if self.embeddings is None and self.version > 1:
            object.__setattr__(self, "version", 1)

    @property
    def scalars(self) -> tuple[Feature, ...]:
        """The scalars, in order."""
        return SCALARS[HIDDEN[self.version][0]]

    @property
    def states(self) -> tuple[States, ...]:
        """The states after the scalars."""
        return HIDDEN[self.version][1]

    def width(self, states: States) -> int:
        """Return the width of some states."""
        if states.width == "embedding":
            assert self.embeddings is not None, "version 1 has no embeddings"
            return self.embeddings.shape[1]
        return self.hidden_sizes[states.width == "draft"]

    def on(self, pair: ModelPair) -> Self:
        """Return the same features with the embeddings of a pair, on its device."""
        embeddings = None if self.embeddings is None else _embeddings(pair)
        return replace(super().on(pair), embeddings=embeddings)

    def __call__(self, batch: MismatchBatch) -> Tensor:
        """Compute the features of each mismatch, (M, F) float32."""
        view = MismatchView(batch, self.kinds, self.embeddings)
        states = [one.value(view).float() for one in self.states]
        return torch.cat([super().__call__(batch), *states], dim=1)

    def to_dict(self) -> dict[str, Any]:  # Any: a JSON object
        """Return the spec as a saved arbiter records it: names of states follow from widths."""
        sizes: dict[str, Any] = {"hidden_sizes": list(self.hidden_sizes)}
        if self.embeddings is not None:
            sizes["embedding_size"] = self.embeddings.shape[1]
        return super().to_dict() | {"spec": "hidden"} | sizes


def make_features(spec: FeatureSpec, pair: ModelPair) -> ScalarFeatures:
    """Return the latest features of a spec, fitted to the vocabulary and the widths of a pair.

    Raises:
        ConfigError: There is no such spec.
    """
    if spec not in get_args(FeatureSpec):
        raise ConfigError(unknown_name("features", spec, get_args(FeatureSpec)))
    vocab_size = pair.target.config.get_text_config().vocab_size
    scalar = ScalarFeatures(token_kinds(pair.tokenizer, vocab_size))
    if spec == "scalar":
        return scalar
    heads = [model.get_output_embeddings() for model in (pair.target, pair.draft_model)]  # type: ignore[no-untyped-call]
    target, draft = (head.weight.shape[1] for head in heads)
    return HiddenFeatures(scalar.kinds, (target, draft), _embeddings(pair))


def saved_features(saved: dict[str, Any], kinds: Tensor) -> ScalarFeatures | None:  # Any: JSON
    """Return the features that a checkpoint names; None if this version has none with its hash.

    Args:
        saved: Result of `ScalarFeatures.to_dict`; older ones do not record their version.
        kinds: As in `ScalarFeatures`.
    """
    found: list[ScalarFeatures] = [ScalarFeatures(kinds, version=v) for v in sorted(SCALARS)]
    if sizes := saved.get("hidden_sizes"):
        width = saved.get("embedding_size")  # version 1 has none
        embeddings = None if width is None else torch.empty(0, width)
        versions = [1] if width is None else [v for v in sorted(HIDDEN) if v > 1]
        widths = sizes[0], sizes[1]
        found = [HiddenFeatures(kinds, widths, embeddings, version=v) for v in versions]
    fits = [one for one in found if spec_hash(one.names) == saved["hash"]]
    named = [one for one in fits if one.version == saved.get("version", one.version)]
    return named[0] if named else None


def _embeddings(pair: ModelPair) -> Tensor:
    """Return the target's embeddings of all tokens, (V, E)."""
    table = pair.target.get_input_embeddings().weight
    assert isinstance(table, torch.Tensor)
    return table.detach()


def spec_hash(names: tuple[str, ...]) -> str:
    """Return a short hash of a list of features, by which a checkpoint identifies its own."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
