"""The arbiter in vLLM's first model runner: always on a CPU, and on CUDA if the second is off.

`ArbiterSampler` stands in for the runner's rejection sampler. It edits the target's rows before
temperature and truncation, where they are what `cospec.engine` shows to arbiters; a row with one
token left survives both. The draft's logits come from `keep_draft_logits`: vLLM passes them in
place of the draft's probabilities, and lines them up with the requests of the step. The draft's
hidden states, if an arbiter asks for them, follow its logits; the target's come from `keep_hidden`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from vllm.v1.sample import rejection_sampler as sampler_module

from cospec.types import Needs
from cospec.vllm_plugin.adapter import Adapter, is_first_tensor_rank, to_device, tokenizer_of
from cospec.vllm_plugin.blocks import ending
from cospec.vllm_plugin.bridge import RowRulings, VerifiedRows
from cospec.vllm_plugin.cpu_repairs import repair_cpu
from cospec.vllm_plugin.known import require
from cospec.vllm_plugin.rollouts import keep_drafts
from cospec.vllm_plugin.v1_blocks import EndingBlocks
from cospec.vllm_plugin.v1_drafter import follow_drafting, is_sampling, keep_draft_logits
from cospec.vllm_plugin.verdicts import ended_before, force

if TYPE_CHECKING:
    from torch import Tensor

    from cospec.vllm_plugin.settings import Settings

RUNNER_NAMES = (
    "requests",
    "positions",
    "input_batch.req_ids",
    "input_batch.num_prompt_tokens",
    "execute_model_state",
    "input_ids.gpu",
    "discard_request_mask.np",
)


def install(
    runner: Any,  # Any: vLLM's GPUModelRunner or CPUModelRunner
    settings: Settings,
    vllm_config: Any,  # Any: vLLM's VllmConfig
) -> None:
    """Put the arbiter into a runner.

    Raises:
        ConfigError: The engine is not one that we support.
    """
    require(runner, RUNNER_NAMES)
    adapter = Adapter.build(
        settings,
        vllm_config,
        runner.device,
        is_reporting=hasattr(runner, "rejection_sampler") and is_first_tensor_rank(),
        find_tokenizer=lambda: tokenizer_of(vllm_config),
    )
    if runner.device.type == "cpu":
        repair_cpu(sampler_module)
    if not hasattr(runner, "rejection_sampler"):
        return  # a pipeline stage that does not sample
    blocks = ending(settings, vllm_config)
    if blocks is not None and blocks.ends_by_confidence:
        adapter.more_needs = Needs.DRAFT_LOGITS
    needs = adapter.needs
    sampler = ArbiterSampler(runner.rejection_sampler, adapter, runner)
    has_model = hasattr(runner.drafter, "_sample_draft_tokens")
    if has_model and Needs.DRAFT_LOGITS in needs:
        keep_draft_logits(runner, with_hidden=Needs.DRAFT_HIDDEN in needs)
        keep_drafts(runner)
    if Needs.TARGET_HIDDEN in needs:
        keep_hidden(runner, sampler)
    follow_drafting(runner, sampler)
    if has_model and blocks is not None:
        EndingBlocks(runner, sampler, blocks)
    runner.rejection_sampler = sampler


def keep_hidden(runner: Any, sampler: ArbiterSampler) -> None:  # Any: vLLM's GPUModelRunner
    """Show a sampler the target's hidden states of each step, row by row as its logits are."""
    stock = runner.sample_tokens

    def sample_tokens(*args: Any, **kwargs: Any) -> Any:  # Any: whatever the worker passes
        state = runner.execute_model_state
        sampler.hidden = None if state is None else state.sample_hidden_states
        return stock(*args, **kwargs)

    runner.sample_tokens = sample_tokens


@dataclass(slots=True)
class Step:
    """One verify step of the sampler.

    Attributes:
        draft_logits: The draft's logits of the drafted rows, (T, V), if there are any.
        draft_hidden: The draft's hidden states behind them, (T, H'), if the arbiter asks for them.
        unedited: The target's rows before the arbiter's edit, (T, V).
        rows: Rows that were ruled on; None before the ruling, and in a step without one.
        rulings: Rulings on the rows.
        slots: Slots of the requests, (R,) int64.
    """

    draft_logits: Tensor | None = None
    draft_hidden: Tensor | None = None
    unedited: Tensor | None = None
    rows: VerifiedRows | None = None
    rulings: RowRulings | None = None
    slots: Tensor | None = None


class ArbiterSampler(sampler_module.RejectionSampler):  # type: ignore[misc]  # vLLM is untyped
    """A rejection sampler whose target rows an arbiter has ruled on.

    Args:
        stock: The runner's own sampler; all its settings are taken over.
        adapter: The arbiter.
        runner: The runner of the requests.

    Attributes:
        hidden: Hidden states that the target's output matrix was applied to in this step,
            (T + R, H), if the arbiter asks for them.
        undrafted: Ids of the requests for which the runner drafted nothing in their last step.
        placeholders: Ids of the requests without drafts in this step, if draft logits are kept.
    """

    def __init__(self, stock: Any, adapter: Adapter, runner: Any) -> None:  # Any: vLLM's
        torch.nn.Module.__init__(self)
        self.__dict__.update(stock.__dict__)
        self.adapter = adapter
        self._runner = runner
        # Slot, CachedRequestState and SamplingParams of each request
        self._slots: dict[str, tuple[int, Any, Any]] = {}  # Any: vLLM's
        self._step = Step()
        self.hidden: Tensor | None = None
        self.undrafted: set[str] = set()
        self.placeholders: set[str] = set()

    def forward(
        self,
        metadata: Any,  # Any: vLLM's SpecDecodeMetadata
        draft_probs: Tensor | None,
        logits: Tensor,
        sampling_metadata: Any,  # Any: vLLM's SamplingMetadata
    ) -> Any:  # Any: vLLM's SamplerOutput
        """Verify a step, and count what the arbiter did.

        Args:
            metadata: Assignment of the rows to the requests.
            draft_probs: The draft's logits, (T, V), followed by its hidden states if they are kept,
                where the engine keeps logits; else the draft's probabilities.
            logits: The target's logits, (T + R, V).
            sampling_metadata: Sampling parameters of the requests.
        """
        # vLLM's order within a step: the target's forward (`keep_hidden` takes its states), this
        # sampler (its processors edit the target's rows, then its kernels accept or resample), and
        # last the drafter, whose logits come back here with the next step.
        self._step = step = Step()
        if draft_probs is not None and Needs.DRAFT_LOGITS in self.adapter.needs:
            width = logits.shape[1]
            step.draft_logits, step.draft_hidden = draft_probs[:, :width], draft_probs[:, width:]
            draft_probs = None
            if self._is_drafter_sampling(sampling_metadata):
                draft_probs = self._draft_probs(step.draft_logits, metadata, sampling_metadata)
        output = super().forward(metadata, draft_probs, logits, sampling_metadata)
        if step.rows is not None and step.rulings is not None and step.slots is not None:
            num_accepted = (output.sampled_token_ids >= 0).sum(dim=1) - 1
            self.adapter.count(
                step.rows,
                step.rulings,
                num_accepted,
                step.slots,
                list(self._runner.input_batch.req_ids),
                lambda: metadata.num_draft_tokens,
            )
            self.adapter.record(
                [self._slots[request_id][0] for request_id in self._runner.input_batch.req_ids],
                metadata.num_draft_tokens,
                step.rows,
                step.rulings,
                output.sampled_token_ids,
            )
        self._step = Step()
        return output

    def apply_logits_processors(
        self,
        logits: Tensor,
        sampling_metadata: Any,  # Any: as above
        metadata: Any,
    ) -> Tensor:
        """The target's rows after penalties and bans, and after the arbiter, (T, V)."""
        logits = super().apply_logits_processors(logits, sampling_metadata, metadata)
        ids = self._runner.input_batch.req_ids
        if not len(logits) or len(ids) != len(metadata.num_draft_tokens):  # as in a warm-up
            return logits
        if any(request_id not in self._runner.requests for request_id in ids):
            return logits
        step = self._step
        step.rows, step.slots = self._rows(logits, sampling_metadata, metadata)
        step.rulings = self.adapter.row_arbiter(step.rows)
        step.unedited = logits
        return force(logits, step.rows, step.rulings)

    def _rows(
        self,
        logits: Tensor,
        sampling_metadata: Any,  # Any: as above
        metadata: Any,
    ) -> tuple[VerifiedRows, Tensor]:
        """The rows of the step, and the slots of its requests, (R,)."""
        runner, device = self._runner, logits.device
        slot_list = self.find_slots()
        requests, row_slots, prompt_lens, is_undrafted, block_positions = self._layout(
            slot_list, metadata.num_draft_tokens, device
        )
        draft_ids = metadata.draft_token_ids.long()
        read_at = metadata.logits_indices[metadata.target_logits_indices]
        positions = runner.positions[read_at].long() + 1 - prompt_lens
        columns = self.adapter.table.columns(row_slots)
        target_hidden = target_hidden_after = None
        if self.hidden is not None:
            target_hidden = self.hidden[metadata.target_logits_indices]
            target_hidden_after = self.hidden[metadata.target_logits_indices + 1]
        is_sampled = is_cut = uniforms = None
        if Needs.UNIFORMS in self.adapter.row_arbiter.arbiter.needs:
            counts = metadata.num_draft_tokens
            ids = zip(runner.input_batch.req_ids, counts, strict=True)
            has_drafts = [n > 0 and one not in self.placeholders for one, n in ids]
            uniforms = self.adapter.uniforms(slot_list, counts, has_drafts, device)
        if not sampling_metadata.all_greedy:
            is_sampled = (sampling_metadata.temperature != 0)[requests]
            is_cut = self._is_cut(logits, draft_ids, sampling_metadata, metadata) & is_sampled
        rows = VerifiedRows(
            target_logits=logits,
            draft_ids=draft_ids,
            is_drafted=draft_ids >= is_undrafted,  # undrafted: token 0 is no draft
            requests=requests,
            block_positions=block_positions,
            positions=positions + columns.num_before,
            num_overrides=columns.num_overrides,
            num_mismatches=columns.num_mismatches,
            is_open=columns.is_open,
            stop_ids=columns.stop_ids,
            max_tokens=columns.max_tokens,
            draft_logits=self._step.draft_logits,
            target_hidden=target_hidden,
            target_hidden_after=target_hidden_after,
            draft_hidden=self._step.draft_hidden,
            thresholds=columns.thresholds,
            is_sampled=is_sampled,
            is_cut=is_cut,
            uniforms=uniforms,
            is_ended=ended_before(
                columns.is_ended,
                runner.input_ids.gpu[read_at].long(),
                block_positions,
                columns.stop_ids,
            ),
        )
        return rows, to_device(slot_list, device)

    def _layout(self, slots: list[int], num_rows: list[int], device: torch.device) -> Tensor:
        """Copy what the host knows of the rows to the device, (5, T) int64.

        Returns:
            Request, slot, number of prompt tokens, 1 if nothing was drafted, place in the block.
        """
        batch, counts = self._runner.input_batch, np.asarray(num_rows)
        num_reqs = len(num_rows)
        is_undrafted = [request_id in self.undrafted for request_id in batch.req_ids[:num_reqs]]
        lengths, starts = batch.num_prompt_tokens[:num_reqs], counts.cumsum() - counts
        by_request = np.stack([np.arange(num_reqs), slots, lengths, is_undrafted, starts])
        by_row = np.repeat(by_request, counts, axis=1)
        by_row[-1] = np.arange(by_row.shape[1]) - by_row[-1]
        return to_device(by_row, device)

    def find_slots(self) -> list[int]:
        """Slots of the step's requests; new ones are added to the table."""
        requests = self._runner.requests
        found = []
        for request_id in self._runner.input_batch.req_ids:
            new = requests[request_id]
            slot, *known = self._slots.get(request_id, (-1, None, None))
            # A session that goes on keeps its state object, but gets new parameters.
            if known[0] is not new or known[1] is not new.sampling_params:
                if slot < 0:
                    slot = self._free_slot()
                has_lora = new.lora_request is not None
                ids = new.prompt_token_ids
                self.adapter.admit(slot, new.sampling_params, ids, has_lora=has_lora)
                self._slots[request_id] = slot, new, new.sampling_params
            found.append(slot)
        return found

    def _free_slot(self) -> int:
        """A slot that is held by no request that vLLM still knows."""
        known = self._runner.requests
        self._slots = {i: held for i, held in self._slots.items() if i in known}
        taken = {slot for slot, *_ in self._slots.values()}
        return next(slot for slot in range(len(taken) + 1) if slot not in taken)

    def _is_cut(
        self,
        logits: Tensor,
        draft_ids: Tensor,
        sampling_metadata: Any,  # Any: as above
        metadata: Any,
    ) -> Tensor:
        """Return whether top-k or top-p takes the drafted token away, (T,) bool."""
        if sampling_metadata.top_k is None and sampling_metadata.top_p is None:
            return torch.zeros_like(draft_ids, dtype=torch.bool)
        cut = sampler_module.apply_sampling_constraints(
            logits.clone(), metadata.cu_num_draft_tokens, sampling_metadata
        )
        own: Tensor = cut.gather(1, draft_ids.clamp(min=0)[:, None])[:, 0]
        return own == float("-inf")

    def _is_drafter_sampling(self, sampling_metadata: Any) -> bool:  # Any: as above
        drafter = self._runner.drafter
        has_mode = hasattr(drafter, "_enable_probabilistic_draft_probs")
        return has_mode and is_sampling(drafter, sampling_metadata)

    def _draft_probs(
        self,
        draft_logits: Tensor,
        metadata: Any,  # Any: as above
        sampling_metadata: Any,
    ) -> Tensor:
        """Compute the probabilities that the drafter sampled from, as vLLM does, (T, V).

        Those of a placeholder are 0: it is rejected, and the target's law is drawn from.
        """
        temperature = sampler_module.expand_batch_to_tokens(
            sampling_metadata.temperature,
            metadata.cu_num_draft_tokens,
            len(draft_logits),
            replace_from=0,
            replace_to=1,
        )
        warm = draft_logits.clone().div_(temperature[:, None])
        probs = warm.softmax(dim=-1, dtype=torch.float32)
        if self.placeholders:
            counts = zip(self._runner.input_batch.req_ids, metadata.num_draft_tokens, strict=True)
            is_real = [i not in self.placeholders for i, n in counts for _ in range(n)]
            probs *= to_device(is_real, probs.device)[:, None]
        return probs

    def _get_logprobs_tensors(
        self,
        max_num_logprobs: int,
        metadata: Any,  # Any: as above
        logits: Tensor,
        target_logits: Tensor,
        bonus_logits: Tensor,
        sampled_token_ids: Tensor,
    ) -> Any:  # Any: vLLM's LogprobsTensors
        """Log-probabilities of the target's own rows, not of the edited ones."""
        if self.is_processed_logprobs_mode and self._step.unedited is not None:
            target_logits = sampler_module.apply_sampling_constraints(
                self._step.unedited,
                metadata.cu_num_draft_tokens,
                self._runner.input_batch.sampling_metadata,
            )
        return super()._get_logprobs_tensors(
            max_num_logprobs, metadata, logits, target_logits, bonus_logits, sampled_token_ids
        )
