"""The nouns of the project: read this file first.

A **target** and a **draft** language model decode together. In each block the draft proposes ``K``
tokens (a `Proposal`), the target verifies them in one forward pass, and the places where the two
disagree form a `MismatchBatch`. An `Arbiter` answers it with a `Ruling`, which says whose token
stands. A `StepTrace` records each block, and a finished prompt is a `Completion`.

Axes in shapes: B rows, K drafted tokens of a block, V vocabulary, M mismatches, H hidden size.
``p`` is the target's distribution and ``q`` the draft's, as in Leviathan et al. (2211.17192); Chen
et al. (2302.01318) use the letters the other way round.
"""

from __future__ import annotations

import enum
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch

from cospec.display import completion_html
from cospec.text import plain_dict

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


class Needs(enum.Flag):
    """Inputs that an arbiter asks the engine for, beyond token ids and positions."""

    NOTHING = 0
    TARGET_LOGITS = enum.auto()
    """`MismatchBatch.target_logits`, and with them ``log_p``."""
    DRAFT_LOGITS = enum.auto()
    """`MismatchBatch.draft_logits`, and with them ``log_q``."""
    LOOKAHEAD = enum.auto()
    """The target's view of the drafted tokens after the mismatch."""
    TARGET_HIDDEN = enum.auto()
    """The target's last hidden states before and after the drafted token."""
    DRAFT_HIDDEN = enum.auto()
    """The draft's last hidden state from which it drew its token."""
    UNIFORMS = enum.auto()
    """One uniform number per mismatch from the row's own generator, for rulings by chance."""
    BLOCK_LOG_Q = enum.auto()
    """The draft's log-probability of each token of the block; declare DRAFT_LOGITS as well."""
    LOGITS = TARGET_LOGITS | DRAFT_LOGITS
    HIDDEN = TARGET_HIDDEN | DRAFT_HIDDEN
    DRAFT = DRAFT_LOGITS | DRAFT_HIDDEN
    """Inputs that only a drafter with a model supplies."""


class Origin(enum.StrEnum):
    """The source of a token of a completion."""

    MATCH = "match"
    """Drafted, and the target agreed."""
    OVERRIDE = "override"
    """Drafted, the target disagreed, and the arbiter ruled for the draft."""
    CORRECTION = "correction"
    """The target's token at a mismatch ruled for the target."""
    BONUS = "bonus"
    """The target's token after a block that was kept whole (plain decoding emits only these)."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """A drafter's tokens for one block.

    Attributes:
        token_ids: Drafted tokens, (B, K) int64. Where a drafter may stop early, K is the length of
            the longest row, and entries after a row's own length are padding.
        lengths: Number of drafted tokens in each row, (B,) int64.
        is_finite: Whether the logits of each token hold neither NaN nor +inf, (B, K) bool; where
            not, a greedy row has token 0, and a sampled row a token drawn uniformly.
        logits: Raw logits that each token was drawn from, K tensors of (B, V); None if not kept.
        probs: Distributions drawn from, after temperature and truncation, (B, K, V); 0 after a
            row's length, so that the residual there is p itself; None when every row is greedy.
        hidden: The draft's last hidden states, K tensors of (B, H); None if absent or not wanted.
        num_forwards: Draft forwards of each row, (B,) int64, 0 where no model drafted: logits and
            states of such rows are meaningless. None stands for one forward per drafted token, or
            for none if the drafter has no model.
    """

    token_ids: Tensor
    lengths: Tensor
    is_finite: Tensor
    logits: list[Tensor] | None = None
    probs: Tensor | None = None
    hidden: list[Tensor] | None = None
    num_forwards: Tensor | None = None


@dataclass(frozen=True)
class MismatchBatch:
    """Mismatches of one block, in row order: what an arbiter sees, on the models' device.

    A mismatch later in a block is conditional: it is reached only if every earlier drafted token
    of its row was accepted or overridden. Distributions are the models' own, before temperature
    and truncation. Fields that the arbiter did not declare in its `Needs` are None.

    Attributes:
        rows: Index of the batch row, (M,) int64.
        block_positions: Index of the drafted token in its block, 0 to K - 1, (M,) int64.
        positions: Index of the drafted token in the generated text, (M,) int64.
        num_overrides: Overrides of the row before this block, (M,) int64.
        num_mismatches: Earlier mismatches of the row, including those of its block, (M,) int64.
        block_lengths: Drafted tokens of its row in this block, at most K, (M,) int64.
        draft_ids: The draft's token, (M,) int64.
        target_ids: The token that stands if the ruling is for the target: its argmax, or when
            sampling a sample of the residual, (M,) int64.
        target_logits, draft_logits: Raw logits, (M, V) float.
        lookahead_matches: Whether the target accepts the drafted token i + 1 places after the
            mismatch, (M, K - 1) bool; False where the block has ended.
        lookahead_log_p: The target's log-probability of each, (M, K - 1) float32; 0 past the end.
        target_hidden: State from which the target judged the drafted token, (M, H).
        target_hidden_after: The target's state after reading the drafted token, (M, H).
        draft_hidden: State from which the draft drew its token, (M, H).
        uniforms: Random numbers in [0, 1), (M,) float64.
        block_log_q: The draft's log-probability of each token of the block, (M, K); 0 after it.
    """

    rows: Tensor
    block_positions: Tensor
    positions: Tensor
    num_overrides: Tensor
    num_mismatches: Tensor
    block_lengths: Tensor
    draft_ids: Tensor
    target_ids: Tensor
    target_logits: Tensor | None = None
    draft_logits: Tensor | None = None
    lookahead_matches: Tensor | None = None
    lookahead_log_p: Tensor | None = None
    target_hidden: Tensor | None = None
    target_hidden_after: Tensor | None = None
    draft_hidden: Tensor | None = None
    uniforms: Tensor | None = None
    block_log_q: Tensor | None = None

    def __len__(self) -> int:
        return self.draft_ids.shape[0]

    @cached_property
    def log_p(self) -> Tensor:
        """The target's log-probabilities, (M, V) float32."""
        assert self.target_logits is not None, "declare Needs.TARGET_LOGITS"
        return torch.log_softmax(self.target_logits.float(), dim=-1)

    @cached_property
    def log_q(self) -> Tensor:
        """The draft's log-probabilities, (M, V) float32."""
        assert self.draft_logits is not None, "declare Needs.DRAFT_LOGITS"
        return torch.log_softmax(self.draft_logits.float(), dim=-1)


@dataclass(frozen=True, slots=True)
class Ruling:
    """An arbiter's answer to a `MismatchBatch`.

    Attributes:
        keep_draft: True where the draft's token is to stand, (M,) bool.
        score: Number that the ruling is based on, larger for the draft, (M,) float. Where it is not
            finite, the engine rules for the target and counts the case. None if there is none.
        features: Inputs of the score, (M, F) float, for the trace; None if not given.
    """

    keep_draft: Tensor
    score: Tensor | None = None
    features: Tensor | None = None


@runtime_checkable
class Arbiter(Protocol):
    """Rules at mismatches. The engine uses nothing but this interface."""

    @property
    def name(self) -> str:
        """Name for reports, with its settings, such as ``margin:threshold=0.9``."""
        ...

    @property
    def needs(self) -> Needs:
        """Inputs that the engine has to supply in the `MismatchBatch`."""
        ...

    def rule(self, batch: MismatchBatch) -> Ruling:
        """Rule on the mismatches of a block in one call: all of them, or those of some rows."""
        ...


NO_FEATURES = torch.empty(0)
"""Features of a mismatch whose arbiter reports none."""


@dataclass(frozen=True, slots=True)
class MismatchTrace:
    """One mismatch and how it was ruled.

    Probabilities are the models' own, before temperature and truncation.
    """

    position: int
    """Index of the token in the generated text."""
    block_position: int
    """Index of the drafted token in its block."""
    draft_id: int
    target_id: int
    p_draft_id: float
    """Probability of the draft's token under the target."""
    p_target_id: float
    q_draft_id: float
    q_target_id: float
    score: float | None
    """The arbiter's score, if it gives one."""
    keep_draft: bool
    """The ruling that counted (after the engine's safety rules)."""
    is_reached: bool
    """True if every earlier token of the block stood, and none of them ended the text."""
    is_open: bool
    """True if a ruling for the draft would have counted (the engine's safety rules allow it)."""
    veto: str | None = None
    """The safety rule that turned an override down: ``exact_prefix``, ``stop_token``,
    ``forbidden`` or ``non_finite``; or ``no_draft``, where the arbiter was not asked."""
    features: Tensor = field(default=NO_FEATURES, compare=False)
    """Features from `Ruling.features`, (F,) float32 on the CPU; empty if the arbiter gave none."""

    @property
    def other(self) -> tuple[int, Origin]:
        """The token that was ruled against, and the origin that it would have."""
        ours, theirs = (self.draft_id, Origin.OVERRIDE), (self.target_id, Origin.CORRECTION)
        return theirs if self.keep_draft else ours


@dataclass(frozen=True, slots=True)
class StepTrace:
    """One block of one row."""

    position: int
    """Index in the generated text of the block's first token."""
    num_draft_tokens: int
    num_strict_accepts: int
    num_overrides: int
    mismatches: tuple[MismatchTrace, ...]
    probs: tuple[tuple[float, float | None], ...] = field(default=(), compare=False)
    """Probabilities of each token that stands, under the target and under the draft, before
    temperature and truncation; None under a draft that was not asked. Empty in rollouts."""


@dataclass(slots=True)
class Stats:
    """Counts for one completion, or sums over several. Names follow vLLM where it has the count.

    Only tokens that reached the completion count as accepted: those that a stop cut off do not.
    """

    num_tokens: int = 0
    """Generated tokens; in a branch, unlike other counts, also those shared with its rollout."""
    num_drafts: int = 0
    """Blocks, each one target forward (target alone: one per token; draft alone: none)."""
    num_draft_tokens: int = 0
    """Drafted tokens."""
    num_strict_accepts: int = 0
    """Drafted tokens that the target agreed with."""
    num_overrides: int = 0
    """Drafted tokens that stand by ruling."""
    num_mismatches: int = 0
    """Mismatches that were reached."""
    num_open_mismatches: int = 0
    """Reached mismatches that an arbiter could override: no safety rule settled them."""
    num_non_finite_scores: int = 0
    """Arbiter scores that were NaN or infinite, and ruled for the target."""
    num_non_finite_drafts: int = 0
    """Drafted tokens whose draft logits were NaN or infinite."""
    num_draft_forwards: int = 0
    num_accepted_tokens_per_pos: list[int] = field(default_factory=list)
    """Entry i counts the blocks in which more than i drafted tokens stood."""

    @property
    def num_target_forwards(self) -> int:
        """Target forwards, without those that read the prompt."""
        return self.num_drafts

    @property
    def num_accepted_tokens(self) -> int:
        """Drafted tokens that stand: matches and overrides."""
        return self.num_strict_accepts + self.num_overrides

    @property
    def mean_acceptance_length(self) -> float:
        """1 + accepted drafted tokens per block: 1.0 for plain decoding, at most K + 1."""
        return 1.0 + self.num_accepted_tokens / self.num_drafts if self.num_drafts else 1.0

    @property
    def draft_acceptance_rate(self) -> float:
        """Accepted over drafted tokens; 0 if none was drafted."""
        return self.num_accepted_tokens / self.num_draft_tokens if self.num_draft_tokens else 0.0

    @property
    def acceptance_rate_per_pos(self) -> list[float]:
        """Share of the blocks in which more than i drafted tokens stood."""
        return [n / self.num_drafts for n in self.num_accepted_tokens_per_pos]

    def __add__(self, other: Stats) -> Stats:
        per_pos = self.num_accepted_tokens_per_pos, other.num_accepted_tokens_per_pos
        names = [name for name in self.__slots__ if name != "num_accepted_tokens_per_pos"]
        total = Stats(**{name: getattr(self, name) + getattr(other, name) for name in names})
        total.num_accepted_tokens_per_pos = [a + b for a, b in zip_longest(*per_pos, fillvalue=0)]
        return total

    def to_dict(self) -> dict[str, Any]:  # Any: a JSON object
        """Counts and the rates that follow from them, ready for JSON."""
        return asdict(self) | {
            "num_target_forwards": self.num_target_forwards,
            "num_accepted_tokens": self.num_accepted_tokens,
            "mean_acceptance_length": self.mean_acceptance_length,
            "draft_acceptance_rate": self.draft_acceptance_rate,
            "acceptance_rate_per_pos": self.acceptance_rate_per_pos,
        }


class FinishReason(enum.StrEnum):
    """Reason why a completion ended."""

    STOP = "stop"
    """A stop token or a stop string."""
    LENGTH = "length"
    """``max_new_tokens``."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A finished prompt.

    Attributes:
        index: Index of the prompt in the given list.
        prompt_ids: Token ids of the prompt.
        token_ids: Generated token ids, a stop token included.
        text: Text without special tokens, cut before a stop string; "" without a tokenizer.
        origins: Origin of each generated token.
        finish_reason: Reason why the completion ended.
        stats: Counts.
        trace: One entry per block; empty if the engine keeps no trace.
        tokenizer: Tokenizer for coloured output in notebooks; dropped when pickled.
    """

    index: int
    prompt_ids: list[int]
    token_ids: list[int]
    text: str
    origins: list[Origin]
    finish_reason: FinishReason
    stats: Stats
    trace: list[StepTrace]
    tokenizer: PreTrainedTokenizerBase | None = field(default=None, repr=False, compare=False)

    @property
    def reached(self) -> list[MismatchTrace]:
        """The mismatches that counted, in order, without those that a stop cut off."""
        every = (m for step in self.trace for m in step.mismatches)
        return [m for m in every if m.is_reached and m.position < len(self.token_ids)]

    @property
    def token_probs(self) -> list[tuple[float | None, float | None]]:
        """Each token's probability under target and draft; None where the trace has none."""
        told = {step.position + i: p for step in self.trace for i, p in enumerate(step.probs)}
        return [told.get(i, (None, None)) for i in range(len(self.token_ids))]

    def to_dict(self) -> dict[str, Any]:  # Any: a JSON object
        """The completion as JSON, its trace included."""
        found = asdict(replace(self, tokenizer=None), dict_factory=plain_dict)
        return {k: found[k] for k in found if k != "tokenizer"} | {"stats": self.stats.to_dict()}

    def _repr_html_(self) -> str | None:
        """Return the tokens coloured by origin, for notebooks; None leaves it to `repr`."""
        return None if self.tokenizer is None else completion_html(self, self.tokenizer)

    def __getstate__(self) -> list[object]:
        return [None if e.name == "tokenizer" else getattr(self, e.name) for e in fields(self)]


@dataclass(frozen=True, slots=True)
class Delta:
    """The addition of one block to one prompt's completion (the streaming form).

    Attributes:
        index: Index of the prompt in the given list.
        token_ids: New token ids.
        origins: Origin of each new token.
        text: New text; characters that may belong to a stop string or are incomplete come later.
        completion: The finished completion in the last delta, else None.
    """

    index: int
    token_ids: list[int]
    origins: list[Origin]
    text: str
    completion: Completion | None = None
