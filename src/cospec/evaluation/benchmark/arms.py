"""Requested arms of a benchmark, and the settings to try for each of them.

An arm keeps its name through the whole benchmark, whatever settings tuning chooses. This file knows
specs and arbiters, and nothing about loaded models or problems.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from cospec.arbiters import RULES, RandomOverride, load_arbiter
from cospec.arbiters.learned import LearnedArbiter
from cospec.arbiters.memory import CSD
from cospec.errors import ConfigError, unknown_name
from cospec.evaluation.arms import check_names
from cospec.evaluation.benchmark.grids import GRIDS, THRESHOLDS
from cospec.evaluation.benchmark.names import ASSISTED, MATCH, ORACLE
from cospec.evaluation.summary import DRAFT, LOSSLESS, TARGET

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cospec.types import Arbiter

Kind: TypeAlias = Literal["exact", "rule", "learned", "random", "reference", "ceiling"]
_UNRULED: dict[str, Kind] = {ASSISTED: "reference", ORACLE: "ceiling"}
OWN_RULES = ("lossless", "always_draft", "random", "gap", "agreement")
"""Rules that nobody has proposed: the ends of the scale, chance, and the project's own."""


@dataclass(frozen=True, slots=True)
class ArmSpec:
    """A requested arm.

    Attributes:
        name: Name in reports.
        kind: ``exact`` (gives the target's own output), ``rule``, ``learned``, ``random`` (the
            control), ``reference`` (draft alone, and other people's code), or ``ceiling``.
        tries: Specs of arbiters, as a user gives them; the tune split picks one. Empty for
            plain decoding, for ``assisted`` and ``oracle``, and for a rate that follows from
            another arm.
        match: Name of the arm whose share of overrides is taken as a rate.
    """

    name: str
    kind: Kind
    tries: tuple[str, ...] = ()
    match: str | None = None

    @property
    def is_rival(self) -> bool:
        """True if a trained arm has to beat it: untrained, and played on the tune split."""
        return self.kind != "learned" and (self.name == DRAFT or bool(self.tries))


def expand_sets(specs: Sequence[str], has_bundled: bool, has_tune: bool = True) -> list[str]:
    """Put the members of named sets in the place of their names, each once.

    Args:
        specs: Specs as the user gave them.
        has_bundled: Whether the pair ships with a trained arbiter.
        has_tune: Whether there are tune problems, without which ``csd`` has no memory.
    """
    rules = [name for name in RULES if name not in OWN_RULES and (has_tune or name != CSD.kind)]
    bundled = ["bundled", f"{MATCH}bundled"] if has_bundled else ["random"]
    sets = {"rules": rules, "all": ["gap", "agreement", *rules, *bundled, ASSISTED]}
    return list(dict.fromkeys(one for spec in specs for one in sets.get(spec, [spec])))


def make_specs(
    specs: Sequence[str], find: Callable[[str], str], *, tune_knobs: bool = False
) -> list[ArmSpec]:
    """Return the arms target, draft and lossless, and one for each spec.

    Args:
        specs: Specs from `expand_sets`: an arbiter as `load_arbiter` takes it, ``assisted``,
            ``oracle``, or ``random:match=NAME`` with the name or spec of another arm.
        find: Turns a spec into one that `load_arbiter` takes, or raises.
        tune_knobs: Try the grid of an arbiter whose spec has no settings, or none of the grid's.

    Raises:
        CospecError: There is no such arbiter, two arms have one name, or a matched arm is missing.
    """
    found = [
        ArmSpec(TARGET, "exact"),
        ArmSpec(DRAFT, "reference"),
        ArmSpec(LOSSLESS, "exact", (LOSSLESS,)),
    ]
    by_spec: dict[str, str] = {}
    asked: list[tuple[str, str]] = []
    for spec in specs:
        if spec == LOSSLESS or spec.startswith(MATCH):
            continue
        kind = _UNRULED.get(spec)
        arm_spec = ArmSpec(spec, kind) if kind else _one(spec, load_arbiter(find(spec)), tune_knobs)
        asked.append((arm_spec.name, spec))
        check_names(asked)
        found.append(arm_spec)
        by_spec |= {spec: arm_spec.name, arm_spec.name: arm_spec.name}
    ruled = {spec: name for spec, name in by_spec.items() if spec not in _UNRULED}
    for spec in specs:
        if spec.startswith(MATCH):
            wanted = spec.removeprefix(MATCH)
            if wanted not in ruled:
                allowed = ruled or ["none, no arbiter is asked for"]
                raise ConfigError(unknown_name(f"arm to match by {spec}:", wanted, allowed))
            arm_spec = ArmSpec(MATCH + ruled[wanted], "random", match=ruled[wanted])
            if arm_spec not in found:  # asked for by the arm's spec and by its name
                found.append(arm_spec)
    return found


def _one(spec: str, arbiter: Arbiter, tune_knobs: bool) -> ArmSpec:
    """Return the arm of an arbiter; settings that are given stay as they are.

    The other settings of a rule are tuned if the grid has none of the given ones, as with
    ``csd:memory=FILE``. A class from another package has the grid that it declares
    (``knobs_to_try``).
    """
    base, _, given = spec.partition(":")
    label = arbiter.name.partition(":")[0]
    is_learned = isinstance(arbiter, LearnedArbiter)
    grid = THRESHOLDS if is_learned else GRIDS.get(base, getattr(arbiter, "knobs_to_try", ()))
    is_open = not given or (not is_learned and not _knobs(given) & _knobs(*grid))
    added = f",{given}" if given else ""
    tries = tuple(f"{base}:{one}{added}" for one in grid) if tune_knobs and is_open else ()
    if given:
        label = spec if tries else arbiter.name
    kind: Kind = "learned" if is_learned else "rule"
    if isinstance(arbiter, RandomOverride):
        kind = "random"
    return ArmSpec(label, kind, tries or (spec,))


def _knobs(*settings: str) -> set[str]:
    """Return the names of the knobs that settings set."""
    return {part.partition("=")[0] for setting in settings for part in setting.split(",")}
