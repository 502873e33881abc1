"""Blocks that the draft of vLLM's first model runner writes with guesses, several tokens a forward.

vLLM runs the draft once a token. Here it reads guesses of its next tokens together and keeps those
that it would have written, as in `cospec.drafters.cascade`.
This file knows vLLM's names and loads without vLLM.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence

from cospec.drafters.cascade import Ngrams, Writer, most_read
from cospec.rulings import token_log_p
from cospec.vllm_plugin.known import require

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from cospec.config import DecodeConfig

    Sample = Callable[[Tensor, Any], tuple[Tensor, Tensor | None]]
    """The drafter's: tokens (N,), and what it keeps of their logits, (N, W) or None."""

RUNNER_NAMES = (
    "input_batch.req_ids",
    "input_batch.num_prompt_tokens",
    "input_batch.token_ids_cpu",
    "drafter.input_ids",
    "drafter.block_size",
    "drafter.vllm_config",
    "drafter._get_slot_mapping",
    "drafter._set_positions",
    "drafter._determine_batch_execution_and_padding",
    "drafter.build_model_inputs_first_pass",
    "drafter.build_per_group_and_layer_attn_metadata",
)


class Guessing:
    """Drafts with guesses for a runner.

    Args:
        runner: The runner.
        config: Options that end blocks.

    Raises:
        ConfigError: The runner has not the names that we know.
    """

    def __init__(self, runner: Any, config: DecodeConfig) -> None:  # Any: vLLM's GPUModelRunner
        require(runner, RUNNER_NAMES)
        self._runner, self._drafter, self._config = runner, runner.drafter, config
        self._vocab_size: int = runner.model_config.get_vocab_size()
        self._ngrams = Ngrams()
        self._answers: dict[str, list[int]] = {}
        """By request, its text as it was proposed last, if blocks are as long as an answer."""

    def draft(
        self,
        propose: Callable[..., Tensor],
        sample: Sample,
        given: dict[str, Any],  # Any: the arguments of vLLM's `propose`
        bounds: Sequence[tuple[int, float]],
        stop_ids: Tensor,
        is_open: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Draft the most probable tokens of R requests, until the block of each ends.

        Args:
            propose: The drafter's method.
            sample: The drafter's way to choose tokens.
            given: What the runner gives to `propose`.
            bounds: By request, most tokens of its block, and the probability below which a token is
                its last.
            stop_ids: Tokens that end each text, (R, S) padded with -1.
            is_open: Requests to draft for, (R,) bool.

        Returns:
            The tokens, (R, J), and their numbers, (R,); for other requests the first one counts
            nothing.
        """
        metadata, most = given["common_attn_metadata"], given["num_speculative_tokens"]
        texts = self._texts(given)
        stops = [frozenset(ids) - {-1} for ids in stop_ids.tolist()]
        first = propose(**given | {"num_speculative_tokens": 1})[:, 0]  # (R,)
        shown = self._drafter._last_draft_probs  # (R, 1, W), or None
        self._drafter.num_speculative_tokens = most
        writers = [
            Writer(
                *text,
                sum(map(len, text)) - 1,
                min(bound, most),
                stop_ids=ends if self._config.end_blocks_at_stop else frozenset(),
                min_confidence=confidence,
                answer=self._answers.get(name),
                ngrams=self._ngrams,
                most_read=most_read(len(texts), self._drafter.device),
            )
            for name, text, ends, (bound, confidence) in zip(
                self._runner.input_batch.req_ids, texts, stops, bounds, strict=True
            )
        ]
        kept: list[list[Tensor]] = [[] for _ in writers]
        if shown is not None:
            kept = [[one[0]] for one in shown]
        is_last = self._ends_block(first, None if shown is None else shown[:, 0], writers)
        for writer, token, ends, wanted in zip(
            writers, first.tolist(), is_last, is_open.tolist(), strict=True
        ):
            writer.is_open = wanted
            if wanted:
                writer.accept(writer.unread, [token], [ends])
        while any(writer.is_open for writer in writers):
            self._step(writers, sample, given["sampling_metadata"], metadata, kept)
        running = self._runner.requests
        self._answers = {name: one for name, one in self._answers.items() if name in running}
        for row, ((prompt_ids, generated), writer) in enumerate(zip(texts, writers, strict=True)):
            self._ngrams.add(prompt_ids + generated, writer.drafted)
            if self._config.drafts_answers and bounds[row][0] == self._config.k and writer.drafted:
                name = self._runner.input_batch.req_ids[row]
                self._answers[name] = generated + writer.drafted  # a whole answer
        if shown is not None:
            self._drafter._last_draft_probs = pad_sequence(
                [torch.stack(one) for one in kept], batch_first=True
            )
        drafted = [w.drafted or [token] for w, token in zip(writers, first.tolist(), strict=True)]
        lengths = torch.tensor([len(writer.drafted) for writer in writers], device=first.device)
        tokens = [torch.tensor(ids, device=first.device) for ids in drafted]
        return pad_sequence(tokens, batch_first=True), lengths

    def _texts(self, given: dict[str, Any]) -> list[tuple[list[int], list[int]]]:
        """Prompts and texts with the tokens of this step, which the runner has not stored yet."""
        metadata, batch = given["common_attn_metadata"], self._runner.input_batch
        first = metadata.query_start_loc_cpu.tolist()
        num_read = metadata.seq_lens.tolist()
        rejected = given.get("num_rejected_tokens_gpu")
        rejected = [0] * len(num_read) if rejected is None else rejected.tolist()
        read, new = given["target_token_ids"].tolist(), given["next_token_ids"].tolist()
        texts = []
        for row in range(len(new)):
            here = read[first[row] : first[row + 1]]
            before = batch.token_ids_cpu[row, : num_read[row] - len(here)].tolist()
            ids = before + here[: len(here) - rejected[row]] + [new[row]]
            prompt = int(batch.num_prompt_tokens[row])
            texts.append((ids[:prompt], ids[prompt:]))
        return texts

    def _step(
        self,
        writers: Sequence[Writer],
        sample: Sample,
        sampling_metadata: Any,  # Any: vLLM's SamplingMetadata
        metadata: Any,  # Any: vLLM's CommonAttentionMetadata of the runner's step
        kept: list[list[Tensor]],
    ) -> None:
        """Read the last token and a guess of each open block, and take what the draft chooses."""
        rows = [row for row, writer in enumerate(writers) if writer.is_open]
        open_ones = [writers[row] for row in rows]
        given = [writer.unread + writer.guess() for writer in open_ones]
        states = self._read(given, [writer.start for writer in open_ones], rows, metadata)
        token_ids, shown = sample(states, sampling_metadata)
        place = [i for i, ids in enumerate(given) for _ in ids]
        is_last = self._ends_block(token_ids, shown, [open_ones[i] for i in place])
        chosen, end = token_ids.tolist(), 0
        for row, writer, ids in zip(rows, open_ones, given, strict=True):
            begin, end = end, end + len(ids)
            for _, index in writer.accept(ids, chosen[begin:end], is_last[begin:end]):
                if shown is not None:
                    kept[row].append(shown[begin + index])

    def _read(
        self,
        given: Sequence[list[int]],
        starts: Sequence[int],
        rows: list[int],
        metadata: Any,  # Any: as above
    ) -> Tensor:
        """Let the draft read tokens of some requests; return its last states, (tokens, H')."""
        from vllm.forward_context import set_forward_context  # noqa: PLC0415  # slow

        drafter, device = self._drafter, self._drafter.device
        lengths = [len(ids) for ids in given]
        num_tokens, ends = sum(lengths), list(accumulate(lengths, initial=0))
        places = [s + i for s, n in zip(starts, lengths, strict=True) for i in range(n)]
        positions = torch.tensor(places, device=device)
        table = metadata.block_table_tensor[torch.tensor(rows, device=device)]
        row_of = torch.arange(len(rows)).repeat_interleave(torch.tensor(lengths)).to(device)
        blocks = table[row_of, positions // drafter.block_size].long()
        seq_lens = torch.tensor([s + n for s, n in zip(starts, lengths, strict=True)])
        starts_at = torch.tensor(ends, dtype=torch.int32)
        described = metadata.replace(
            query_start_loc=starts_at.to(device),
            query_start_loc_cpu=starts_at,
            seq_lens=seq_lens.to(metadata.seq_lens),
            num_reqs=len(rows),
            num_actual_tokens=num_tokens,
            max_query_len=max(lengths),
            max_seq_len=int(seq_lens.max()),
            block_table_tensor=table,
            slot_mapping=blocks * drafter.block_size + positions % drafter.block_size,
            seq_lens_cpu_upper_bound=seq_lens.int(),
            positions=None,
            is_prefilling=None,
            _num_computed_tokens_cache=None,
            _token_to_req_indices_cache=None,
        )
        _, by_layer = drafter.build_per_group_and_layer_attn_metadata(described)
        mode, padded, across = drafter._determine_batch_execution_and_padding(num_tokens)
        ids = [token for one in given for token in one]
        drafter.input_ids[:num_tokens] = torch.tensor(ids, device=device)
        drafter._set_positions(num_tokens, positions)
        inputs, padded = drafter.build_model_inputs_first_pass(num_tokens, padded, None)
        with set_forward_context(
            by_layer,
            drafter.vllm_config,
            num_tokens=padded,
            num_tokens_across_dp=across,
            cudagraph_runtime_mode=mode,
            slot_mapping=drafter._get_slot_mapping(padded, described.slot_mapping),
        ):
            states: Tensor = drafter.model(**inputs)
        return states[:num_tokens]

    def _ends_block(
        self, token_ids: Tensor, shown: Tensor | None, writers: Sequence[Writer]
    ) -> list[bool]:
        """Return whether each token, (N,), ends its writer's block since the draft is unsure."""
        least = [writer.min_confidence for writer in writers]
        if shown is None or not any(least):
            return [False] * len(writers)
        confidence = token_log_p(shown[:, : self._vocab_size], token_ids).exp()
        unsure: list[bool] = (~(confidence >= torch.tensor(least).to(confidence))).tolist()
        return unsure  # NaN is unsure
