"""The decode engine: propose, verify, arbitrate, walk."""

from cospec.engine.engine import Engine

__all__ = ["Engine"]
