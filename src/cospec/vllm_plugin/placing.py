"""Arbiters made ready for an engine's device and tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cospec.arbiters.learned import LearnedArbiter, are_other
from cospec.arbiters.observed import Observed
from cospec.errors import ConfigError
from cospec.features import HiddenFeatures, ScalarFeatures, token_kinds

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from transformers import PreTrainedTokenizerBase

    from cospec.types import Arbiter


def place(
    arbiter: Arbiter,
    device: torch.device,
    vocab_size: int,
    find_tokenizer: Callable[[], PreTrainedTokenizerBase | None],
) -> Arbiter:
    """An arbiter ready to rule in an engine, on its device and with the kinds of its tokens.

    Raises:
        ConfigError: The arbiter knows fewer tokens than the target, and there is no tokenizer.
    """
    if isinstance(arbiter, Observed):
        inner = place(arbiter.arbiter, device, vocab_size, find_tokenizer)
        return Observed(inner, place_features(arbiter.features, device))
    if not isinstance(arbiter, LearnedArbiter):
        return arbiter
    tokenizer = find_tokenizer()
    kinds = arbiter.features.kinds
    if tokenizer is not None:
        kinds = token_kinds(tokenizer, vocab_size)
    elif len(kinds) < vocab_size:
        raise ConfigError(
            f"arbiter {arbiter.name} knows {len(kinds)} tokens and the target has {vocab_size}; "
            "start the engine with its tokenizer."
        )
    if are_other(arbiter.features.kinds, kinds[:vocab_size], tokenizer):
        arbiter = replace(arbiter, prompt_guard=None)  # its profile counts another tokenizer's ids
    features = place_features(replace(arbiter.features, kinds=kinds), device)
    return replace(arbiter, policy=arbiter.policy.to(device), features=features)


def place_features(features: ScalarFeatures, device: torch.device) -> ScalarFeatures:
    """Features with their lookup tables on a device."""
    features = replace(features, kinds=features.kinds.to(device))
    if isinstance(features, HiddenFeatures) and features.embeddings is not None:
        features = replace(features, embeddings=features.embeddings.to(device))
    return features
