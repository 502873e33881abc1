"""Settings of a generation, without anything heavy: the command line reads its options off them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from cospec.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Mapping

_NUMBERS: dict[str, type] = {
    "max_new_tokens": Integral,
    "temperature": Real,
    "top_k": Integral,
    "top_p": Real,
    "min_p": Real,
    "seed": Integral,
    "exact_prefix_tokens": Integral,
}


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """How to generate. Every field may differ from prompt to prompt."""

    max_new_tokens: int = 256
    """Most tokens to generate."""
    temperature: float = 0.0
    """0 is greedy; else the logits are divided by it."""
    top_k: int = 0
    """Sample among the k most probable tokens only; 0 for all."""
    top_p: float = 1.0
    """Sample among the fewest tokens whose probabilities add up to this."""
    min_p: float = 0.0
    """Sample among tokens at least this times as probable as the most probable one."""
    seed: int | None = None
    """Seed of the generator of each row, mixed with the prompt's index; None draws one."""
    stop: tuple[str, ...] = ()
    """Strings that end the text; they are not part of it."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the text, besides the target's end-of-sequence tokens."""
    ignore_eos: bool = False
    """Go on after the target's end-of-sequence tokens."""
    exact_prefix_tokens: int = 0
    """Keep this many first tokens of the completion lossless: no override there."""
    override_stop_tokens: bool = False
    """Allow overrides where one of the two tokens would end the text."""

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        object.__setattr__(self, "stop", _as_tuple("stop", stop, str))
        stop_token_ids = _as_tuple("stop_token_ids", self.stop_token_ids, Integral)
        object.__setattr__(self, "stop_token_ids", stop_token_ids)
        for name, kind in _NUMBERS.items():
            value = getattr(self, name)
            if not isinstance(value, kind) and not (name == "seed" and value is None):
                raise ConfigError(f"{name} is {value!r}; it must be {kind.__name__.lower()}.")
        limits = {
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "temperature": (0 <= self.temperature < float("inf"), "0 (greedy) or positive"),
            "top_k": (self.top_k >= 0, "0 (off) or positive"),
            "top_p": (0 < self.top_p <= 1, "in (0, 1]"),
            "min_p": (0 <= self.min_p <= 1, "in [0, 1]"),
            "stop": (all(self.stop), "non-empty strings"),
            "exact_prefix_tokens": (self.exact_prefix_tokens >= 0, "0 or positive"),
        }
        for name, (is_allowed, allowed) in limits.items():
            if not is_allowed:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be {allowed}.")

    @property
    def is_greedy(self) -> bool:
        """Whether the most probable token is always taken."""
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


def _as_tuple(name: str, values: object, kind: type) -> tuple[Any, ...]:
    """The values of a list of one kind.

    Raises:
        ConfigError: It is no such list.
    """
    if isinstance(values, Iterable) and not isinstance(values, str):
        found = tuple(values)
        if all(isinstance(value, kind) for value in found):
            return found
    raise ConfigError(f"{name} is {values!r}; it must be a list of {kind.__name__}.")


def check_confidence_threshold(value: float) -> None:
    """Raise ConfigError unless drafts can end their blocks at such a confidence."""
    if not 0 <= value <= 1:
        raise ConfigError(
            f"draft_confidence_threshold is {value}; it is a probability, from 0 (blocks are never "
            "ended early) to 1."
        )
