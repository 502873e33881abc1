"""Generation with a draft and an arbiter, for ``model.generate(custom_generate=...)``."""

from cospec.custom_generate import generate

__all__ = ["generate"]
