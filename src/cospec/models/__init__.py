"""Loading and checking a draft/target pair."""

from cospec.models.pair import ModelPair

__all__ = ["ModelPair"]
