"""The arguments of lm-evaluation-harness as settings of this project; needs no harness."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

from cospec.config import DecodeConfig, SamplingConfig
from cospec.errors import ConfigError, unknown_name
from cospec.models.bundled import bundled_arbiter
from cospec.models.source import PairSource

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

T = TypeVar("T", int, float)

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""The harness's names for one setting; the first that is given counts."""
_SAMPLING = ("temperature", "top_p", "top_k", "min_p")
_TAKEN = (*_LENGTHS, *_SAMPLING, "until", "do_sample")
_WITHOUT_EFFECT = {"num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1}
"""Settings of other backends, and the value with which they change nothing."""
_IGNORED = ("use_cache",)


@dataclass(frozen=True)
class ModelArgs(PairSource, DecodeConfig):
    """The keys of ``--model_args``."""

    arbiter: str = "lossless"
    """Arbiter that rules at mismatches, as --arbiter of the project's own commands."""
    threshold: float | None = None
    """Threshold in place of the arbiter's own."""
    keep_trace: bool = False
    seed: int = 0
    """Seed of sampling, mixed with the place of the request."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.seed, int) or isinstance(self.seed, bool):
            raise ConfigError(f"seed is {self.seed!r}; it must be a whole number.")
        self.check_cost()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelArgs:  # Any: whatever the user wrote
        """Build from the arguments that the harness parsed.

        Raises:
            ConfigError: A key is unknown, or a value is not allowed.
        """
        names = {f.name for f in fields(cls)}
        known = {"num_speculative_tokens" if key == "k" else key: v for key, v in values.items()}
        if len(known) < len(values):
            raise ConfigError("k and num_speculative_tokens are the same; pass one of them.")
        for key in known:
            if key not in names:
                raise ConfigError(unknown_name("key of --model_args:", key, {*names, "k"}))
        return cls(**known)

    @property
    def arbiter_spec(self) -> str:
        """The arbiter with its threshold, as `load_arbiter` takes it.

        Raises:
            ConfigError: It is a rule, and a threshold is given.
        """
        from cospec.arbiters import with_threshold  # noqa: PLC0415  # brings torch

        return bundled_arbiter(with_threshold(self.arbiter, self.threshold), self.pair)


def sampling_config(
    generation_kwargs: Mapping[str, Any],  # Any: whatever a task's author wrote
    *,
    default_max_new_tokens: int,
    stop_token_ids: tuple[int, ...] = (),
    seed: int = 0,
) -> SamplingConfig:
    """The settings of one request, read as the harness's own models read them.

    ``do_sample: false`` is greedy whatever the temperature; without ``do_sample`` a temperature
    above 0 samples.

    Args:
        generation_kwargs: Settings of the task, updated by ``--gen_kwargs``.
        default_max_new_tokens: Most new tokens if the task sets no limit.
        stop_token_ids: Tokens that end the text besides the target's own.
        seed: Seed of sampling.

    Raises:
        ConfigError: A setting is unknown, and has another value than the one without effect; or
            its value is not allowed; or sampling is asked for without a temperature.
    """
    given = {k: v for k, v in generation_kwargs.items() if v is not None and k not in _IGNORED}
    for key, value in given.items():
        if key not in _TAKEN and _WITHOUT_EFFECT.get(key) != value:
            raise ConfigError(
                f"the task generates with {key}={value!r}, which the engine does not do; it takes "
                f"{', '.join(_TAKEN)}. Leave the task out, or change it with --gen_kwargs."
            )
    until = given.get("until", ())
    if not isinstance(until, Iterable):
        raise ConfigError(f"until is {until!r}; it must be a text or a list of texts.")
    stop = (until,) if isinstance(until, str) else tuple(until)
    limits = [_number(int, name, given[name]) for name in _LENGTHS if name in given]
    temperature = _number(float, "temperature", given.get("temperature", 0.0))
    do_sample = given.get("do_sample", temperature > 0)
    if do_sample and not temperature > 0:
        raise ConfigError(
            "the task has do_sample=True and no temperature above 0; pass one, such as "
            "--gen_kwargs do_sample=True,temperature=1."
        )
    chosen = {name: given[name] for name in _SAMPLING if name in given} if do_sample else {}
    return SamplingConfig(
        max_new_tokens=limits[0] if limits else default_max_new_tokens,
        stop=tuple(filter(None, stop)),
        stop_token_ids=stop_token_ids,
        seed=seed,
        **chosen,
    )


def overruled(generation_kwargs: Mapping[str, Any]) -> list[str]:  # Any: as above
    """Return notes on settings of a request that others overrule, as in the harness's own models.

    Args:
        generation_kwargs: Settings that `sampling_config` takes.
    """
    given = {key: value for key, value in generation_kwargs.items() if value is not None}
    notes = []
    lengths = {name: given[name] for name in _LENGTHS if name in given}
    if len({str(value) for value in lengths.values()}) > 1:
        told = ", ".join(f"{name}={value}" for name, value in lengths.items())
        notes.append(f"the task gives {told}, which are names of one setting: the first one counts")
    temperature = given.get("temperature", 0)
    if not given.get("do_sample", True) and float(temperature) > 0:
        notes.append(
            f"the task gives do_sample={given['do_sample']} and temperature={temperature}: answers "
            "are greedy; do_sample=True samples"
        )
    return notes


def _number(kind: Callable[[Any], T], name: str, value: object) -> T:  # Any: what YAML holds
    """Return a value as a number of a kind.

    Raises:
        ConfigError: The value is no number.
    """
    try:
        return kind(value)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(
            f"{name} is {value!r}; it must be a number, as in --gen_kwargs {name}=1."
        ) from None
