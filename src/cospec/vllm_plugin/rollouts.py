"""The worker's part of rollouts: the rulings of each step, kept until they are taken.

`Recorder` keeps the steps, `RolloutWorker` gives vLLM's workers the methods by which
`cospec.vllm_plugin.backend` hands arbiters over and takes the steps back (``worker_extension_cls``
and ``collective_rpc``, which vLLM has for such things). `keep_drafts` repairs a fault that would
make a ruling depend on the other requests in the batch.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from cospec.errors import ConfigError
from cospec.rulings import token_probs
from cospec.types import Needs
from cospec.vllm_plugin.metrics import HostQueue
from cospec.vllm_plugin.parcels import Receiver

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from cospec.types import Arbiter
    from cospec.vllm_plugin.bridge import RowRulings, VerifiedRows


class RecordedStep(NamedTuple):
    """A verify step, on the host; T rows, R requests."""

    keys: list[str]
    """Name of each request, R of them; empty for one that is not recorded."""
    num_rows: list[int]
    """Rows of each request, R of them."""
    sampled: Tensor
    """Tokens that the engine emitted, (R, K + 1), -1 after the last."""
    integers: Tensor
    """Position, drafted token (-1 for padding), target's token, veto, and whether it is a mismatch,
    is finite, is kept and is open, (T, 8) int64."""
    reals: Tensor
    """Score (NaN if there is none), p and q of both tokens: (T, 5) float64."""
    features: Tensor | None
    """Features that the arbiter saw at the M mismatches, in the order of their rows, (M, F)
    float32; None if it does not return them."""


@dataclass
class Recorder:
    """Steps that were recorded and not taken yet.

    Attributes:
        needs: Inputs that arbiters may ask for in this engine.
    """

    needs: Needs
    receiver: Receiver = field(default_factory=Receiver)
    _steps: list[RecordedStep] = field(default_factory=list)
    _queue: HostQueue = field(default_factory=HostQueue)

    @classmethod
    def of(cls, records: str) -> Recorder:
        """Return the recorder of an engine whose arbiters may see ``scalar`` or ``hidden``."""
        needs = Needs.LOGITS | Needs.LOOKAHEAD | Needs.UNIFORMS | Needs.BLOCK_LOG_Q
        return cls(needs | Needs.HIDDEN if records == "hidden" else needs)

    def check(self, arbiter: Arbiter) -> None:
        """Refuse an arbiter that asks for more than the engine keeps.

        Raises:
            ConfigError: The arbiter asks for more.
        """
        if missing := arbiter.needs & ~self.needs:
            raise ConfigError(
                f"arbiter {arbiter.name} needs {missing.name}, and this engine was started for "
                "scalar features; start it for hidden ones (cospec train --features hidden)."
            )

    def add(
        self,
        keys: list[str],
        num_rows: Sequence[int],
        rows: VerifiedRows,
        rulings: RowRulings,
        sampled: Tensor,
        *,
        is_kept: Tensor | None = None,
    ) -> None:
        """Keep a step, once it has come to the host.

        Args:
            keys: As in `RecordedStep`.
            num_rows: As in `RecordedStep`.
            rows: Rows that were ruled on.
            rulings: Rulings on them.
            sampled: As in `RecordedStep`.
            is_kept: The rows that are kept, bool; all of them by default. Mismatches always are.
        """
        none = torch.zeros_like(rows.draft_ids)
        veto, is_open = (none if x is None else x for x in (rulings.vetoes, rulings.is_free))
        is_finite = rows.target_logits.amax(dim=1).isfinite()
        flags = [rulings.is_mismatch, is_finite, rulings.keep_draft, is_open]
        drafted = torch.where(rows.is_drafted, rows.draft_ids, -1)
        columns = [rows.positions, drafted, rulings.target_ids, veto, *flags]
        integers = torch.stack([column.long() for column in columns], dim=1)
        ids = torch.stack([rows.safe_ids, rulings.target_ids], dim=1)  # (T, 2)
        nan = torch.full_like(ids, torch.nan, dtype=torch.float64)
        q = nan if rows.draft_logits is None else token_probs(rows.draft_logits, ids)
        score = nan[:, 0] if rulings.score is None else rulings.score.double()
        p = token_probs(rows.target_logits, ids)
        reals = torch.cat([score[:, None], p, q], dim=1)
        shown = []  # mismatches alone: with hidden states a row has tens of thousands of numbers
        if rulings.features is not None:
            shown = [rulings.features.float()[rulings.is_mismatch]]
        if is_kept is not None:
            integers, reals = integers[is_kept], reals[is_kept]
        counts = list(num_rows)

        def use(hosts: list[Tensor]) -> None:
            features = hosts[3] if shown else None
            self._steps.append(RecordedStep(keys, counts, hosts[0], hosts[1], hosts[2], features))

        self._queue.put([sampled, integers, reals, *shown], use)

    def take(self) -> list[RecordedStep]:
        """Return the steps and forget them."""
        self._queue.flush()
        steps, self._steps = self._steps, []
        return steps


class RolloutWorker:
    """Methods of the workers of a rollout engine; vLLM adds them to its own worker class."""

    model_runner: Any  # vLLM's GPUModelRunner

    def cospec_use_arbiter(self, parcel: bytes, exact_prefix_tokens: int) -> None:
        """Rule with another arbiter from now on.

        Args:
            parcel: Arbiter, as packed by `parcels.Sender`.
            exact_prefix_tokens: Number of first tokens of each text that stay lossless.
        """
        from cospec.vllm_plugin.placing import place  # noqa: PLC0415  # the class must load fast

        sampler = getattr(self.model_runner, "rejection_sampler", None)
        if sampler is None:  # a pipeline stage that does not sample
            return
        adapter = sampler.adapter
        arbiter = adapter.recorder.receiver.unpack(parcel)
        adapter.recorder.check(arbiter)
        vocab_size = self.model_runner.model_config.get_vocab_size()
        adapter.row_arbiter = replace(
            adapter.row_arbiter,
            arbiter=place(arbiter, self.model_runner.device, vocab_size, lambda: None),
            exact_prefix_tokens=exact_prefix_tokens,
        )

    def cospec_take_steps(self) -> bytes | None:
        """Return the steps since the last call, pickled; None from ranks that do not record."""
        sampler = getattr(self.model_runner, "rejection_sampler", None)
        if sampler is None or not sampler.adapter.is_reporting:
            return None
        return pickle.dumps(sampler.adapter.recorder.take())


def keep_drafts(runner: Any) -> None:  # Any: vLLM's GPUModelRunner
    """Keep the draft's logits for each request until its drafts are verified.

    vLLM keeps those of its last drafting step alone. If a request was left out of that step (for
    want of room in the batch), or has placeholders in place of drafts, the logits of all requests
    are missing when it is verified, and nothing can be ruled on. Placeholders get logits of 0, and
    the sampler is told whose they are.
    """
    stock = runner._get_spec_decode_draft_probs
    kept: dict[str, Tensor] = {}

    def is_drafted(place: int, request_id: str) -> bool:
        """Tell whether a request has drafts: one that waited for a step may have lost them."""
        if request_id in runner._draft_prob_req_ids:
            return True
        is_waiting = request_id in kept and not runner.use_async_scheduling
        return is_waiting and runner.input_batch.spec_token_ids[place][0] >= 0

    def draft_probs(metadata: Any) -> Tensor | None:  # Any: vLLM's SpecDecodeMetadata
        sampler = runner.rejection_sampler
        sampler.placeholders = set()
        for request_id in sampler.undrafted:  # their placeholders have none
            kept.pop(request_id, None)
        if runner._draft_probs is None or runner._draft_prob_req_ids is None:
            found: Tensor | None = stock(metadata)  # no logits: near the context's end
            return found
        for i, request_id in enumerate(runner._draft_prob_req_ids):
            kept[request_id] = runner._draft_probs[i]
        for request_id in [one for one in kept if one not in runner.requests]:
            del kept[request_id]
        for request_id in set(kept) - set(runner._draft_prob_req_ids):
            one = kept[request_id]
            if one.untyped_storage().nbytes() > one.nbytes:  # a view keeps a whole batch's
                kept[request_id] = one.clone()
        parts = []
        wanted = zip(runner.input_batch.req_ids, metadata.num_draft_tokens, strict=False)
        for place, (request_id, n) in enumerate(wanted):
            if n and is_drafted(place, request_id):
                parts.append(kept[request_id][:n])
            elif n:
                sampler.placeholders.add(request_id)
                parts.append(runner._draft_probs.new_zeros(n, runner._draft_probs.shape[-1]))
        return torch.cat(parts).contiguous() if parts else None

    runner._get_spec_decode_draft_probs = draft_probs
