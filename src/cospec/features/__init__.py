"""Input of a trained arbiter: a mismatch as a fixed list of numbers, by spec and version."""

from cospec.features.spec import (
    SCALAR_NAMES,
    FeatureSpec,
    HiddenFeatures,
    ScalarFeatures,
    make_features,
    saved_features,
    spec_hash,
)
from cospec.features.table import FLOOR
from cospec.features.tokens import KINDS, kind_of, token_kinds

__all__ = [
    "FLOOR",
    "KINDS",
    "SCALAR_NAMES",
    "FeatureSpec",
    "HiddenFeatures",
    "ScalarFeatures",
    "kind_of",
    "make_features",
    "saved_features",
    "spec_hash",
    "token_kinds",
]
