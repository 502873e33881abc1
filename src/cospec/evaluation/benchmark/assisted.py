"""Assisted generation of transformers on the same pair, as an outside reference.

It decodes greedily, one prompt at a time (it refuses more). The number of drafted tokens is
constant, and the threshold of the draft's confidence is that of the lossless arm, so that both arms
do the same. Tokens and stops are counted by the same code as in every other arm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import GenerationConfig, StoppingCriteria

from cospec.config import PairPrompt
from cospec.engine.prompts import make_rows
from cospec.errors import ConfigError
from cospec.types import Origin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cospec.config import Prompt, SamplingConfig
    from cospec.engine.rows import Row
    from cospec.models import ModelPair
    from cospec.types import Completion


class AssistedEngine:
    """Decodes prompts by ``generate(assistant_model=...)``.

    Args:
        pair: The models; the draft's own generation settings are left as they were.
        num_speculative_tokens: K, drafted tokens a block.
        draft_confidence_threshold: A block ends after a token that the draft finds less probable.
    """

    def __init__(
        self,
        pair: ModelPair,
        num_speculative_tokens: int,
        draft_confidence_threshold: float = 0.0,
    ) -> None:
        self.pair = pair
        self.context_length = pair.context_length
        self.num_speculative_tokens = num_speculative_tokens
        self.draft_confidence_threshold = draft_confidence_threshold
        self.batch_size = 1

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sequence[SamplingConfig],
        *,
        streams: Sequence[int] | None = None,  # greedy: nothing is drawn
    ) -> list[Completion]:
        """Complete all prompts, one after the other.

        Args:
            prompts: Texts or token ids.
            sampling: Greedy settings, one a prompt.
            streams: Not used, since nothing is drawn.

        Raises:
            ConfigError: The settings are not greedy.
        """
        if not all(config.is_greedy for config in sampling):
            raise ConfigError("assisted generation is a reference for greedy decoding only.")
        draft = self.pair.draft_model
        num_forwards = [0]

        def count(*_: object) -> None:
            num_forwards[0] += 1

        own, draft.generation_config = draft.generation_config, self._draft_config()
        hook = draft.register_forward_hook(count)
        try:
            rows = [
                self._complete(i, *each, num_forwards)
                for i, each in enumerate(zip(prompts, sampling, strict=True))
            ]
        finally:
            hook.remove()
            draft.generation_config = own
        return [row.completion() for row in rows]

    def _draft_config(self) -> GenerationConfig:
        return GenerationConfig(  # type: ignore[no-untyped-call]
            num_assistant_tokens=self.num_speculative_tokens,
            num_assistant_tokens_schedule="constant",
            assistant_confidence_threshold=self.draft_confidence_threshold,
        )

    def _complete(
        self, index: int, prompt: Prompt, config: SamplingConfig, num_forwards: list[int]
    ) -> Row:
        """Complete one prompt, the target's; `num_forwards` counts the draft's forwards."""
        target = self.pair.target
        read_by_both = prompt.target if isinstance(prompt, PairPrompt) else prompt
        (row,) = make_rows(self.pair, [read_by_both], config)
        row.index = index
        before = num_forwards[0]
        ids = torch.tensor([row.prompt_ids], device=target.device)
        settings = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False,
            max_new_tokens=config.max_new_tokens,
            eos_token_id=sorted(row.stop_ids) or None,
            pad_token_id=min(row.stop_ids, default=0),
        )
        follow = _Follow(row)
        hook = target.register_forward_hook(follow.on_forward)
        try:
            target.generate(  # type: ignore[operator]  # torch types it as a tensor or a module
                ids,
                attention_mask=torch.ones_like(ids),
                generation_config=settings,
                assistant_model=self.pair.draft_model,
                stopping_criteria=[follow],
            )
        finally:
            hook.remove()
        row.stats.num_draft_forwards = num_forwards[0] - before
        row.stats.num_draft_tokens = row.stats.num_draft_forwards
        return row


class _Follow(StoppingCriteria):
    """Hands the tokens of each target forward to a row, which knows when the text ends."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self.is_verified = False

    def on_forward(self, *_: object) -> None:
        """Note that the target has read the draft's tokens."""
        self.is_verified = True

    def __call__(
        self, input_ids: torch.LongTensor, scores: object, **_: object
    ) -> torch.BoolTensor:
        row = self.row
        if not self.is_verified:  # transformers 4 asks about the draft's tokens beforehand
            return torch.tensor([False], device=input_ids.device)  # type: ignore[return-value]
        self.is_verified = False
        row.stats.num_drafts += 1
        *matches, bonus = input_ids[0, len(row) :].tolist()
        for token_id in matches:
            if row.finish_reason is None:
                row.emit(token_id, Origin.MATCH)
                row.stats.num_strict_accepts += 1
        if row.finish_reason is None:
            row.emit(bonus, Origin.BONUS)
        is_done = [row.finish_reason is not None]
        return torch.tensor(is_done, device=input_ids.device)  # type: ignore[return-value]
