"""Generation for lists of prompts: which of them wait, are decoded, or are done.

One block is `SpeculativeBatch.step`, or for one model alone `PlainBatch.step`. The engine knows an
arbiter and a drafter only by their protocols.
"""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from cospec.config import DecodeConfig, DrafterName, SamplingConfig
from cospec.drafters import DRAFTERS, Drafter
from cospec.engine.branches import Branch, Rollout, branch_row
from cospec.engine.plain import PlainBatch
from cospec.engine.prompts import context_lengths, in_order, make_rows
from cospec.engine.speculative import SpeculativeBatch
from cospec.errors import (
    ArbiterError,
    ConfigError,
    CospecError,
    GenerationInterrupted,
    NonFiniteError,
    is_out_of_memory,
)
from cospec.types import Arbiter, Completion, Delta, MismatchBatch, Needs, Ruling

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from cospec.config import Prompt
    from cospec.engine.batch import Batch
    from cospec.engine.prompts import Reader
    from cospec.engine.rows import Row
    from cospec.models.pair import ModelPair


class Engine:
    """Decodes prompts with a drafter, a target and an arbiter.

    Args:
        pair: The models.
        arbiter: Arbiter that rules at mismatches, such as `cospec.arbiters.AlwaysTarget`
            (lossless).
        config: Block length, batch size and other decoding options.
        drafter: Drafter, given by a name as in `DecodeConfig.drafter` or as your own class.
        on_finished: Called after each block with the number of completions that it ended.
        **options: Fields of `DecodeConfig` that replace those of `config`.

    Attributes:
        config: Decoding options, with the block length filled in.
        num_speculative_tokens: Drafted tokens per block (k); 0 if nothing is drafted.
        batch_size: Most prompts decoded together.

    Raises:
        ConfigError: An option is unknown or out of range.
        ArbiterError: `arbiter` is no arbiter, or needs inputs that the drafter lacks.
        PairError: The drafter needs a draft model, and the pair has none.
    """

    _kept: Batch | None = None
    """Batch without rows, with the caches that the next call begins with."""

    def __init__(
        self,
        pair: ModelPair,
        arbiter: Arbiter,
        config: DecodeConfig | None = None,
        *,
        drafter: type[Drafter] | DrafterName | None = None,
        on_finished: Callable[[int], None] | None = None,
        **options: Any,  # Any: values of any field
    ) -> None:
        if isinstance(drafter, str):
            options, drafter = options | {"drafter": drafter}, None
        if isinstance(arbiter, type) or not isinstance(arbiter, Arbiter):
            raise ArbiterError(
                f"arbiter is {arbiter!r}; pass an arbiter itself: load_arbiter(spec, pair)."
            )
        config = (config or DecodeConfig()).with_options(**options)
        self.pair = pair
        self.arbiter = arbiter
        self.config = config.for_arbiters([arbiter])
        self.on_finished = on_finished
        self.num_speculative_tokens, self.batch_size = self.config.k, self.config.batch_size
        if drafter is not None and not (isinstance(drafter, type) and issubclass(drafter, Drafter)):
            raise ConfigError(
                f"drafter is {drafter!r}; pass a name such as 'ngram', or a class of drafters."
            )
        self._drafter = drafter or DRAFTERS[self.config.drafter]
        self._check_drafter()
        if self.num_speculative_tokens > self.context_length:
            raise ConfigError(
                f"num_speculative_tokens is {self.num_speculative_tokens}, and the context holds "
                f"{self.context_length}; lower it."
            )

    @classmethod
    def target_only(
        cls,
        pair: ModelPair,
        config: DecodeConfig | None = None,
        **options: Any,  # Any: as above
    ) -> Engine:
        """Plain decoding with the target, the baseline of every comparison."""
        return PlainEngine(pair, "target", config, **options)

    @classmethod
    def draft_only(
        cls,
        pair: ModelPair,
        config: DecodeConfig | None = None,
        **options: Any,  # Any: as above
    ) -> Engine:
        """Plain decoding with the draft; the target's stop tokens end it."""
        return PlainEngine(pair, "draft", config, **options)

    @property
    def reader(self) -> Reader:
        """The models that read prompts."""
        return "both" if self._drafter.has_model else "target"

    @property
    def context_length(self) -> int:
        """Most tokens of a prompt and its completion, for the models that read them."""
        return min(context_lengths(self.pair, self.reader))

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingConfig | Sequence[SamplingConfig] | None = None,
        *,
        streams: Sequence[int] | None = None,
    ) -> list[Completion]:
        """Complete all prompts.

        Args:
            prompts: Texts or lists of token ids. A text is tokenized as it stands; for chat models
                see `ModelPair.encode_chat`. A `PairPrompt` has one for each model.
            sampling: Settings for all prompts, or one for each; greedy by default.
            streams: Stream of each prompt's seed to draw from; by default its index.

        Returns:
            One completion per prompt, in their order.

        Raises:
            PromptError: A prompt is empty, too long or of an unknown kind. Nothing was generated.
            ConfigError: The settings do not fit the prompts or the pair. Nothing was generated.
            NonFiniteError: The target gave NaN or infinity; `completions` has the finished ones.
            GenerationInterrupted: Ctrl-C; `completions` has the finished ones.
        """
        rows = make_rows(self.pair, prompts, sampling, streams, self.reader)
        with _handing_over(rows):
            for _ in self._blocks(in_order(rows)):
                pass
        return [row.completion() for row in rows]

    def rollouts(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingConfig | Sequence[SamplingConfig] | None = None,
        *,
        streams: Sequence[int] | None = None,
        keep_caches: bool = True,
    ) -> list[Rollout]:
        """Complete all prompts like `generate`, and keep what `branches` needs to start from them.

        Args:
            prompts: As in `generate`.
            sampling: As in `generate`.
            streams: As in `generate`.
            keep_caches: Whether branches can start from the results (takes memory).
        """
        rows = make_rows(self.pair, prompts, sampling, streams, self.reader)
        return self._run(rows, keep_caches)

    def branches(self, branches: Sequence[Branch], *, keep_caches: bool = False) -> list[Rollout]:
        """Complete branches, each from the caches of its rollout.

        Args:
            branches: Branches of any rollouts of engines on the same pair.
            keep_caches: Whether branches can start from the results in turn (takes memory).

        Returns:
            One rollout per branch: the whole completion, whose trace and counts (except
            `num_tokens`) begin at the branch.
        """
        needs_draft = self._drafter.has_model
        rows = deque(
            branch_row(self.pair, i, branch, needs_draft=needs_draft)
            for i, branch in enumerate(branches)
        )
        return self._run(rows, keep_caches)

    def _run(self, rows: deque[Row], keep_caches: bool) -> list[Rollout]:
        for row in rows:
            row.keep_caches = keep_caches
            row.keep_probs = False  # training does not use them, and replicas would send them
        if self.on_finished is not None and (num_done := sum(bool(r.finish_reason) for r in rows)):
            self.on_finished(num_done)  # branches that end with their own token
        with _handing_over(rows):
            for _ in self._blocks(in_order(row for row in rows if not row.finish_reason)):
                pass
        return [
            Rollout(
                row.completion(),
                row.config,
                row.caches if keep_caches else None,
                row.draft_prompt_ids,
            )
            for row in rows
        ]

    def stream(
        self,
        prompts: Sequence[Prompt],
        sampling: SamplingConfig | Sequence[SamplingConfig] | None = None,
    ) -> Iterator[Delta]:
        """Stream what `generate` returns: one delta per prompt and block.

        Yields:
            Additions to a prompt's completion; the last delta holds the whole completion.
        """
        for rows in self._blocks(make_rows(self.pair, prompts, sampling, reader=self.reader)):
            for row in rows:
                yield row.delta()

    def _blocks(self, waiting: deque[Row]) -> Iterator[list[Row]]:
        """Decode block by block; after each, yield the rows that took part."""
        batch, self._kept = self._kept or self._new_batch(), None
        is_sound = False
        try:
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
            is_sound = True
        except GeneratorExit:  # the caller stopped reading, perhaps after the last block
            batch.drop_finished()
            is_sound = not batch.rows
            raise
        finally:
            if is_sound and self.config.enable_prefix_caching:
                self._kept = batch

    def _new_batch(self) -> Batch:
        drafter = self._drafter(self.pair, self.config, self.arbiter.needs)
        return SpeculativeBatch(self.pair, self.arbiter, drafter, self.config)

    def _check_drafter(self) -> None:
        """Refuse an arbiter that needs what the drafter lacks, and a drafter without its model.

        Raises:
            ArbiterError: The arbiter needs inputs that the drafter lacks.
            CospecError: The pair lacks the drafter's model, or the drafter refuses a setting.
        """
        missing = self.arbiter.needs & Needs.DRAFT & ~self._drafter.provides
        if missing:
            what = {Needs.DRAFT_LOGITS: "logits", Needs.DRAFT_HIDDEN: "hidden states"}
            names = " and ".join(what[need] for need in missing)
            raise ArbiterError(
                f"arbiter {self.arbiter.name} needs the draft's {names}, which "
                f"{self._drafter.__name__} does not have; draft with the model (drafter='model'), "
                "or take an arbiter that looks at the target alone."
            )
        self._drafter(self.pair, self.config, self.arbiter.needs)


@contextmanager
def _handing_over(rows: Iterable[Row]) -> Iterator[None]:
    """Attach the completions of finished rows to an error or Ctrl-C."""

    def ended() -> dict[int, Completion]:
        return {row.index: row.completion() for row in rows if row.finish_reason}

    try:
        yield
    except CospecError as error:
        error.completions = ended()
        raise
    except Exception as error:
        if is_out_of_memory(error):
            error.completions = ended()  # type: ignore[attr-defined]  # as ours have them
        raise
    except KeyboardInterrupt:
        raise GenerationInterrupted(ended()) from None


class _NoArbiter:
    """Stands in where nothing is drafted, and so nothing is ruled on."""

    name = "none"
    needs = Needs.NOTHING

    def rule(self, batch: MismatchBatch) -> Ruling:
        raise AssertionError("plain decoding has no mismatches")


class PlainEngine(Engine):
    """Decodes prompts with only one model of a pair.

    Args:
        pair: The models.
        role: Model that decodes.
        config: Batch size and other decoding options.
        **options: Fields of `DecodeConfig` that replace those of `config`.

    Raises:
        ConfigError: An option is unknown or out of range.
        PairError: The pair has no draft.
    """

    def __init__(
        self,
        pair: ModelPair,
        role: Literal["target", "draft"],
        config: DecodeConfig | None = None,
        **options: Any,  # Any: values of any field
    ) -> None:
        config = (config or DecodeConfig()).with_options(**options)
        self.pair = pair
        self.arbiter = _NoArbiter()
        self.config = config.for_arbiters([])
        self.on_finished = None
        self.num_speculative_tokens, self.batch_size = 0, self.config.batch_size
        self._drafter = Drafter  # one without a model
        self._role, self._model = role, pair.target if role == "target" else pair.draft_model

    @property
    def reader(self) -> Reader:
        """The model that decodes."""
        return self._role

    def branches(self, branches: Sequence[Branch], *, keep_caches: bool = False) -> list[Rollout]:
        """Complete branches with the target alone, from rollouts of any engine on the pair."""
        if self._role == "draft":
            raise ConfigError("draft-only decoding has no branches; use an engine with a target.")
        return super().branches(branches, keep_caches=keep_caches)

    def _run(self, rows: deque[Row], keep_caches: bool) -> list[Rollout]:
        # A branch would load the draft's caches as the target's.
        return super()._run(rows, keep_caches and self._role == "target")

    def _new_batch(self) -> Batch:
        vocab_size = self.pair.target.config.get_text_config().vocab_size
        return PlainBatch(self._model, vocab_size, is_target=self._role == "target")
