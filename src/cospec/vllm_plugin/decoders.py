"""Arms of an evaluation on vLLM: a model alone, or the pair under an arbiter.

A model alone is an engine of its own. Engines start when they are first used, and the arms of one
pair share the one that drafts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from cospec.backends.base import Item
from cospec.engine.prompts import make_rows
from cospec.types import FinishReason, Origin
from cospec.vllm_plugin.backend import VllmBackend, check_row, generate, request, start

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cospec.backends.jobs import Decoder
    from cospec.config import DecodeConfig, Prompt, SamplingConfig
    from cospec.models import ModelPair
    from cospec.types import Arbiter, Completion
    from cospec.vllm_plugin.backend import VllmSource
    from cospec.vllm_plugin.settings import Records


@dataclass
class PlainDecoder:
    """One model of a pair alone.

    Args:
        pair: The models: their tokenizer and stop tokens are used.
        source: Models that vLLM loads, and its arguments.
        role: Model that decodes.
        batch_size: Most prompts decoded together.
    """

    pair: ModelPair
    source: VllmSource
    role: Literal["target", "draft"]
    batch_size: int
    num_speculative_tokens: int = 0
    _llm: Any = None  # Any: vllm.LLM

    @property
    def context_length(self) -> int:
        """Most tokens of a prompt and its answer."""
        return self.pair.context_length

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sequence[SamplingConfig],
        *,
        streams: Sequence[int] | None = None,  # greedy: nothing is drawn
    ) -> list[Completion]:
        """Complete all prompts, in their order."""
        if self._llm is None:
            model = self.source.target if self.role == "target" else self.source.draft
            self._llm = start(self.source, model, self.pair, max_num_seqs=self.batch_size)
        self._llm.reset_prefix_cache()
        rows = list(make_rows(self.pair, prompts, sampling, reader=self.role))
        room = self._llm.llm_engine.model_config.max_model_len
        for row in rows:
            check_row(row, room, 0)
        emitted = generate(self._llm, [request(row) for row in rows], None)
        for row, token_ids in zip(rows, emitted, strict=True):
            for token in token_ids:
                if row.finish_reason:
                    break
                row.emit(token, Origin.BONUS)
            if row.finish_reason is None:  # vLLM's detokenizer saw a stop string that ours does not
                row.finish_reason = FinishReason.STOP
            num_forwards = len(row.generated) - 1  # the prompt's forward gives the first token
            if self.role == "target":
                row.stats.num_drafts = num_forwards
                row.stats.num_accepted_tokens_per_pos = []
            else:
                row.stats.num_draft_forwards = num_forwards
        return [row.completion() for row in rows]


@dataclass
class RuledDecoder:
    """The pair under an arbiter; it reads its prompts itself, whatever other arms have read.

    Args:
        pair: The models.
        backend: Backend that decodes.
        arbiter: Arbiter that rules at mismatches.
        config: The backend's options.
    """

    pair: ModelPair
    backend: VllmBackend
    arbiter: Arbiter
    config: DecodeConfig
    batch_size: int = field(init=False)
    num_speculative_tokens: int = field(init=False)
    context_length: int = field(init=False)

    def __post_init__(self) -> None:
        self.context_length = self.backend.context_length
        self.batch_size, self.num_speculative_tokens = self.config.batch_size, self.config.k

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sequence[SamplingConfig],
        *,
        streams: Sequence[int] | None = None,
    ) -> list[Completion]:
        """Complete all prompts, in their order."""
        self.backend.forget_prompts()
        streams = range(len(prompts)) if streams is None else streams
        items = list(map(Item, prompts, sampling, streams))
        return [one.completion for one in self.backend.complete(items, self.arbiter)]


@dataclass
class VllmDecoders:
    """Makes the decoders of arms.

    Args:
        pair: The models: their tokenizer and stop tokens are used.
        source: Models that vLLM loads, and its arguments.
        records: Inputs that arbiters may see.
    """

    pair: ModelPair
    source: VllmSource
    records: Records = "scalar"
    _plain: dict[tuple[Literal["target", "draft"], int], PlainDecoder] = field(default_factory=dict)
    _backends: dict[DecodeConfig, VllmBackend] = field(default_factory=dict)

    def plain(self, role: Literal["target", "draft"], config: DecodeConfig) -> Decoder:
        """Return a decoder with one model alone."""
        key = role, config.batch_size
        if key not in self._plain:
            self._plain[key] = PlainDecoder(self.pair, self.source, *key)
        return self._plain[key]

    def ruled(self, arbiter: Arbiter, config: DecodeConfig) -> Decoder:
        """Return a decoder with the pair under an arbiter."""
        # vLLM's decisions always come back, so arms with and without a trace share an engine.
        config = config.with_options(keep_trace=True)
        if config not in self._backends:
            self._backends[config] = VllmBackend(
                self.pair, self.source, config, records=self.records
            )
        return RuledDecoder(self.pair, self._backends[config], arbiter, config)
