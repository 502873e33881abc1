"""Settings of a generation, without torch: the command line builds its options from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeAlias, get_args

import tyro

from cospec.errors import ArbiterError, ConfigError, check_least, unknown_name, whole_number

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_NUMBERS: dict[str, type[Any]] = {  # Any: an abstract class of numbers
    "max_new_tokens": Integral,
    "temperature": Real,
    "top_k": Integral,
    "top_p": Real,
    "min_p": Real,
    "seed": Integral,
    "exact_prefix_tokens": Integral,
}


@dataclass(frozen=True, slots=True)
class PairPrompt:
    """A prompt in two wordings, each for one model; both go on with the same completion."""

    target: str | Sequence[int]
    """Prompt for the target, and for anything that reads only one prompt, such as drafters without
    a model."""
    draft: str | Sequence[int]
    """Prompt for the draft model, such as one that suits it better or is shorter."""


Quantization: TypeAlias = Literal["none", "int8", "int4"]
"""Quantization of a draft's weights."""
Prompt: TypeAlias = "str | Sequence[int] | PairPrompt"
"""A text, which is tokenized as it stands; token ids; or a `PairPrompt` with one for each model."""


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """Settings of a generation. Every field may differ from prompt to prompt."""

    max_new_tokens: int = 256
    """Most tokens to generate."""
    temperature: float = 0.0
    """Sampling temperature; 0 is greedy."""
    top_k: tyro.conf.Suppress[int] = 0
    """Sample among the k most probable tokens only; 0 for all."""
    top_p: tyro.conf.Suppress[float] = 1.0
    """Sample among the fewest tokens whose probabilities add up to this."""
    min_p: tyro.conf.Suppress[float] = 0.0
    """Sample among tokens that have at least this share of the most probable one's probability."""
    seed: int | None = None
    """Seed of each row's generator, mixed with the prompt's index; None draws one at random."""
    stop: tuple[str, ...] = ()
    r"""Strings that end the text and are not part of it; on the command line \n is a line break."""
    stop_token_ids: tyro.conf.Suppress[tuple[int, ...]] = ()
    """Tokens that end the text, besides the target's end-of-sequence tokens."""
    ignore_eos: tyro.conf.Suppress[bool] = False
    """Go on after the target's end-of-sequence tokens."""
    exact_prefix_tokens: tyro.conf.Suppress[int] = 0
    """Keep this many first tokens of the completion lossless, without any override."""
    override_stop_tokens: tyro.conf.Suppress[bool] = False
    """Allow overrides where one of the two tokens is a stop token. Where one completes a stop
    string, they are always allowed."""

    def __post_init__(self) -> None:
        _check_flags(self)
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        object.__setattr__(self, "stop", _as_tuple("stop", stop, str))
        stop_token_ids = _as_tuple("stop_token_ids", self.stop_token_ids, Integral)
        object.__setattr__(self, "stop_token_ids", tuple(map(int, stop_token_ids)))
        for name, kind in _NUMBERS.items():
            value = getattr(self, name)
            if not _is_a(kind, value) and not (name == "seed" and value is None):
                raise ConfigError(f"{name} is {value!r}; it must be {kind.__name__.lower()}.")
            if type(value) not in (int, float, type(None)):  # such as numpy's, which are no JSON
                plain = int(value) if kind is Integral else float(value)
                object.__setattr__(self, name, plain)
        limits = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "temperature": (0 <= self.temperature < float("inf"), "0 (greedy) or positive"),
            "top_k": (self.top_k >= 0, "0 (off) or positive"),
            "top_p": (0 < self.top_p <= 1, "in (0, 1]"),
            "min_p": (0 <= self.min_p <= 1, "in [0, 1]"),
            "stop": (all(map(_is_writable, self.stop)), "non-empty strings of whole characters"),
            "stop_token_ids": (all(0 <= t < 2**63 for t in self.stop_token_ids), "ids of tokens"),
            "exact_prefix_tokens": (self.exact_prefix_tokens >= 0, "0 or positive"),
        }
        for name, (is_allowed, allowed) in limits.items():
            if not is_allowed:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be {allowed}.")

    @property
    def is_greedy(self) -> bool:
        """True if the most probable token is always taken."""
        return self.temperature == 0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SamplingConfig:  # Any: a JSON object
        """Build from a mapping.

        Raises:
            ConfigError: A key is unknown or a value is not allowed.
        """
        names = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in names:
                raise ConfigError(unknown_name("sampling setting", key, names))
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:  # Any: a JSON object
        """The mapping that `from_dict` takes."""
        return dataclasses.asdict(self)


def _is_writable(text: str) -> bool:
    """Return whether a string is not empty and has no lone surrogates, which JSON can hold."""
    try:
        return bool(text.encode())
    except UnicodeEncodeError:
        return False


def _as_tuple(name: str, values: object, kind: type) -> tuple[Any, ...]:
    """The values of a list, all of one kind.

    Raises:
        ConfigError: The value is no such list.
    """
    if isinstance(values, Iterable) and not isinstance(values, str):
        found = tuple(values)
        if all(isinstance(value, kind) for value in found):
            return found
    raise ConfigError(f"{name} is {values!r}; it must be a list of {kind.__name__}.")


DrafterName: TypeAlias = Literal["model", "ngram", "suffix", "ngram+model", "suffix+model"]
"""Drafters of `cospec.drafters`."""
_WHOLE_NUMBERS = (
    "num_speculative_tokens",
    "batch_size",
    "max_corrections",
    "prompt_lookup_max",
    "prompt_lookup_min",
)
DEFAULT_NUM_SPECULATIVE_TOKENS = 4
"""Block length if none is given and no arbiter was trained with one."""
_REST_TOKENS, _REST_CONFIDENCE = 10, 0.8
"""Bounds of a block where a text goes on losslessly after its last correction: its most tokens, and
the probability below which one ends it, if the options give none."""


def _is_a(kind: type[Any], value: object) -> bool:
    """Return whether a value is such a number; True and False are none."""
    return isinstance(value, kind) and not isinstance(value, bool)


def _check_flags(config: SamplingConfig | DecodeConfig) -> None:
    """Refuse a value other than True or False for a flag."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(field.default, bool) and not isinstance(value, bool):
            raise ConfigError(f"{field.name} is {value!r}; it must be true or false.")


@dataclass(frozen=True, slots=True)
class DecodeConfig:
    """Options of an engine for drafting and batching, independent of arbiter and sampling.

    Every command and function that decodes takes the whole object. A new option needs only a field
    here and the code that acts on it.
    """

    num_speculative_tokens: Annotated[int | None, tyro.conf.arg(aliases=["-k"])] = None
    """Drafted tokens per block (k); by default as many as the arbiter was trained with, 4 for a
    rule."""
    batch_size: int = 8
    """Most prompts decoded together; further ones are admitted as others finish."""
    draft_confidence_threshold: float = 0.0
    """End a drafted block after a token to which the draft gives a lower probability than this,
    from 0 to 1. This avoids drafts that would be thrown away. Lossless decoding stays exact."""
    adaptive: bool = False
    """End each block before a token that is not expected to pay, or at -k tokens. The estimate uses
    the draft's confidence, the row's acceptance so far and the cost of forwards. If no token pays,
    none is drafted. Lossless decoding stays exact. Only blocks of the draft model are affected.
    Forwards are timed once, unless `adaptive_cost` gives their cost."""
    adaptive_cost: tyro.conf.Suppress[float | None] = None
    """Cost of one more drafted token for `adaptive`, in target steps: its draft step and the longer
    target forward. By default it is measured once, so blocks may end elsewhere in another run.
    Commands that measure arms, audit or calibrate require a value."""
    end_blocks_at_stop: bool = False
    """End each block after a token that would end the text: the draft model drafts nothing beyond
    it, and arbiters look no further. If -k is as long as an answer, an arbiter sees the target's
    view of the whole rest of the draft's answer. Lossless decoding stays exact."""
    max_corrections: int | None = None
    """After this many corrections by the target, decode the rest of a text losslessly. The draft
    model's blocks then have at most 10 tokens and end after one to which it gives less than 0.8.
    This saves time where blocks are as long as an answer: a draft that was corrected once is often
    corrected again, and each time it rewrites the rest."""
    cascade: bool = False
    """Let the draft model read up to three guessed tokens with its last one and keep those that it
    would have chosen. It guesses from its earlier drafts in any row and from the row's text. It
    drafts the same tokens, up to rounding, in fewer forwards. This helps most at small batches and
    for similar texts. (Cascade Speculative Drafting, 2312.11462)"""
    drafter: DrafterName = "model"
    """Source of drafted tokens: model, ngram, suffix, ngram+model or suffix+model. The model is the
    pair's draft. Prompt lookup (ngram) takes the tokens that followed an earlier occurrence of the
    last ones. A suffix search takes those that most often followed the longest repeated end of the
    text. With +model, the model drafts where the search finds nothing. Arbiters that ask for the
    draft's logits rule on the model's tokens only."""
    prompt_lookup_max: tyro.conf.Suppress[int] = 4
    """Most tokens at the end of the text that the ngram drafter searches for."""
    prompt_lookup_min: tyro.conf.Suppress[int] = 2
    """Fewest tokens at the end of the text that a drafter must find earlier in it."""
    enable_prefix_caching: tyro.conf.Suppress[bool] = False
    """Keep the caches of the prompts decoded last for the next call. The beginning that a new
    prompt shares with one of them is then not read again, as is always so within one call. Cached
    tokens were read beside other prompts, which can change the last bits of results."""
    keep_trace: tyro.conf.Suppress[bool] = True
    """Record every mismatch in `Completion.trace`, with the features of a trained arbiter:
    thousands of numbers per mismatch if it uses hidden states."""

    def __post_init__(self) -> None:
        _check_flags(self)
        for name in _WHOLE_NUMBERS:
            value = getattr(self, name)
            if value is not None or name not in ("num_speculative_tokens", "max_corrections"):
                object.__setattr__(self, name, whole_number(name, value))  # NumPy's are no JSON
        if self.num_speculative_tokens is not None and self.num_speculative_tokens < 1:
            raise ConfigError(
                f"num_speculative_tokens is {self.num_speculative_tokens}; it must be at least 1. "
                "For decoding without a draft use Engine.target_only."
            )
        check_least(1, batch_size=self.batch_size, max_corrections=self.max_corrections)
        threshold = self.draft_confidence_threshold
        if not _is_a(Real, threshold) or not 0 <= threshold <= 1:
            raise ConfigError(
                f"draft_confidence_threshold is {threshold}; it is a "
                "probability, from 0 (blocks are never ended early) to 1."
            )
        if self.drafter not in get_args(DrafterName):
            raise ConfigError(unknown_name("drafter", self.drafter, get_args(DrafterName)))
        self._check_adaptive()
        for name in ("draft_confidence_threshold", "adaptive_cost"):
            if type(value := getattr(self, name)) not in (int, float, type(None)):
                object.__setattr__(self, name, float(value))  # NumPy's are no JSON
        if self.cascade and (self.adaptive or "model" not in self.drafter):
            other = "adaptive" if self.adaptive else f"drafter={self.drafter!r}"
            raise ConfigError(
                "cascade is for blocks of the draft model and cannot be combined with adaptive; "
                f"leave out {other}."
            )
        fewest, most = self.prompt_lookup_min, self.prompt_lookup_max
        has_most = "suffix" not in self.drafter  # a suffix is as long as it gets
        if min(fewest, most) < 1 or (has_most and fewest > most):
            raise ConfigError(
                f"prompt_lookup_min is {fewest} and prompt_lookup_max {most}; both must be at "
                "least 1, and the first not above the second, which the suffix drafters do not use."
            )

    def _check_adaptive(self) -> None:
        cost = self.adaptive_cost
        if cost is not None and (not _is_a(Real, cost) or not 0 <= cost < float("inf")):
            raise ConfigError(f"adaptive_cost is {cost}; it must be 0 or positive.")
        if cost is not None and not self.adaptive:
            raise ConfigError(
                f"adaptive_cost is {cost}, and adaptive is off; turn it on, or leave the cost out."
            )
        if self.adaptive and "model" not in self.drafter:
            raise ConfigError(
                f"adaptive is for the draft model's blocks; leave out drafter={self.drafter!r}."
            )

    def check_cost(self) -> None:
        """Refuse adaptive blocks without a given cost: results must not depend on a clock.

        Raises:
            ConfigError: `adaptive` is on without a cost.
        """
        if self.adaptive and self.adaptive_cost is None:
            raise ConfigError(
                "adaptive is on and adaptive_cost is None: each process would measure its own, and "
                "a run that is resumed, or another replica, would end blocks elsewhere; give it: "
                '--config \'{"adaptive": true, "adaptive_cost": 0.3}\'.'
            )

    @property
    def k(self) -> int:
        """Drafted tokens per block, once `for_arbiters` has filled them in."""
        assert self.num_speculative_tokens is not None, "call for_arbiters first"
        return self.num_speculative_tokens

    @property
    def ends_blocks_early(self) -> bool:
        """Return whether the draft model may end a block before its k tokens."""
        by_text = self.end_blocks_at_stop or self.max_corrections is not None
        return bool(by_text or self.adaptive or self.draft_confidence_threshold)

    @property
    def needs_each_draft(self) -> bool:
        """Return whether the host has to see the draft model's tokens before a block goes on."""
        return self.ends_blocks_early or self.cascade

    @property
    def ends_by_confidence(self) -> bool:
        """Return whether the draft's probability of a token may end a block."""
        return any(self.block_bounds(is_lossless=flag)[1] for flag in (False, True))

    def block_bounds(self, *, is_lossless: bool) -> tuple[int, float]:
        """Return most tokens of a block, and the probability below which a token ends it.

        Args:
            is_lossless: Whether no override is allowed in the text, at all or from now on.
        """
        if self.max_corrections is None or not is_lossless:
            return self.k, self.draft_confidence_threshold
        confidence = self.draft_confidence_threshold or _REST_CONFIDENCE * (not self.adaptive)
        return min(self.k, _REST_TOKENS), confidence

    @property
    def drafts_answers(self) -> bool:
        """Return whether a block ends only where the text does, or after k tokens."""
        return self.end_blocks_at_stop and not (self.adaptive or self.draft_confidence_threshold)

    def for_arbiters(self, arbiters: Iterable[object]) -> Self:
        """Fill in the block length that the arbiters were trained with, if none was given.

        Raises:
            ArbiterError: They were trained with different block lengths.
        """
        if self.num_speculative_tokens is not None:
            return self
        found = sorted({k for each in arbiters if (k := getattr(each, "trained_k", None))})
        if len(found) > 1:
            raise ArbiterError(
                f"the arbiters were trained at {' and '.join(map(str, found))} drafted tokens a "
                "block; pass the number to rule at: -k."
            )
        k = found[0] if found else DEFAULT_NUM_SPECULATIVE_TOKENS
        return dataclasses.replace(self, num_speculative_tokens=k)

    def with_options(self, **options: Any) -> Self:  # Any: values of any field
        """The same settings with some fields replaced.

        Raises:
            ConfigError: A name is unknown or a value is not allowed.
        """
        names = [f.name for f in dataclasses.fields(self)]
        for name in options:
            if name not in names:
                raise ConfigError(unknown_name("decode option", name, names))
        return dataclasses.replace(self, **options)


DECIDING = tuple(
    field.name
    for field in dataclasses.fields(DecodeConfig)
    if field.name not in ("batch_size", "enable_prefix_caching", "keep_trace")
)
"""Fields that determine which mismatches there are and what an arbiter sees of them."""
