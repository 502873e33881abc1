"""Options that several commands share; their docstrings are the help texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from cospec.errors import ConfigError

if TYPE_CHECKING:
    from cospec.models import ModelPair


@dataclass(frozen=True)
class PairOptions:
    """Which models."""

    target: str | None = None
    """Hub id, folder or .gguf file of the target."""
    draft: str | None = None
    """Hub id, folder or .gguf file of the draft."""
    dtype: str = "auto"
    """Of the weights: auto (as in the checkpoint), float32, bfloat16 or float16."""
    device: str = "auto"
    """Where the models run: auto, cpu, cuda, cuda:1, ..."""
    allow_pickle: bool = False
    """Load pickled checkpoints, which can run any code they hold."""

    def load(self) -> ModelPair:
        """Load the pair.

        Raises:
            ConfigError: A model is not named.
        """
        from cospec.models import ModelPair

        if self.target is None or self.draft is None:
            missing = "--target" if self.target is None else "--draft"
            raise ConfigError(f"{missing} is missing; name both models: --target T --draft D.")
        return ModelPair.from_pretrained(
            self.target,
            self.draft,
            dtype=self.dtype,
            device=self.device,
            allow_pickle=self.allow_pickle,
        )


@dataclass(frozen=True)
class DecodeOptions:
    """How to decode."""

    arbiter: str = "lossless"
    """Who rules at mismatches: lossless, or a rule such as gap:max_gap=1 or fly."""
    num_speculative_tokens: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 4
    """Drafted tokens a block."""
    batch_size: int = 8
    """Most prompts decoded together."""


@dataclass(frozen=True)
class OutputOptions:
    """Where results go."""

    json: Path | None = None
    """Write one result document: configuration, provenance, totals and rows."""
    overwrite: bool = False
    """Replace result files that exist."""
