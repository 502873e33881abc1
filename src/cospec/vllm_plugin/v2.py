"""The arbiter in vLLM's second model runner: the default on CUDA, the only one since vLLM 0.34.

The rows of a request include its bonus row, the token that was drafted from a row is read by the
next row, and requests have slots of their own. The draft's logits are a cache that the runner keeps
when told to sample drafts (``"draft_sample_method": "probabilistic"``), and an arbiter that needs
them asks for that option. Hidden states come from `HiddenStates`, rollouts from `v2_rollouts`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from vllm.v1.worker.gpu.spec_decode import rejection_sampler as sampler_module

from cospec.errors import ConfigError
from cospec.types import Needs
from cospec.vllm_plugin.adapter import Adapter, is_first_tensor_rank, tokenizer_of
from cospec.vllm_plugin.blocks import ending
from cospec.vllm_plugin.bridge import VerifiedRows
from cospec.vllm_plugin.known import require
from cospec.vllm_plugin.v2_blocks import EndingBlocks
from cospec.vllm_plugin.v2_hidden import HiddenStates
from cospec.vllm_plugin.v2_rollouts import record, with_uniforms
from cospec.vllm_plugin.verdicts import ended_before, force

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from cospec.config import DecodeConfig
    from cospec.vllm_plugin.bridge import RowRulings
    from cospec.vllm_plugin.requests import Progress
    from cospec.vllm_plugin.settings import Settings

WARM_UP = "_warmup_"
"""Prefix of the request ids in vLLM's warm-up."""
RUNNER_NAMES = (
    "sampler.sampling_states.temperature.gpu",
    "sampler.sampling_states.temperature.np",
    "sampler.sampling_states.seeds.gpu",
    "sampler.use_fp64_gumbel",
    "sampler.add_request",
    "add_requests",
    "finish_requests",
    "req_states.prompt_len.gpu",
    "req_states.index_to_req_id",
    "req_states.req_id_to_index",
    "rejection_sampler.num_speculative_steps",
    "rejection_sampler.watermark_key",
    "speculator.draft_logits",
)


def install(
    runner: Any,  # Any: vLLM's second GPUModelRunner
    settings: Settings,
    vllm_config: Any,  # Any: vLLM's VllmConfig
) -> None:
    """Put the arbiter into a runner, once it has loaded its models and made its samplers.

    Raises:
        ConfigError: The engine is not one that we support.
    """
    if getattr(vllm_config.parallel_config, "enable_batch_sharded_sampling", False):
        raise ConfigError("CoSpec does not rule in a sharded batch; drop batch-sharded sampling.")
    adapter = Adapter.build(
        settings,
        vllm_config,
        runner.device,
        is_reporting=runner.is_last_pp_rank and is_first_tensor_rank(),
        find_tokenizer=lambda: tokenizer_of(vllm_config),
    )
    blocks = _ending(runner, settings, vllm_config)
    stock = runner.load_model

    def load_model(*args: Any, **kwargs: Any) -> None:  # Any: whatever the worker passes
        stock(*args, **kwargs)
        if runner.is_last_pp_rank:
            attach(runner, adapter, blocks)

    runner.load_model = load_model


def _ending(
    runner: Any,  # Any: vLLM's second GPUModelRunner
    settings: Settings,
    vllm_config: Any,  # Any: vLLM's VllmConfig
) -> DecodeConfig | None:
    """Return the options that end blocks in a runner; None if it drafts whole ones.

    Raises:
        ConfigError: The runner cannot end its blocks, and a confidence threshold is set; or it is
            to guess.
    """
    if settings.cascade:
        raise ConfigError(
            "cascade needs vLLM's first model runner: install vLLM 0.32 or 0.33 and set "
            "VLLM_USE_V2_MODEL_RUNNER=0, or leave cascade out."
        )
    if hasattr(runner.draft_tokens_handler, "_draft_tokens_by_req"):
        return ending(settings, vllm_config)
    if settings.draft_confidence_threshold:  # vLLM 0.32 and 0.33
        raise ConfigError(
            "draft_confidence_threshold needs another model runner: set "
            "VLLM_USE_V2_MODEL_RUNNER=0, or install vLLM 0.34."
        )
    return None


def attach(
    runner: Any,  # Any: vLLM's second GPUModelRunner
    adapter: Adapter,
    blocks: DecodeConfig | None = None,
) -> None:
    """Let the arbiter rule on the tokens that a loaded runner verifies.

    Args:
        runner: The runner.
        adapter: The arbiter.
        blocks: Options that end blocks, if the runner's blocks end by themselves.

    Raises:
        ConfigError: The runner verifies in a way that we do not know, or keeps no draft logits for
            an arbiter or for blocks that need them.
    """
    require(runner, RUNNER_NAMES)
    stock = runner.rejection_sampler
    is_plain = type(stock) is sampler_module.RejectionSampler and stock.watermark_key is None
    if not is_plain or getattr(stock.sampler, "trace_replay_state", None) is not None:
        raise ConfigError(
            f"this model is verified by {type(stock).__name__}, with a watermark, a trace to "
            "replay or a sampler of its own; CoSpec rules beside vLLM's plain rejection sampler "
            "only."
        )
    arbiter = adapter.row_arbiter.arbiter
    for what, is_needed in (
        (f"arbiter {arbiter.name}", Needs.DRAFT_LOGITS in adapter.needs),
        ("a block that ends where the draft is unsure", blocks and blocks.ends_by_confidence),
    ):
        if is_needed and runner.speculator.draft_logits is None:
            raise ConfigError(
                f"{what} needs the draft's logits, which vLLM keeps only with "
                '"draft_sample_method": "probabilistic" in the speculative_config; add that.'
            )
    if blocks is not None and hasattr(runner.speculator, "_multi_step_decode"):
        EndingBlocks(runner, adapter.table, blocks)
    follow_requests(runner, adapter)
    hidden = HiddenStates(runner) if adapter.needs & Needs.HIDDEN else None
    runner.rejection_sampler = ArbiterSampler(stock, adapter, runner.req_states, hidden)


def follow_requests(runner: Any, adapter: Adapter) -> None:  # Any: vLLM's second GPUModelRunner
    """Keep the adapter's table of requests as the runner keeps its own."""
    add_requests, add_request = runner.add_requests, runner.sampler.add_request
    finish_requests = runner.finish_requests
    new: dict[str, Any] = {}  # Any: vLLM's NewRequestData
    preempted: dict[str, Progress] = {}

    def add_all(scheduler_output: Any) -> None:  # Any: vLLM's SchedulerOutput
        new.update((one.req_id, one) for one in scheduler_output.scheduled_new_reqs)
        add_requests(scheduler_output)
        new.clear()

    def add(req_idx: int, sampling_params: Any) -> None:  # Any: vLLM's SamplingParams
        add_request(req_idx, sampling_params)
        one = new[runner.req_states.index_to_req_id[req_idx]]
        has_lora = one.lora_request is not None
        adapter.admit(req_idx, sampling_params, one.prompt_token_ids, has_lora=has_lora)
        if (progress := preempted.pop(one.req_id, None)) is not None:
            adapter.table.restore(req_idx, progress)

    def finish(scheduler_output: Any) -> None:  # Any: vLLM's SchedulerOutput
        slots = runner.req_states.req_id_to_index
        for request_id in scheduler_output.preempted_req_ids or ():  # they come back as new ones
            if request_id in slots:
                preempted[request_id] = adapter.table.progress(slots[request_id])
        for request_id in scheduler_output.finished_req_ids:
            preempted.pop(request_id, None)
        finish_requests(scheduler_output)

    runner.add_requests, runner.sampler.add_request = add_all, add
    runner.finish_requests = finish


class FlatRows(NamedTuple):
    """Rows of logits as the runner lays them out; N of them, of R requests."""

    read_ids: Tensor
    """The token that each row has read, (N,) int64; -1 for a placeholder."""
    draft_ids: Tensor
    """The token drafted from each row, which the next row has read, (N,) int64."""
    is_drafted: Tensor
    """True if a token was drafted, (N,) bool; False in bonus rows and for placeholders."""
    requests: Tensor
    """Request of each row, (N,) int64."""


def flatten(draft_sampled: Tensor, cu_num_logits: Tensor) -> FlatRows:
    """Find the token that was drafted from each row of logits.

    Args:
        draft_sampled: The token that each row has read, -1 for a placeholder, (N,).
        cu_num_logits: Number of rows before each request, then of all rows, (R + 1,).
    """
    here = torch.arange(len(draft_sampled), device=draft_sampled.device)
    ends = cu_num_logits[1:].long()
    requests = torch.searchsorted(ends, here, right=True)
    read_ids = draft_sampled.long()
    draft_ids = read_ids.roll(-1)
    is_drafted = (here + 1 < ends[requests]) & (draft_ids >= 0)
    return FlatRows(read_ids, draft_ids, is_drafted, requests)


class ArbiterSampler(sampler_module.RejectionSampler):  # type: ignore[misc]  # vLLM is untyped
    """A rejection sampler whose target rows an arbiter has ruled on.

    Args:
        stock: The runner's own sampler; all its settings are taken over.
        adapter: The arbiter.
        req_states: The runner's requests.
        hidden: The runner's hidden states, if the arbiter looks at them.
    """

    def __init__(
        self,
        stock: Any,  # Any: vLLM's RejectionSampler
        adapter: Adapter,
        req_states: Any,  # Any: vLLM's RequestState
        hidden: HiddenStates | None = None,
    ) -> None:
        self.__dict__.update(stock.__dict__)
        self.adapter = adapter
        self._req_states, self._hidden = req_states, hidden

    def _verify(
        self,
        logits: Tensor,
        draft_logits: Any,  # Any: a tensor; since vLLM 0.34 a DraftLogitsCache; or None
        draft_sampled: Tensor,
        pos: Tensor,
        cu_num_logits: Tensor,
        idx_mapping: Tensor,
        idx_mapping_np: np.ndarray[Any, Any],  # Any: of integers
        expanded_idx_mapping: Tensor,
        expanded_local_pos: Tensor,
        seq_lens_upper_bound_np: np.ndarray[Any, Any],
        verify_draft_sampled: Tensor | None = None,  # vLLM 0.34 has none
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Verify some requests as the stock sampler does, on edited rows.

        Returns:
            The target's processed rows without edits, (N, V); tokens, (R, K + 1); their number,
            (R,).
        """
        verified = draft_sampled if verify_draft_sampled is None else verify_draft_sampled
        processed = self.sampler.apply_sampling_params(
            logits,
            expanded_idx_mapping,
            idx_mapping,
            idx_mapping_np,
            pos,
            draft_sampled,
            expanded_local_pos,
            seq_lens_upper_bound_np,
        )
        rows = self._rows(
            logits,
            processed,
            draft_logits,
            flatten(verified, cu_num_logits),
            pos,
            expanded_idx_mapping.long(),
            expanded_local_pos.long(),
            is_greedy=not self.sampler.sampling_states.temperature.np[idx_mapping_np].any(),
        )
        rows = with_uniforms(self.adapter, rows, idx_mapping_np.tolist(), cu_num_logits)
        rulings = self.adapter.row_arbiter(rows)
        sampled, num_sampled = sampler_module.rejection_sample(
            force(processed, rows, rulings),
            draft_logits,
            verified,
            cu_num_logits,
            pos,
            idx_mapping,
            expanded_idx_mapping,
            expanded_local_pos,
            self.sampler.sampling_states.temperature.gpu,
            self.sampler.sampling_states.seeds.gpu,
            self.num_speculative_steps,
            use_fp64=self.sampler.use_fp64_gumbel,
        )
        at = cu_num_logits, idx_mapping, idx_mapping_np
        self._count(rows, rulings, sampled, num_sampled, *at)
        return processed, sampled, num_sampled

    def _count(
        self,
        rows: VerifiedRows,
        rulings: RowRulings,
        sampled: Tensor,
        num_sampled: Tensor,
        cu_num_logits: Tensor,
        idx_mapping: Tensor,
        idx_mapping_np: np.ndarray[Any, Any],  # Any: of integers
    ) -> None:
        """Count and keep the outcomes of some requests; arguments as in `_verify`."""

        def num_rows() -> list[int]:  # waits for the device: for a log of decisions only
            counts: list[int] = cu_num_logits.diff().tolist()
            return counts

        known = self._req_states.index_to_req_id
        slots = idx_mapping_np.tolist()
        request_ids = [known.get(slot, "") for slot in slots]
        if all(request_id.startswith(WARM_UP) for request_id in request_ids):
            return
        num_accepted = (num_sampled.long() - 1).clamp(min=0)
        self.adapter.count(rows, rulings, num_accepted, idx_mapping.long(), request_ids, num_rows)
        record(self.adapter, rows, rulings, sampled, num_sampled, slots, cu_num_logits)

    def _rows(
        self,
        logits: Tensor,
        processed: Tensor,
        draft_logits: Any,  # Any: as in `_verify`
        flat: FlatRows,
        pos: Tensor,
        slots: Tensor,
        block_positions: Tensor,
        *,
        is_greedy: bool,
    ) -> VerifiedRows:
        """The rows as the arbiter takes them.

        Args:
            logits: The target's logits, (N, V).
            processed: The target's logits after temperature and truncation, (N, V).
            draft_logits: The draft's logits by slot and place in the block, (slots, K, V); None if
                they are not kept.
            flat: Token drafted from each row, and the row's request.
            pos: Position in prompt and text of the token that each row has read, (N,).
            slots: Slot of each row's request, (N,) int64.
            block_positions: Place in the block, K in bonus rows of whole blocks, (N,) int64.
            is_greedy: Whether no request samples.
        """
        columns = self.adapter.table.columns(slots)
        prompt_lens = self._req_states.prompt_len.gpu[slots].long()
        places = block_positions.clamp(max=self.num_speculative_steps - 1)
        hidden = {} if self._hidden is None else self._hidden.of_rows(slots, places)
        is_sampled = None
        if not is_greedy:
            is_sampled = self.sampler.sampling_states.temperature.gpu[slots] != 0
        # By truncation, or by a logits processor of the server's, which greedy requests have too.
        ids = torch.where(flat.is_drafted, flat.draft_ids, 0)[:, None]
        is_cut = processed.gather(1, ids)[:, 0] == float("-inf")
        before = columns.is_ended
        is_ended = ended_before(before, flat.read_ids, block_positions, columns.stop_ids)
        return VerifiedRows(
            target_logits=logits,
            draft_ids=flat.draft_ids,
            is_drafted=flat.is_drafted,
            requests=flat.requests,
            block_positions=block_positions,
            positions=pos.long() + 1 - prompt_lens + columns.num_before,
            num_overrides=columns.num_overrides,
            num_mismatches=columns.num_mismatches,
            is_open=columns.is_open,
            stop_ids=columns.stop_ids,
            max_tokens=columns.max_tokens,
            draft_logits=self._draft_logits(draft_logits, slots, places),
            thresholds=columns.thresholds,
            is_sampled=is_sampled,
            is_cut=is_cut,
            is_ended=is_ended,
            **hidden,
        )

    def _draft_logits(
        self,
        kept: Any,  # Any: as in `_verify`
        slots: Tensor,
        places: Tensor,
    ) -> Tensor | None:
        """The logits that the token at each row's place was drawn from, (N, V), if asked for."""
        if kept is None or Needs.DRAFT_LOGITS not in self.adapter.needs:
            return None
        values: Tensor = kept if isinstance(kept, torch.Tensor) else kept.values
        return values[slots, places]
