"""The source of a pair, as commands and other programs' model arguments name it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cospec.config import Quantization  # noqa: TC001  # the command line reads it
from cospec.errors import ConfigError
from cospec.models.bundled import bundled_models

if TYPE_CHECKING:
    from cospec.models.pair import ModelPair


@dataclass(frozen=True)
class PairSource:
    """Models to load."""

    pair: str | None = None
    """A pair that ships with the package, such as bundled:family."""
    target: str | None = None
    """Hub id, folder or .gguf file of the target."""
    draft: str | None = None
    """Hub id, folder or .gguf file of the draft."""
    dtype: str = "auto"
    """Data type of the weights: auto (as in the checkpoint), float32, bfloat16 or float16."""
    device: str = "auto"
    """Device of the models: auto, cpu, cuda, cuda:1; or balanced or sequential, to spread the
    layers of the target over all GPUs."""
    allow_pickle: bool = False
    """Load pickled checkpoints, which can run any code they hold."""
    draft_quantization: Quantization = "none"
    """Quantization of the draft's weights: none (as loaded), or int8 or int4 on a CPU, which make
    steps over a few rows faster and proposals a little worse; lossless decoding stays exact."""
    draft_vocab_size: int | None = None
    """Number of first token ids that a quantized draft always considers, such as 32768; all others
    only once it has read them. Steps are faster, and lossless greedy decoding stays exact."""
    allow_different_tokenizers: bool = False
    """Let a draft with another tokenizer propose the tokens that both spell alike."""

    def sources(self, *, needs_draft: bool = True) -> tuple[str, str | None]:
        """Return target and draft as hub ids, folders or files; no draft if none is named.

        Args:
            needs_draft: Whether to refuse a source without a draft.

        Raises:
            ConfigError: A model is not named, or there is no such bundled pair.
        """
        if self.pair is not None:
            if self.target is not None or self.draft is not None:
                raise ConfigError("--pair names both models; leave out --target and --draft.")
            target, draft = bundled_models(self.pair)
            return str(target), str(draft)
        if self.target is None or (self.draft is None and needs_draft):
            missing = "--target" if self.target is None else "--draft"
            raise ConfigError(f"{missing} is missing; pass --pair, or --target T and --draft D.")
        return self.target, self.draft

    def load(self, *, needs_draft: bool = True, pack_weights: bool = True) -> ModelPair:
        """Load the pair; one without a draft if none is needed or named.

        Args:
            needs_draft: Whether to refuse a source without a draft.
            pack_weights: As in `ModelPair.from_pretrained`.

        Raises:
            ConfigError: A model is not named.
        """
        from cospec.models.pair import ModelPair  # noqa: PLC0415  # brings torch

        target, draft = self.sources(needs_draft=needs_draft)
        if self.pair is not None:  # has a type of weights of its own
            target, draft = self.pair, None
        return ModelPair.from_pretrained(
            target,
            draft,
            dtype=self.dtype,
            device=self.device,
            allow_pickle=self.allow_pickle,
            pack_weights=pack_weights,
            draft_quantization=self.draft_quantization,
            draft_vocab_size=self.draft_vocab_size,
            allow_different_tokenizers=self.allow_different_tokenizers,
        )
