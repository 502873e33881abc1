"""Generation for lists of prompts: who waits, who is decoded, who is done.

The loop itself is in `cospec.engine.batch`, one block of it in `Batch.step`. The engine knows an
arbiter only by its protocol.
"""

from __future__ import annotations

import itertools
import operator
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cospec.config import DecodeConfig, SamplingConfig
from cospec.engine.batch import Batch
from cospec.engine.rows import Row
from cospec.errors import (
    ConfigError,
    CospecError,
    GenerationInterrupted,
    NonFiniteError,
    PromptError,
)
from cospec.models.prefill import num_shared_tokens
from cospec.types import Arbiter, Completion, Delta, MismatchBatch, Needs, Origin, Ruling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from transformers import PreTrainedModel

    from cospec.models.cache import SavedRow
    from cospec.models.pair import ModelPair


class _NoArbiter:
    """Stands in where nothing is drafted, so that there is nothing to rule on."""

    name = "none"
    needs = Needs.NOTHING

    def rule(self, batch: MismatchBatch) -> Ruling:
        raise AssertionError("plain decoding has no mismatches")


@dataclass(frozen=True, slots=True)
class Rollout:
    """A completion that branches can leave.

    Attributes:
        completion: What was generated.
        config: Its settings.
        caches: What target and draft stored of it; None if that was not kept.
    """

    completion: Completion
    config: SamplingConfig
    caches: list[SavedRow] | None


@dataclass(frozen=True, slots=True)
class Branch:
    """Another token at one place of a rollout.

    Attributes:
        rollout: What it leaves.
        position: Index of the token in the generated text; the tokens before it are shared.
        token_id: What stands there instead.
        origin: Where that comes from: the draft's token at a mismatch is an override.
    """

    rollout: Rollout
    position: int
    token_id: int
    origin: Origin = Origin.OVERRIDE


def _in_order(rows: Iterable[Row]) -> deque[Row]:
    """Rows in the order that makes them cheap.

    Where half of the prompts' tokens can be shared between neighbours that begin alike (beyond what
    all begin with), these are neighbours; else those of like length are, so that little of what
    attention reads is padding.
    """
    alike = sorted(rows, key=lambda row: row.prompt_ids)
    shared = [num_shared_tokens(a.prompt_ids, b.prompt_ids) for a, b in itertools.pairwise(alike)]
    num_saved = sum(shared) - len(shared) * min(shared, default=0)
    if 2 * num_saved > sum(len(row.prompt_ids) for row in alike):
        return deque(alike)
    return deque(sorted(alike, key=lambda row: (-len(row), row.index)))


class Engine:
    """Decodes prompts with a draft, a target and an arbiter.

    Args:
        pair: The models.
        arbiter: Who rules at mismatches, such as `cospec.arbiters.AlwaysTarget` (lossless).
        config: How to draft and batch.
        on_finished: Called after each block with the number of completions that it ended.
        **options: Fields of `DecodeConfig` that replace those of `config`.

    Attributes:
        config: How it drafts and batches, its block length filled in.

    Raises:
        ConfigError: An option is unknown or out of range.
    """

    def __init__(
        self,
        pair: ModelPair,
        arbiter: Arbiter,
        config: DecodeConfig | None = None,
        *,
        on_finished: Callable[[int], None] | None = None,
        **options: Any,  # Any: values of any field
    ) -> None:
        config = (config or DecodeConfig()).with_options(**options)
        self.pair = pair
        self.arbiter = arbiter
        self.config = config.for_arbiters([arbiter])
        self.on_finished = on_finished
        self.num_speculative_tokens, self.batch_size = self.config.k, self.config.batch_size
        self._main_model: PreTrainedModel = pair.target

    @classmethod
    def target_only(
        cls,
        pair: ModelPair,
        config: DecodeConfig | None = None,
        **options: Any,  # Any: as above
    ) -> Engine:
        """Plain decoding of the target by the same loop: the baseline of every comparison."""
        return cls._plain(pair, pair.target, config, options)

    @classmethod
    def draft_only(
        cls,
        pair: ModelPair,
        config: DecodeConfig | None = None,
        **options: Any,  # Any: as above
    ) -> Engine:
        """Plain decoding of the draft by the same loop; the target's stop tokens end it."""
        return cls._plain(pair, pair.draft, config, options)

    @classmethod
    def _plain(
        cls,
        pair: ModelPair,
        model: PreTrainedModel,
        config: DecodeConfig | None,
        options: dict[str, Any],  # Any: as above
    ) -> Engine:
        engine = cls(pair, _NoArbiter(), config, **options)
        engine.num_speculative_tokens = 0
        engine._main_model = model
        return engine

    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        sampling: SamplingConfig | Sequence[SamplingConfig] | None = None,
    ) -> list[Completion]:
        """Complete all prompts.

        Args:
            prompts: Texts or lists of token ids. A text is tokenized as it stands; for chat models
                see `ModelPair.encode_chat`.
            sampling: Settings for all prompts, or one for each; greedy by default.

        Returns:
            One completion a prompt, in their order.

        Raises:
            PromptError: A prompt is empty, too long or of an unknown kind. Nothing was generated.
            NonFiniteError: The target returned NaN or infinity; `completions` has what was done.
            GenerationInterrupted: Ctrl-C; `completions` has what was done.
        """
        done: dict[int, Completion] = {}
        try:
            for row in self._finished_rows(prompts, sampling):
                done[row.index] = row.completion()
        except CospecError as error:
            error.completions = done
            raise
        except KeyboardInterrupt:
            raise GenerationInterrupted(done) from None
        return [done[i] for i in range(len(done))]

    def rollouts(
        self,
        prompts: Sequence[str | Sequence[int]],
        sampling: SamplingConfig | Sequence[SamplingConfig] | None = None,
    ) -> list[Rollout]:
        """The same as `generate`, each completion with what `branches` need to leave it."""
        rows = self._make_rows(prompts, sampling)
        return self._run(rows, keep_caches=True)

    def branches(self, branches: Sequence[Branch], *, keep_caches: bool = False) -> list[Rollout]:
        """Play branches out, each from the caches of the rollout that it leaves.

        Args:
            branches: Any number, of any rollouts of engines on the same pair.
            keep_caches: Whether branches can leave the results in turn (it takes memory).

        Returns:
            One rollout a branch: the whole completion, whose counts and trace begin at the branch.
        """
        rows = deque(self._make_branch(i, branch) for i, branch in enumerate(branches))
        return self._run(rows, keep_caches)

    def _run(self, rows: deque[Row], keep_caches: bool) -> list[Rollout]:
        all_rows = list(rows)
        for row in all_rows:
            row.keep_caches = keep_caches
        for _ in self._blocks(_in_order(row for row in rows if not row.finish_reason)):
            pass
        return [
            Rollout(row.completion(), row.config, row.caches if keep_caches else None)
            for row in all_rows
        ]

    def _make_branch(self, index: int, branch: Branch) -> Row:
        """A row that stands behind the branch's token."""
        parent, caches = branch.rollout.completion, branch.rollout.caches
        if self._main_model is not self.pair.target:
            raise ConfigError("draft-only decoding has no branches; use an engine with a target.")
        if caches is None or len(caches) <= (self.num_speculative_tokens > 0):
            raise ConfigError(
                "the rollout of a branch has not kept both models' caches; make it with "
                "Engine.rollouts, or pass keep_caches=True to the engine's branches."
            )
        if not 0 <= branch.position < len(parent.token_ids):
            raise ConfigError(
                f"a branch leaves at token {branch.position}; its rollout has tokens 0 to "
                f"{len(parent.token_ids) - 1}."
            )
        row = self._row(index, parent.prompt_ids, branch.rollout.config)
        row.generated = parent.token_ids[: branch.position]
        row.origins = parent.origins[: branch.position]
        row.caches = caches
        row.draft_lags = True  # whether the draft has read the token before is not recorded
        row.emit(branch.token_id, branch.origin)
        return row

    def stream(
        self,
        prompts: Sequence[str | Sequence[int]],
        sampling: SamplingConfig | Sequence[SamplingConfig] | None = None,
    ) -> Iterator[Delta]:
        """The same as `generate`, as it comes: one delta a prompt and block.

        Yields:
            What was added; the last delta of a prompt holds its completion.
        """
        for rows in self._blocks(self._make_rows(prompts, sampling)):
            for row in rows:
                yield row.delta()

    def _finished_rows(
        self,
        prompts: Sequence[str | Sequence[int]],
        sampling: SamplingConfig | Sequence[SamplingConfig] | None,
    ) -> Iterator[Row]:
        for rows in self._blocks(_in_order(self._make_rows(prompts, sampling))):
            yield from (row for row in rows if row.finish_reason)

    def _blocks(self, waiting: deque[Row]) -> Iterator[list[Row]]:
        """Decode block by block; after each, the rows that took part."""
        draft = self.pair.draft if self.num_speculative_tokens else None
        batch = Batch(
            self._main_model,
            draft,
            self.arbiter,
            self.num_speculative_tokens,
            self.config.keep_trace and draft is not None,
            self.config.draft_confidence_threshold,
        )
        while waiting or batch.rows:
            num_free = self.batch_size - len(batch.rows)
            admitted = [waiting.popleft() for _ in range(min(num_free, len(waiting)))]
            if admitted:
                batch.admit(admitted)
            try:
                batch.step()
            except NonFiniteError:
                yield [row for row in batch.rows if row.finish_reason]
                raise
            yield list(batch.rows)
            if self.on_finished is not None:
                self.on_finished(sum(row.finish_reason is not None for row in batch.rows))
            batch.drop_finished()

    def _make_rows(
        self,
        prompts: Sequence[str | Sequence[int]],
        sampling: SamplingConfig | Sequence[SamplingConfig] | None,
    ) -> deque[Row]:
        """Check all prompts before anything is decoded."""
        if isinstance(prompts, str):
            raise PromptError("prompts is one string; pass a list of prompts: [prompt].")
        if not isinstance(prompts, Sequence):
            raise PromptError(
                f"prompts is a {type(prompts).__name__}; pass a list of prompts, each a text or a "
                "list of token ids."
            )
        if not prompts:
            raise PromptError("the list of prompts is empty; pass at least one.")
        if sampling is None or isinstance(sampling, SamplingConfig):
            sampling = [sampling or SamplingConfig()] * len(prompts)
        if len(sampling) != len(prompts):
            raise ConfigError(
                f"got {len(sampling)} sampling configs for {len(prompts)} prompts; pass one for "
                "all, or one for each."
            )
        pairs = zip(prompts, sampling, strict=True)
        return deque(self._make_row(i, prompt, config) for i, (prompt, config) in enumerate(pairs))

    def _make_row(self, index: int, prompt: str | Sequence[int], config: SamplingConfig) -> Row:
        ids = self._encode(index, prompt)
        if config.stop and self.pair.tokenizer is None:
            raise ConfigError("stop strings need a tokenizer, and this pair has none.")
        limit = self.pair.context_length
        if len(ids) + config.max_new_tokens > limit:
            raise PromptError(
                f"prompt {index} has {len(ids)} tokens and max_new_tokens is "
                f"{config.max_new_tokens}: together {len(ids) + config.max_new_tokens}, but the "
                f"pair's context holds {limit}; shorten the prompt or lower max_new_tokens."
            )
        return self._row(index, ids, config)

    def _row(self, index: int, ids: list[int], config: SamplingConfig) -> Row:
        eos = frozenset() if config.ignore_eos else self.pair.eos_token_ids
        return Row(index, ids, config, eos | set(config.stop_token_ids), self.pair.tokenizer)

    def _encode(self, index: int, prompt: str | Sequence[int]) -> list[int]:
        """Token ids of one prompt."""
        if isinstance(prompt, str):
            if self.pair.tokenizer is None:
                raise PromptError(
                    f"prompt {index} is a text, and this pair has no tokenizer; pass token ids."
                )
            ids: list[int] = self.pair.tokenizer(prompt)["input_ids"]
        else:
            try:
                ids = [operator.index(i) for i in prompt]
            except TypeError:
                raise PromptError(
                    f"prompt {index} is {prompt!r}; pass a list of prompts, each a text or a list "
                    "of token ids."
                ) from None
        vocab_size = self.pair.target.config.get_text_config().vocab_size
        wrong = next((i for i in ids if not 0 <= i < vocab_size), None)
        if not ids:
            raise PromptError(f"prompt {index} is empty; pass at least one token.")
        if wrong is not None:
            raise PromptError(
                f"prompt {index} holds token id {wrong}; allowed are 0 to {vocab_size - 1}."
            )
        return ids
