"""CoSpec: collaborative speculative decoding.

A draft model proposes tokens, a target model verifies them, and where the two disagree an arbiter
rules whose token stands. Start with `cospec.types`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cospec.arbiters import load_arbiter
    from cospec.config import PairPrompt, SamplingConfig
    from cospec.engine import Engine
    from cospec.errors import CospecError
    from cospec.models import ModelPair
    from cospec.types import Arbiter, Completion, MismatchBatch, Needs, Ruling

__version__ = "0.3.0.dev0"

_HOMES = {
    "Arbiter": "cospec.types",
    "Completion": "cospec.types",
    "CospecError": "cospec.errors",
    "Engine": "cospec.engine",
    "MismatchBatch": "cospec.types",
    "ModelPair": "cospec.models",
    "Needs": "cospec.types",
    "PairPrompt": "cospec.config",
    "Ruling": "cospec.types",
    "SamplingConfig": "cospec.config",
    "load_arbiter": "cospec.arbiters",
}

__all__ = [
    "Arbiter",
    "Completion",
    "CospecError",
    "Engine",
    "MismatchBatch",
    "ModelPair",
    "Needs",
    "PairPrompt",
    "Ruling",
    "SamplingConfig",
    "__version__",
    "load_arbiter",
]


def __getattr__(name: str) -> object:
    """Import on first use: ``import cospec`` alone loads neither torch nor transformers."""
    if name not in _HOMES:
        raise AttributeError(f"module 'cospec' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
