"""The shared part of both adapters: the arbiter on the engine's device, its counts and its log.

`v1` and `v2` hand in rows and take back edited logits. The mathematics is in `bridge` and
`verdicts`.
"""

from __future__ import annotations

import importlib
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from cospec.arbiters import load_arbiter
from cospec.arbiters.learned import LearnedArbiter
from cospec.errors import ConfigError
from cospec.models import ModelPair
from cospec.types import Needs
from cospec.vllm_plugin.bridge import RowArbiter, RowRulings, VerifiedRows
from cospec.vllm_plugin.decisions import DecisionLog
from cospec.vllm_plugin.metrics import StepCounts
from cospec.vllm_plugin.placing import place
from cospec.vllm_plugin.requests import RequestTable
from cospec.vllm_plugin.rollouts import Recorder
from cospec.vllm_plugin.verdicts import count_step

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from cospec.types import Arbiter
    from cospec.vllm_plugin.settings import Settings

logger = logging.getLogger("vllm.cospec")  # vLLM shows infos of its own loggers alone

_ONLY = {
    "rejection_sample_method": "standard",
    "use_heterogeneous_vocab": False,
    "use_local_argmax_reduction": False,
    "enable_adaptive_verification": False,
    "parallel_drafting": False,
}
"""Options of the speculative configuration that allow one value alone."""
MAX_BLOCK_LENGTH = 128
"""Most drafted tokens a block, which vLLM's rejection sampler asserts (MAX_SPEC_LEN)."""


@dataclass
class Adapter:
    """An arbiter at work in one vLLM worker.

    Attributes:
        row_arbiter: Arbiter that rules on the rows.
        table: The running requests.
        counts: Counts of the steps; None on ranks whose steps another rank counts.
        log: Log of decisions, if there is one.
        recorder: Recorder of the steps of rollouts, in a rollout engine.
        is_reporting: Whether this worker is the one that counts, logs and records.
        more_needs: Inputs that the engine keeps beyond those that arbiters ask for.
    """

    row_arbiter: RowArbiter
    table: RequestTable
    counts: StepCounts | None = None
    log: DecisionLog | None = None
    recorder: Recorder | None = None
    is_reporting: bool = True
    more_needs: Needs = Needs.NOTHING

    @classmethod
    def build(
        cls,
        settings: Settings,
        vllm_config: Any,  # Any: vLLM's VllmConfig
        device: torch.device,
        *,
        is_reporting: bool,
        find_tokenizer: Callable[[], PreTrainedTokenizerBase | None],
    ) -> Adapter:
        """Load the arbiter for an engine.

        Args:
            settings: Settings of the plugin.
            vllm_config: Configuration of the engine.
            device: Device of the worker.
            is_reporting: Whether this worker is the one that counts and logs.
            find_tokenizer: Looks up the target's tokenizer, if a trained arbiter asks for it.

        Raises:
            ConfigError: The engine is set up in a way that the adapter does not support.
            ArbiterError: The arbiter was trained on the hidden states of another pair.
        """
        check_engine(vllm_config)
        arbiter = load(settings.arbiter_spec, vllm_config)
        arbiter = place(arbiter, device, vllm_config.model_config.get_vocab_size(), find_tokenizer)
        check_threshold(arbiter, settings.min_threshold)
        if settings.explore:
            arbiter = exploring(arbiter, settings.explore)
        recorder = None if settings.records is None else Recorder.of(settings.records)
        is_shown = settings.decisions is not None or recorder is not None
        generator = None
        if Needs.UNIFORMS in arbiter.needs or recorder is not None:
            # Alike on all ranks, which rule on the same rows.
            generator = torch.Generator(device).manual_seed(vllm_config.model_config.seed)
        row_arbiter = RowArbiter(
            arbiter,
            vllm_config.speculative_config.num_speculative_tokens,
            exact_prefix_tokens=settings.exact_prefix_tokens,
            generator=generator,
            keep_features=is_reporting and is_shown,
            end_blocks_at_stop=settings.end_blocks_at_stop,
            max_corrections=settings.max_corrections,
        )
        table = RequestTable(
            vllm_config.scheduler_config.max_num_seqs,
            device,
            has_thresholds=isinstance(arbiter, LearnedArbiter),
            min_threshold=settings.min_threshold,
            has_rollouts=recorder is not None,
        )
        adapter = cls(row_arbiter, table, recorder=recorder, is_reporting=is_reporting)
        if is_reporting:
            adapter.counts = StepCounts.for_engine(vllm_config)
            if settings.decisions is not None:
                names = arbiter.features.names if isinstance(arbiter, LearnedArbiter) else ()
                adapter.log = DecisionLog(settings.decisions, arbiter.name, names)
        logger.info("CoSpec: arbiter %s rules in this engine", arbiter.name)
        return adapter

    @property
    def needs(self) -> Needs:
        """Return the inputs kept: the arbiter's, or in a rollout engine those of any to come."""
        needs = self.row_arbiter.arbiter.needs if self.recorder is None else self.recorder.needs
        needs |= self.more_needs
        # The draft's states are kept where its logits are.
        return needs | Needs.DRAFT_LOGITS if Needs.DRAFT_HIDDEN in needs else needs

    def uniforms(
        self,
        slots: Sequence[int],
        num_rows: Sequence[int],
        has_drafts: Sequence[bool],
        device: torch.device,
    ) -> Tensor:
        """Random numbers for a step's rulings, (T,); a rollout draws its own, as in our engine.

        Args:
            slots: Slot of each request, R of them.
            num_rows: Rows of each request, R of them.
            has_drafts: Whether each request has drafts, R of them; else it draws none of its own.
            device: Device of the numbers.
        """
        k, shared = self.row_arbiter.k, self.row_arbiter.generator
        parts = []
        for slot, n, is_drafted in zip(slots, num_rows, has_drafts, strict=True):
            own = self.table.generators.get(slot) if is_drafted else None
            if own is None:
                draw = torch.rand(n, generator=shared, dtype=torch.float64, device=device)
            else:  # The last k of a block's numbers: see `cospec.sampling.Uniforms`.
                drawn = torch.rand(4 * k + 1, generator=own, dtype=torch.float64)[3 * k + 1 :]
                draw = torch.nn.functional.pad(drawn, (0, 1))[:n].to(device)  # and a bonus row
            parts.append(draw)
        return torch.cat(parts)

    def record(
        self,
        slots: Sequence[int],
        num_rows: Sequence[int],
        rows: VerifiedRows,
        rulings: RowRulings,
        sampled: Tensor,
        *,
        is_kept: Tensor | None = None,
    ) -> None:
        """Keep a step for the rollouts among the requests in some slots, if this worker records.

        The other arguments are those of `Recorder.add`.
        """
        if self.recorder is None or not self.is_reporting:
            return
        rollouts = self.table.rollouts
        keys = [rollouts[slot].key if slot in rollouts else "" for slot in slots]
        self.recorder.add(keys, num_rows, rows, rulings, sampled, is_kept=is_kept)

    def admit(
        self,
        slot: int,
        params: Any,  # Any: vLLM's SamplingParams
        prompt_ids: Sequence[int] | None,
        *,
        has_lora: bool,
    ) -> None:
        """Begin a request in a slot; the arguments are `RequestTable.add`'s."""
        self.table.add(slot, params, prompt_ids, self.row_arbiter.arbiter, has_lora=has_lora)

    def count(
        self,
        rows: VerifiedRows,
        rulings: RowRulings,
        num_accepted: Tensor,
        slots: Tensor,
        request_ids: Sequence[str],
        num_rows: Callable[[], Sequence[int]],
    ) -> None:
        """Count and log the outcomes of a step.

        Args:
            rows: The rows.
            rulings: Rulings on the rows.
            num_accepted: Drafted tokens that the engine accepted, by request, (R,).
            slots: Slots of the requests, (R,) int64.
            request_ids: Ids of the requests, R of them.
            num_rows: Returns the number of rows of each request; called only for a log.
        """
        tally = count_step(rows, rulings, num_accepted)
        self.table.add_counts(slots, tally.num_overrides, tally.num_mismatches, tally.is_ended)
        if self.counts is not None:
            self.counts.add(tally.counts, request_ids, tally.num_overrides)
        if self.log is not None:
            logged, arbiter = tally.is_reached, self.row_arbiter.arbiter
            if isinstance(arbiter, LearnedArbiter) and arbiter.explore:  # both rulings, or neither
                is_free = rulings.is_free
                logged = tally.is_counted & (False if is_free is None else is_free)
            pairs = zip(request_ids, num_rows(), strict=True)
            self.log.add(
                [request_id for request_id, n in pairs for _ in range(n)],
                logged,
                positions=rows.positions,
                block_positions=rows.block_positions,
                draft_ids=rows.draft_ids,
                target_ids=rulings.target_ids,
                keep_draft=rulings.keep_draft,
                score=rulings.score,
                features=rulings.features,
                probability=rulings.probability,
            )


def check_engine(vllm_config: Any) -> None:  # Any: vLLM's VllmConfig
    """Raise unless the adapters can work with an engine's configuration.

    Raises:
        ConfigError: The adapters cannot work with it.
    """
    speculative = vllm_config.speculative_config
    if speculative is None:
        raise ConfigError(
            "CoSpec rules on drafted tokens and this engine drafts none; pass a "
            'speculative_config, such as {"method": "draft_model", "model": FOLDER, '
            '"num_speculative_tokens": 6}.'
        )
    check_speculation({n: getattr(speculative, n) for n in _ONLY if hasattr(speculative, n)})
    check_block_length(speculative.num_speculative_tokens)


def check_speculation(options: Mapping[str, object]) -> None:
    """Refuse options of vLLM's speculative configuration that the plugin cannot work with.

    Args:
        options: Values by name; others may be among them.

    Raises:
        ConfigError: There is such an option.
    """
    for name, allowed in _ONLY.items():
        if (value := options.get(name)) not in (None, allowed):
            raise ConfigError(
                f"{name} of the speculative_config is {value!r}; with CoSpec it must be "
                f"{allowed!r}."
            )


def check_block_length(k: int) -> None:
    """Raise if blocks are longer than vLLM's sampler takes.

    Raises:
        ConfigError: The blocks are longer.
    """
    if k > MAX_BLOCK_LENGTH:
        raise ConfigError(
            f"num_speculative_tokens is {k}; vLLM's sampler takes at most {MAX_BLOCK_LENGTH}."
        )


def load(spec: str, vllm_config: Any) -> Arbiter:  # Any: vLLM's VllmConfig
    """Load an arbiter; one that rules by hidden states must have been trained on this pair.

    vLLM lays weights out in its own way. So both checkpoints are read on the CPU once more, to
    compare the pair with that of the training, and to take the target's embeddings.

    Raises:
        ArbiterError: The arbiter was trained on the hidden states of another pair.
    """
    arbiter = load_arbiter(spec)
    if not arbiter.needs & Needs.HIDDEN:
        return arbiter
    target, draft = vllm_config.model_config, vllm_config.speculative_config.draft_model_config
    pair = ModelPair.from_pretrained(target.model, draft.model, dtype=target.dtype, device="cpu")
    return load_arbiter(spec, pair)


def check_threshold(arbiter: Arbiter, lowest: float) -> None:
    """Raise if the arbiter's own threshold is below the lowest that a request may set.

    Raises:
        ConfigError: It is, or the arbiter has no threshold.
    """
    if lowest and not isinstance(arbiter, LearnedArbiter):
        raise ConfigError(
            f"min_threshold is {lowest:g} and the arbiter is {arbiter.name}, which has no "
            "threshold for requests; serve a trained arbiter, or leave min_threshold out."
        )
    if isinstance(arbiter, LearnedArbiter) and arbiter.threshold < lowest:
        raise ConfigError(
            f"the arbiter's threshold is {arbiter.threshold:g} and min_threshold {lowest:g}, which "
            f"binds requests only; set threshold to {lowest:g} or more as well."
        )


def exploring(arbiter: Arbiter, share: float) -> Arbiter:
    """Return an arbiter that leaves a share of its rulings to its policy's coin.

    Raises:
        ConfigError: The arbiter has no policy.
    """
    if not isinstance(arbiter, LearnedArbiter):
        raise ConfigError(
            f"explore is {share} and the arbiter is {arbiter.name}, which has no policy to toss a "
            "coin by; serve a trained arbiter, or leave explore out."
        )
    return replace(arbiter, explore=share)


def to_device(values: Sequence[int] | np.ndarray[Any, Any], device: torch.device) -> Tensor:
    """Copy integers from the host to a device, as int64 and without waiting for it."""
    host = torch.as_tensor(values, dtype=torch.int64)
    if device.type != "cuda":
        return host.to(device)
    return host.pin_memory().to(device, non_blocking=True)


def is_first_tensor_rank() -> bool:
    """Return whether this worker counts and logs for its tensor-parallel group."""
    group = importlib.import_module("vllm.distributed.parallel_state").get_tp_group()
    return bool(group.rank_in_group == 0)


def tokenizer_of(vllm_config: Any) -> Any:  # Any: vLLM's VllmConfig; its tokenizer or None
    """The target's tokenizer, as vLLM loads it."""
    registry = importlib.import_module("vllm.tokenizers.registry")
    return registry.cached_tokenizer_from_config(vllm_config.model_config)
