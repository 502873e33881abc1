"""Numbers in prose that carry a marker, computed from the rows of result files.

A number stands between ``<!-- n FILE ARM MEASURE [OTHER] -->`` and ``<!-- /n -->``. FILE is a
result file without its ending (``FILE#2`` is its third cell), ARM the beginning of an arm's name,
MEASURE a key of `MEASURES`, and OTHER the arm that it is compared with: by default the target, or
lossless where the measure is about forwards or tokens. ``gain@twins``, ``won@others``,
``templates@all`` and the like are those of a group of problems (`twins.GROUPS`), ``of_oracle`` is
a share of the oracle's gain, ``of_either`` one of the gain of who always takes the right one of
both models' own answers, ``p_databases`` the sign-flip test over databases. FILE may be
``twins``: then ARM is a pair or a model, and MEASURE a key of `TWINS`. Speeds of
`speed_real/speed.py` are written as `timed` says.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from cospec.evaluation.stats import sign_flip_p
from experiments.tables import timed, twins
from experiments.tables.rows import Arm, arms, database_changes, read

if TYPE_CHECKING:
    from collections.abc import Callable

MARK = re.compile(r"<!-- n (?P<spec>[^>]+?) -->(?P<shown>[^<]*)<!-- /n -->")


def _points(low_high: tuple[float, float] | None) -> str:
    assert low_high is not None, "there is no interval"
    low, high = low_high
    return f"{100 * low:.1f} to {100 * high:.1f}"


def _times(low_high: tuple[float, float] | None) -> str:
    assert low_high is not None, "there are too few chunks for an interval"
    low, high = low_high
    return f"{low:.2f} to {high:.2f}"


MEASURES: dict[str, Callable[[Arm, Arm], str]] = {
    "n": lambda a, _: f"{len(a.bits):,}",
    "right": lambda a, _: f"{100 * a.accuracy:.1f} %",
    "gain": lambda a, b: f"{100 * a.gain(b):+.1f}",
    "gain_ci": lambda a, b: _points(a.gain_interval(b)),
    "won": lambda a, b: f"{a.against(b)[0]}",
    "lost": lambda a, b: f"{a.against(b)[1]}",
    "p": lambda a, b: f"{a.p(b):.2g}",
    "rate": lambda a, _: f"{a.rate:,.0f}",
    "over": lambda a, b: f"{a.over(b):.2f}",
    "over_ci": lambda a, b: _times(a.over_interval(b)),
    "forwards": lambda a, b: f"{100 * a.forwards_per_token / b.forwards_per_token:.1f} %",
    "tokens": lambda a, b: f"{100 * a.num_tokens / b.num_tokens:.0f} %",
    "overrides": lambda a, _: f"{a.num_overrides:,}",
    "per_problem": lambda a, _: f"{a.num_overrides / len(a.bits):.1f}",
}
_OVER_LOSSLESS = ("forwards", "tokens")
TWINS: dict[str, Callable[[str], str]] = {
    "count": lambda pair: f"{twins.found()['pairs'][pair]['twins'].count('1'):,}",
    "share": lambda pair: f"{100 * _share(pair):.0f} %",
    "solved": lambda pair: f"{twins.found()['pairs'][pair]['num_solved']:,}",
    "seen": lambda model: f"{twins.found()['seen_in_training'][model]['num_questions']:,}",
}


def _share(pair: str) -> float:
    bits: str = twins.found()["pairs"][pair]["twins"]
    return bits.count("1") / len(bits)


def pick(name: str, beginning: str, cell: int = 0) -> Arm:
    """The one arm of a result file whose name begins so, or is that."""
    of = arms(name, cell)
    if beginning in of:
        return of[beginning]
    (found,) = (arm for key, arm in of.items() if key.startswith(beginning))
    return found


def value(spec: str) -> str:
    """The text of a marked number."""
    name, arm, measure, *rest = spec.split()
    if name in ("timed", "twins"):
        return TWINS[measure](arm) if name == "twins" else timed.value(spec.partition(" ")[2])
    if name.startswith("heldout_templates_"):
        bits = "".join(read(name)["arms"][arm]["correct"])
        share = f"{100 * bits.count('1') / len(bits):.1f} %"
        return {"n": f"{len(bits):,}", "right": share}[measure]
    name, _, cell = name.partition("#")
    ours = pick(name, arm, int(cell or 0))
    is_target = measure not in _OVER_LOSSLESS and "target" in arms(name, int(cell or 0))
    default = "target" if is_target else "lossless"  # which in float32 has the target's texts
    other = pick(name, rest[0] if rest else default, int(cell or 0))
    if measure in ("of_oracle", "of_either"):
        if measure == "of_oracle":
            most = pick(name, "oracle", int(cell or 0)).gain(other)
        else:  # answers that only the draft has
            most = pick(name, "draft").against(other)[0] / len(ours.bits)
        return f"{100 * ours.gain(other) / most:.0f} %"
    if measure == "p_databases":
        return f"{sign_flip_p([change for change, _ in database_changes(name, ours, other)]):.2g}"
    measure, _, group = measure.partition("@")
    if group:
        gain, won, lost, interval = twins.group_gain(name, ours, other, group)
        return {
            "gain": f"{100 * gain:+.1f}", "won": str(won), "lost": str(lost),
            "templates": _points(interval),
        }[measure]  # fmt: skip
    return MEASURES[measure](ours, other)


def filled(text: str) -> str:
    """A page with every marked number computed anew."""

    def replace(match: re.Match[str]) -> str:
        try:
            shown = value(match["spec"])
        except (KeyError, ValueError) as error:
            raise SystemExit(f"marker '{match['spec']}' cannot be computed: {error!r}") from error
        return f"<!-- n {match['spec']} -->{shown}<!-- /n -->"

    assert text.count("<!-- n ") == len(MARK.findall(text)), "a marker is not closed"
    return MARK.sub(replace, text)
