"""The decode engine: propose, verify, arbitrate, walk."""

from cospec.engine.engine import Branch, Engine, Rollout

__all__ = ["Branch", "Engine", "Rollout"]
