"""Measured costs of a pair's forwards on this machine, and the largest speed-up that they allow.

A block of k costs k draft steps and one target forward over k + 1 tokens; plain decoding costs one
target forward over one token for each. Everything else (prompts, sampling, Python) is left out, so
the bound depends on the models alone (Leviathan et al., 2211.17192, section 3.3, with the measured
cost of a longer forward in place of a constant).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
import torch

from cospec.models.cache import CachedModel
from cospec.models.shortlist import shortlist_of, using

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

    from cospec.models.pair import ModelPair

_CONTEXT = 256
"""Tokens in the cache if nothing is known about the texts."""
_NUM_WARM = 2
"""First trials, which warm up and are left out."""
_LEAST_TRIALS, _ENOUGH_S = 3, 60.0
"""Trials that are made in any case, and seconds after which no other one begins."""
_TOKEN_COSTS: WeakKeyDictionary[
    PreTrainedModel, WeakKeyDictionary[PreTrainedModel, dict[tuple[int, int], float]]
] = WeakKeyDictionary()
"""Costs by draft, then by target, then by k and batch size."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Median seconds of forwards of a pair, all rows together."""

    batch_size: int
    """Rows of a forward."""
    context: int
    """Tokens in the cache before it."""
    draft_step_s: float
    """One draft forward over one token per row."""
    verify_s: list[float]
    """Entry n - 1: one target forward over n tokens per row, with all logits."""

    def bound(self, acceptance_length: float, num_drafted: float, num_steps: float) -> float:
        """Speed-up over the target alone if nothing but these forwards took time.

        Args:
            acceptance_length: Tokens per block.
            num_drafted: Drafted tokens per block, which the target reads.
            num_steps: Draft steps per block; fewer than `num_drafted` where tokens were looked up.
        """
        lengths = np.arange(len(self.verify_s))
        verify_s = float(np.interp(num_drafted, lengths, self.verify_s))
        return acceptance_length * self.verify_s[0] / (num_steps * self.draft_step_s + verify_s)


def token_cost(pair: ModelPair, k: int, batch_size: int) -> float:
    """Return the cost of one more drafted token in target steps, measured once per process.

    Args:
        pair: The models.
        k: Longest block.
        batch_size: Rows of every forward.
    """
    by_target = _TOKEN_COSTS.setdefault(pair.draft_model, WeakKeyDictionary())
    known, key = by_target.setdefault(pair.target, {}), (k, batch_size)
    if key not in known:
        draft, one, most = _medians(pair, (1, k + 1), _CONTEXT, batch_size, num_trials=5)[1]
        known[key] = (draft + max(0.0, most - one) / k) / one
    return known[key]


def measure_costs(
    pair: ModelPair, *, max_tokens: int, context: int, batch_size: int = 1, num_trials: int = 15
) -> Costs:
    """Time a draft step and target forwards over 1 to `max_tokens` tokens, taking turns.

    Args:
        pair: The models.
        max_tokens: Longest target forward.
        context: Tokens in the cache; cut to what the pair's context holds.
        batch_size: Rows of every forward.
        num_trials: Trials of each forward, or three if these took a minute. Two more warm up.
    """
    lengths = range(1, max_tokens + 1)
    context, (draft, *verify) = _medians(pair, lengths, context, batch_size, num_trials)
    return Costs(batch_size, context, draft, verify)


@torch.inference_mode()
def _medians(
    pair: ModelPair, lengths: Sequence[int], context: int, batch_size: int, num_trials: int
) -> tuple[int, list[float]]:
    """Return the context, and seconds of a draft step and of target forwards of some lengths."""
    longest = max(lengths)
    context = max(1, min(context, pair.context_length - longest))
    target = _filled(pair.target, context, batch_size, longest)
    steps = [(_filled(pair.draft_model, context, batch_size, 1), 1)]
    steps += [(target, n) for n in lengths]
    seconds: list[list[float]] = [[] for _ in steps]
    start = time.monotonic()
    for trial in range(num_trials + _NUM_WARM):
        if trial >= _NUM_WARM + _LEAST_TRIALS and time.monotonic() - start > _ENOUGH_S:
            break
        for (cached, n), found in zip(steps, seconds, strict=True):
            found.append(_seconds(cached, context, batch_size, n))
    return context, [median(found[_NUM_WARM:]) for found in seconds]


def _filled(model: PreTrainedModel, context: int, batch_size: int, num_tokens: int) -> CachedModel:
    """Return a model that has read `context` tokens per row and has room for `num_tokens` more."""
    cached = CachedModel(model)
    ids = torch.arange(batch_size * context).view(batch_size, context) * 7 % cached.vocab_size
    cached.reserve(batch_size, context + num_tokens)
    cached.prefill(ids.tolist(), 0)
    return cached


def _seconds(cached: CachedModel, context: int, batch_size: int, num_tokens: int) -> float:
    """Time a forward over `num_tokens` tokens per row, which overwrite those of the last one."""
    ids = torch.arange(batch_size, device=cached.device)[:, None].expand(-1, num_tokens)
    ids = ids % cached.vocab_size
    short = shortlist_of(cached.model)
    synchronize(cached.device)
    start = time.perf_counter()
    window = cached.window([context] * batch_size, num_tokens)
    with using(short):
        cached.read(ids, window, num_tokens)
    synchronize(cached.device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait until a device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
