"""Loading and checking a draft/target pair."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cospec.models.pair import ModelPair

__all__ = ["ModelPair"]


def __getattr__(name: str) -> object:
    """Import on first use: names of bundled pairs are looked up without loading torch."""
    if name != "ModelPair":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cospec.models.pair import ModelPair  # noqa: PLC0415  # brings torch

    return ModelPair
