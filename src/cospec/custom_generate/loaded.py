"""Trained arbiters that are kept from one call of ``generate`` to the next."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

from cospec.arbiters import load_arbiter
from cospec.arbiters.checkpoint import CONFIG, WEIGHTS
from cospec.arbiters.learned import LearnedArbiter

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from cospec.models import ModelPair
    from cospec.types import Arbiter

_State: TypeAlias = "tuple[object, ...]"
_MOST = 4
"""Arbiters that are kept for one target."""


class _Loaded(NamedTuple):
    """An arbiter, and what it was loaded for. It holds no model, so that models can be freed."""

    arbiter: LearnedArbiter
    tokenizer: PreTrainedTokenizerBase | None
    state: _State


_LOADED: WeakKeyDictionary[PreTrainedModel, dict[str, _Loaded]] = WeakKeyDictionary()
"""By target and spec; the one that was used last comes last."""


def arbiter_for(spec: str, pair: ModelPair) -> Arbiter:
    """Load an arbiter, or return the one that an earlier call loaded for these models.

    A trained one is loaded again where its files have changed since, or the weights, the device or
    the tokenizer of the pair. The hub is asked for a repository once a target, and not again.

    Args:
        spec: As for `load_arbiter`; a revision of the hub is part of it.
        pair: What it will rule on.
    """
    known = _LOADED.setdefault(pair.target, {})
    last = known.pop(spec, None)
    if (
        last is None
        or last.tokenizer is not pair.tokenizer
        or last.state != _state(last.arbiter, pair)
    ):
        arbiter = load_arbiter(spec, pair)
        if not isinstance(arbiter, LearnedArbiter) or arbiter.folder is None:
            return arbiter  # a rule, or one of another package, which may hold anything
        last = _Loaded(arbiter, pair.tokenizer, _state(arbiter, pair))
    known[spec] = last
    while len(known) > _MOST:
        known.pop(next(iter(known)), None)
    return last.arbiter


def _state(arbiter: LearnedArbiter, pair: ModelPair) -> _State:
    """Return what tells whether files, weights and device are those that it was loaded from."""
    assert arbiter.folder is not None, "it was loaded"
    files = (_stamp(arbiter.folder / name) for name in (CONFIG, WEIGHTS))
    return pair.fingerprint, str(pair.target.device), *files


def _stamp(path: Path) -> tuple[int, ...] | None:
    """Return what tells a file from another in its place; None if there is none."""
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_mtime_ns, about.st_size, about.st_ino
