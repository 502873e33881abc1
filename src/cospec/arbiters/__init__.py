"""Arbiters, which rule at mismatches, and their specs on the command line."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cospec.arbiters.memory import CSD
from cospec.arbiters.mentored import Mentored
from cospec.arbiters.pair_rules import (
    BiLD,
    ChowAverage,
    ChowCascade,
    CoSD,
    DiffCascade,
    FuzzyJS,
    FuzzyKL,
    JuDi,
    OptCascade,
    StaticEnsemble,
)
from cospec.arbiters.rules import AlwaysDraft, AlwaysTarget, LogProbGap, RandomOverride, Rule
from cospec.arbiters.target_rules import (
    Agreement,
    FLy,
    Mars,
    SGLangThresholds,
    TopK,
    TopKRatio,
    TypicalAcceptance,
)
from cospec.errors import ArbiterError, ConfigError, unknown_name
from cospec.models.bundled import BUNDLED_ARBITERS, bundled_arbiter, bundled_name
from cospec.registered import load_registered, missing_settings, registered_names, settings_of
from cospec.types import Arbiter

if TYPE_CHECKING:
    from collections.abc import Callable

    from cospec.models import ModelPair

__all__ = [
    "CSD",
    "RULES",
    "Agreement",
    "AlwaysDraft",
    "AlwaysTarget",
    "BiLD",
    "ChowAverage",
    "ChowCascade",
    "CoSD",
    "DiffCascade",
    "FLy",
    "FuzzyJS",
    "FuzzyKL",
    "JuDi",
    "LogProbGap",
    "Mars",
    "Mentored",
    "OptCascade",
    "RandomOverride",
    "SGLangThresholds",
    "StaticEnsemble",
    "TopK",
    "TopKRatio",
    "TypicalAcceptance",
    "is_folder",
    "load_arbiter",
    "split_spec",
    "with_threshold",
]

RULES: dict[str, type[Rule]] = {
    rule.kind: rule
    for rule in (
        AlwaysTarget,
        AlwaysDraft,
        RandomOverride,
        LogProbGap,
        Agreement,
        FLy,
        TypicalAcceptance,
        Mars,
        TopK,
        TopKRatio,
        SGLangThresholds,
        BiLD,
        ChowAverage,
        ChowCascade,
        DiffCascade,
        OptCascade,
        FuzzyJS,
        FuzzyKL,
        JuDi,
        CSD,
        Mentored,
        CoSD,
        StaticEnsemble,
    )
}
"""Arbiters without weights, by name."""
_TRAINED_KNOBS = ("threshold", "max_mismatch_rate", "min_prompt_likeness", "point")


def load_arbiter(spec: str | Path, pair: ModelPair | None = None) -> Arbiter:
    """Load an arbiter from its spec.

    Args:
        spec: The name of a rule with its knobs, ``NAME`` or ``NAME:key=value,key=value``, such as
            ``lossless``, ``gap:max_gap=1.5`` or ``fly:window=6``. Or the folder or hub id of a
            trained arbiter, as it is or with ``:threshold=0.7``, ``:max_mismatch_rate=0.2``,
            ``:min_prompt_likeness=0`` or ``:point=NAME``. Or ``bundled`` or ``bundled-scalar``,
            with a pair that ships with the package. Or a name that an installed package registers
            in the entry point group ``cospec.arbiters``. A ``Path`` is the folder of a trained one.
        pair: Pair that it will rule on; a trained arbiter is fitted to its tokenizer and device.

    Raises:
        ArbiterError: The name or a knob is unknown, or the arbiter belongs to another pair.
        CheckpointError: A folder holds no trained arbiter.
        ConfigError: A value is not allowed.
    """
    if isinstance(spec, Path):
        from cospec.arbiters.learned import LearnedArbiter  # noqa: PLC0415  # heavy

        return LearnedArbiter.load(spec, pair)
    kind, _, rest = spec.partition(":")
    if kind in RULES:
        rule = _from_factory(kind, RULES[kind], rest)
        if pair is not None and isinstance(rule, CSD):
            rule.check_pair(pair)
        return rule
    if kind in BUNDLED_ARBITERS:
        folders = [model.name_or_path for model in pair.models] if pair else []
        spec = bundled_arbiter(spec, bundled_name(folders))
    elif factory := load_registered("cospec.arbiters", kind, ArbiterError):
        return _from_factory(kind, factory, rest)
    kind, rest = split_spec(spec)
    if "/" in kind or is_folder(kind):
        return _load_trained(kind, rest, pair)
    known = [*RULES, *BUNDLED_ARBITERS, *registered_names("cospec.arbiters"), "a folder or hub id"]
    raise ArbiterError(unknown_name("arbiter", kind, known))


def with_threshold(spec: str, threshold: float | None) -> str:
    """Return the spec of a trained arbiter at a threshold; as it is without one.

    Raises:
        ConfigError: The spec names a rule, whose threshold would mean something else.
    """
    if threshold is None:
        return spec
    kind = spec.partition(":")[0]
    if kind in RULES:
        raise ConfigError(
            f"threshold is {threshold:g}, which is of trained arbiters, and {kind} is a rule; "
            f"leave it out, or set the rule's own with the name ({kind}:NAME=VALUE)."
        )
    _, rest = split_spec(spec)
    shown = repr(float(threshold)).removesuffix(".0")
    return f"{spec}{',' if rest else ':'}threshold={shown}"


def split_spec(spec: str) -> tuple[str, str]:
    """Split the spec of a trained arbiter into folder or hub id, and knobs.

    The name of a folder may itself contain colons.
    """
    for folder, _, knobs in ((spec, "", ""), spec.rpartition(":")):
        if is_folder(folder):
            return folder, knobs
    source, _, knobs = spec.partition(":")
    return source, knobs


def is_folder(source: str) -> bool:
    """Return whether a folder of that name exists."""
    return os.path.isdir(os.path.expanduser(source))


def _from_factory(kind: str, factory: Callable[..., Any], rest: str) -> Arbiter:
    """Build a rule, or an arbiter that another package registered, with the knobs of a spec."""
    knobs = settings_of(factory)
    values: dict[str, float | str] = {}
    for part in filter(None, rest.split(",")):
        key, _, text = part.partition("=")
        if key not in knobs:
            allowed = knobs or ["none, this rule has no settings"]
            raise ArbiterError(unknown_name(f"setting of arbiter {kind}:", key, allowed))
        if knobs[key] == "str":
            values[key] = text
            continue
        try:
            values[key] = int(text) if knobs[key] == "int" else float(text)
        except ValueError:
            raise ArbiterError(
                f"{key} of arbiter {kind} is {text!r}; it must be a number "
                f"({knobs[key]}), as in {kind}:{key}=1."
            ) from None
    if missing := missing_settings(factory, values):
        raise ArbiterError(
            f"the setting {missing[0]!r} of arbiter {kind} is missing and has no default; write "
            f"{kind}:{missing[0]}=VALUE."
        )
    arbiter = factory(**values)
    if not isinstance(arbiter, Arbiter):
        raise ArbiterError(
            f"arbiter {kind} is a {type(arbiter).__name__}; an arbiter has `name`, `needs` and "
            "`rule(batch)` (see Arbiter in cospec.types)."
        )
    return arbiter


def _load_trained(source: str, knobs: str, pair: ModelPair | None) -> Arbiter:
    """A trained arbiter from a folder or the hub."""
    from cospec.arbiters.hub import download  # noqa: PLC0415  # needed for trained ones only
    from cospec.arbiters.learned import DEFAULT_POINT, LearnedArbiter  # noqa: PLC0415  # heavy

    values = dict(part.partition("=")[::2] for part in filter(None, knobs.split(",")))
    for key in values:
        if key not in _TRAINED_KNOBS:
            raise ArbiterError(unknown_name("setting of a trained arbiter:", key, _TRAINED_KNOBS))
    numbers = {
        name: _number(source, name, text) for name, text in values.items() if name != "point"
    }
    folder = Path(source) if is_folder(source) else download(source)
    return LearnedArbiter.load(folder, pair, point=values.get("point", DEFAULT_POINT), **numbers)


def _number(source: str, name: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise ArbiterError(f"{name} of {source} is {text!r}; it must be a number.")
    return number
