"""The table of running requests, one slot each, on the device.

vLLM's runners keep their requests in slots or lists of their own; `v1` and `v2` map them to the
slots of this table. Sampling parameters are read by their public names only; this file loads
without vLLM.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from cospec.arbiters.guard import SelectiveArbiter
from cospec.config import SamplingConfig
from cospec.errors import ConfigError
from cospec.sampling import row_generator
from cospec.vllm_plugin.settings import RequestSettings, RolloutRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from cospec.types import Arbiter

logger = logging.getLogger(__name__)

_NUMBERS = ("num_overrides", "num_mismatches", "is_ended", "is_open", "max_tokens", "num_before")
"""Integers of each request, the counts of its steps first; `is_ended` counts its ends."""
NOTHING_BEFORE = RolloutRequest("", 0, 0)

MAX_STOP_IDS = 64
"""Most stop tokens of a request that an arbiter may rule on. The table is as wide as its widest
request so far, for all requests, so this bounds its width."""


@dataclass(frozen=True, slots=True)
class RequestColumns:
    """Some requests, one entry a row: see `cospec.vllm_plugin.bridge.VerifiedRows`."""

    num_overrides: Tensor
    num_mismatches: Tensor
    is_open: Tensor
    stop_ids: Tensor
    max_tokens: Tensor
    num_before: Tensor
    is_ended: Tensor
    thresholds: Tensor | None


class Progress(NamedTuple):
    """State of a request that outlives its slot."""

    counts: Tensor
    """Overrides and reached mismatches, (2,) int64."""
    generator: torch.Generator | None
    """Random generator of its rulings, if it is a rollout."""


class RequestTable:
    """The running requests of an engine.

    Args:
        num_slots: Number of slots to begin with; more are added when needed.
        device: Device of the columns.
        has_thresholds: Whether the arbiter has a threshold that a request can change.
        min_threshold: Lowest threshold that a request gets.
        has_rollouts: Whether requests may be rollouts.

    Attributes:
        rollouts: Requests whose decisions are recorded, by slot.
        generators: Random generators of their rulings on the host, by slot.
    """

    def __init__(
        self,
        num_slots: int,
        device: torch.device,
        *,
        has_thresholds: bool,
        min_threshold: float = 0.0,
        has_rollouts: bool = False,
    ) -> None:
        self._has_thresholds, self._min_threshold = has_thresholds, min_threshold
        self._has_rollouts = has_rollouts
        self._numbers = torch.zeros(len(_NUMBERS), num_slots, dtype=torch.int64, device=device)
        self._thresholds = torch.full((num_slots,), float("nan"), device=device)
        self._stop_ids = torch.full((num_slots, 1), -1, dtype=torch.int64, device=device)
        self.rollouts: dict[int, RolloutRequest] = {}
        self.generators: dict[int, torch.Generator] = {}

    @property
    def num_slots(self) -> int:
        """Number of slots that there is room for."""
        return self._numbers.shape[1]

    def add(
        self,
        slot: int,
        params: Any,  # Any: vLLM's SamplingParams
        prompt_ids: Sequence[int] | None = None,
        arbiter: Arbiter | None = None,
        *,
        has_lora: bool = False,
    ) -> None:
        """Begin a request in a slot, in place of the one before.

        Args:
            slot: Slot of the request.
            params: Its sampling parameters, with the model's stop tokens filled in as vLLM does.
            prompt_ids: Token ids of its prompt; None if it has embeddings alone.
            arbiter: Arbiter that rules, and may stand back from that prompt.
            has_lora: Whether an adapter changes the target for this request, which is then decoded
                losslessly.
        """
        settings = _settings_of(params)
        stop_ids = _stop_ids_of(params)
        is_open = settings.enabled and is_plain(params) and not has_lora
        if settings.threshold is not None and not self._has_thresholds:
            logger.warning(  # the server refuses it; engines in Python may have no such check
                "CoSpec decodes a request losslessly: it wants threshold %g, and a rule has none",
                settings.threshold,
            )
            is_open = False
        is_open = is_open and len(stop_ids) <= MAX_STOP_IDS
        if len(stop_ids) > MAX_STOP_IDS:
            logger.warning(
                "CoSpec decodes a request losslessly: it has %d stop tokens, and an arbiter rules "
                "with at most %d.",
                len(stop_ids),
                MAX_STOP_IDS,
            )
            stop_ids = stop_ids[:MAX_STOP_IDS]
        self._make_room(slot + 1, len(stop_ids))
        before = self._begin_rollout(slot, settings.rollout)
        if isinstance(arbiter, SelectiveArbiter):
            prompt_ids = prompt_ids or []
            prompt_ids = prompt_ids[: len(prompt_ids) - before.num_before]
            is_open = is_open and not arbiter.is_foreign(prompt_ids)
        max_tokens = 2**62 if params.max_tokens is None else params.max_tokens
        numbers = {
            "num_overrides": before.num_overrides,
            "num_mismatches": before.num_mismatches,
            "is_open": is_open,
            "max_tokens": before.num_before + max_tokens,
            "num_before": before.num_before,
            "is_ended": False,
        }
        self._numbers[:, slot] = torch.tensor([int(numbers[name]) for name in _NUMBERS])
        asked = settings.threshold
        self._thresholds[slot] = float("nan") if asked is None else max(asked, self._min_threshold)
        self._stop_ids[slot] = -1
        if stop_ids:
            ids = torch.tensor(stop_ids, device=self._stop_ids.device)
            self._stop_ids[slot, : len(stop_ids)] = ids

    def _begin_rollout(self, slot: int, rollout: RolloutRequest | None) -> RolloutRequest:
        """Remember the rollout of a slot, if it is one; return the counts before its request."""
        self.rollouts.pop(slot, None)
        self.generators.pop(slot, None)
        if rollout is None or not self._has_rollouts:
            return NOTHING_BEFORE
        self.rollouts[slot] = rollout
        self.generators[slot] = row_generator(SamplingConfig(seed=rollout.seed), rollout.stream)
        return rollout

    def columns(self, slots: Tensor) -> RequestColumns:
        """Return the columns of the requests in some slots.

        Args:
            slots: Slot of each row, (T,) int64, on the device.
        """
        numbers = dict(zip(_NUMBERS, self._numbers[:, slots].unbind(), strict=True))
        return RequestColumns(
            num_overrides=numbers["num_overrides"],
            num_mismatches=numbers["num_mismatches"],
            is_open=numbers["is_open"] != 0,
            stop_ids=self._stop_ids[slots],
            max_tokens=numbers["max_tokens"],
            num_before=numbers["num_before"],
            is_ended=numbers["is_ended"] != 0,
            thresholds=self._thresholds[slots] if self._has_thresholds else None,
        )

    def progress(self, slot: int) -> Progress:
        """Return how far a request is, to go on with after it was preempted."""
        return Progress(self._numbers[:2, slot].clone(), self.generators.get(slot))

    def restore(self, slot: int, progress: Progress) -> None:
        """Let a request that was added anew go on from where it was."""
        self._numbers[:2, slot] = progress.counts
        if progress.generator is not None:
            self.generators[slot] = progress.generator

    def add_counts(
        self, slots: Tensor, num_overrides: Tensor, num_mismatches: Tensor, is_ended: Tensor
    ) -> None:
        """Add the counts of a step, (R,) each, to the requests in `slots`; see `verdicts.Tally`."""
        counts = torch.stack([num_overrides, num_mismatches, is_ended.long()])
        self._numbers[: len(counts)].index_add_(1, slots, counts)

    def _make_room(self, num_slots: int, num_stop_ids: int) -> None:
        """Widen the columns; their length at least doubles, so that this is rare."""
        more = 0 if num_slots <= self.num_slots else max(num_slots, 2 * self.num_slots)
        if more:
            more -= self.num_slots
            pad = torch.nn.functional.pad
            self._numbers = pad(self._numbers, (0, more))
            self._thresholds = pad(self._thresholds, (0, more), value=float("nan"))
            self._stop_ids = pad(self._stop_ids, (0, 0, 0, more), value=-1)
        wider = num_stop_ids - self._stop_ids.shape[1]
        if wider > 0:
            self._stop_ids = torch.nn.functional.pad(self._stop_ids, (0, wider), value=-1)


def is_plain(params: Any) -> bool:  # Any: vLLM's SamplingParams
    """Return whether a request's logits are the model's own, so that an arbiter may rule on them.

    Grammars, penalties, bad words, allowed tokens, biases and a minimum length change the target's
    distribution; such requests are decoded losslessly.
    """
    changes = (
        params.presence_penalty,
        params.frequency_penalty,
        params.repetition_penalty != 1.0,
        params.bad_words,
        params.allowed_token_ids,
        params.logit_bias,
        params.structured_outputs,
        params.min_tokens,
        getattr(params, "thinking_token_budget", None) is not None,
    )
    return not any(changes)


def _settings_of(params: Any) -> RequestSettings:  # Any: vLLM's SamplingParams
    """Read a request's settings; the server refuses bad ones, which here decode losslessly."""
    try:
        return RequestSettings.from_extra_args(params.extra_args)
    except ConfigError as error:
        logger.warning("CoSpec decodes a request losslessly: %s", error)
        return RequestSettings(enabled=False)


def _stop_ids_of(params: Any) -> list[int]:  # Any: vLLM's SamplingParams
    """Return the tokens that end the request, the model's own first."""
    stop_ids: Sequence[int] = params.stop_token_ids or ()
    eos = params.eos_token_id  # None if it is ignored
    return list(dict.fromkeys(stop_ids if eos is None else [eos, *stop_ids]))
