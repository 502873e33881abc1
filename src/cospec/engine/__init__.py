"""The decode engine: propose, verify, arbitrate, walk."""

from cospec.engine.branches import Branch, Rollout
from cospec.engine.engine import Engine

__all__ = ["Branch", "Engine", "Rollout"]
