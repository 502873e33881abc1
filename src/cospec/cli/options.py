"""Options that several commands share; their docstrings are the help texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

import cospec
from cospec.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from cospec.models import ModelPair


def bundled_folder(name: str) -> Path:
    """Folder of a pair that ships with the package, from a name such as ``bundled:family``.

    Raises:
        ConfigError: There is no such pair.
    """
    home = Path(cospec.__file__).parent / "bundled"
    pairs = sorted(f"bundled:{p.name}" for p in home.glob("*") if (p / "target").is_dir())
    if name not in pairs:
        raise ConfigError(unknown_name("pair", name, pairs or ["none, this build ships no pair"]))
    return home / name.partition(":")[2]


@dataclass(frozen=True)
class PairOptions:
    """Which models."""

    pair: str | None = None
    """A pair that ships with the package, such as bundled:family."""
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

        target, draft, dtype = self.target, self.draft, self.dtype
        if self.pair is not None:
            if target is not None or draft is not None:
                raise ConfigError("--pair names both models; leave out --target and --draft.")
            folder = bundled_folder(self.pair)
            target, draft = str(folder / "target"), str(folder / "draft")
            dtype = "float32" if dtype == "auto" else dtype  # shipped in half the bytes
        if target is None or draft is None:
            missing = "--target" if target is None else "--draft"
            raise ConfigError(f"{missing} is missing; pass --pair, or --target T and --draft D.")
        return ModelPair.from_pretrained(
            target, draft, dtype=dtype, device=self.device, allow_pickle=self.allow_pickle
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
