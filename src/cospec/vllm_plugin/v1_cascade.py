"""Blocks that the draft of vLLM's first model runner writes with guesses, several tokens a forward.

vLLM runs the draft once a token. Here it reads guesses of its next tokens together and keeps those
that it would have written, as in `cospec.drafters.cascade`.
This file knows vLLM's names and loads without vLLM.
"""

from __future__ import annotations

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
        texts = self._texts(given)
        writers = self._writers(texts, bounds, stop_ids, given["num_speculative_tokens"])
        first = propose(**given | {"num_speculative_tokens": 1})[:, 0]  # reads the step's tokens
        self._drafter.num_speculative_tokens = given["num_speculative_tokens"]
        shown = self._drafter._last_draft_probs  # (R, 1, W), or None
        kept: list[list[Tensor]] = [
            [] if shown is None else [shown[r, 0]] for r in range(len(first))
        ]
        is_last = self._ends_block(first, None if shown is None else shown[:, 0], writers)
        for writer, token, ends, is_wanted in zip(
            writers, first.tolist(), is_last, is_open.tolist(), strict=True
        ):
            if is_wanted:
                writer.accept(writer.unread, [token], [ends])
            writer.is_open = writer.is_open and is_wanted
        while any(writer.is_open for writer in writers):
            self._step(writers, sample, given, kept)
        self._remember(writers, texts, bounds)
        if shown is not None:
            rows = [torch.stack(one) for one in kept]
            self._drafter._last_draft_probs = pad_sequence(rows, batch_first=True)
        found = [
            torch.tensor(writer.drafted or [token], device=first.device)
            for writer, token in zip(writers, first.tolist(), strict=True)
        ]
        lengths = torch.tensor([len(writer.drafted) for writer in writers], device=first.device)
        return pad_sequence(found, batch_first=True), lengths

    def _writers(
        self,
        texts: Sequence[tuple[list[int], list[int]]],
        bounds: Sequence[tuple[int, float]],
        stop_ids: Tensor,
        most: int,
    ) -> list[Writer]:
        """Return the requests' blocks, of `most` tokens at most, before their first token."""
        return [
            Writer(
                *text,
                sum(map(len, text)) - 1,
                min(bound, most),
                stop_ids=frozenset(stops if self._config.end_blocks_at_stop else ()),
                min_confidence=confidence,
                answer=self._answers.get(name),
                ngrams=self._ngrams,
                most_read=most_read(len(texts), self._drafter.device),
            )
            for name, text, stops, (bound, confidence) in zip(
                self._runner.input_batch.req_ids, texts, stop_ids.tolist(), bounds, strict=True
            )
        ]

    def _remember(
        self,
        writers: Sequence[Writer],
        texts: Sequence[tuple[list[int], list[int]]],
        bounds: Sequence[tuple[int, float]],
    ) -> None:
        """Count the drafts for later guesses, and keep whole answers while their requests run."""
        running, names = self._runner.requests, self._runner.input_batch.req_ids
        self._answers = {name: one for name, one in self._answers.items() if name in running}
        for name, writer, (prompt_ids, generated), (bound, _) in zip(
            names, writers, texts, bounds, strict=True
        ):
            self._ngrams.add(prompt_ids + generated, writer.drafted)
            if self._config.drafts_answers and bound == self._config.k and writer.drafted:
                self._answers[name] = generated + writer.drafted

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
        given: dict[str, Any],  # Any: as above
        kept: list[list[Tensor]],
    ) -> None:
        """Read the last token and a guess of each open block, and take what the draft chooses."""
        rows = [row for row, writer in enumerate(writers) if writer.is_open]
        read = [writers[row].unread + writers[row].guess() for row in rows]
        starts = [writers[row].start for row in rows]
        states = self._read(read, starts, rows, given["common_attn_metadata"])
        token_ids, shown = sample(states, given["sampling_metadata"])
        writer_of = [writers[row] for row, ids in zip(rows, read, strict=True) for _ in ids]
        is_last = self._ends_block(token_ids, shown, writer_of)
        chosen, end = token_ids.tolist(), 0
        for row, ids in zip(rows, read, strict=True):
            begin, end = end, end + len(ids)
            for _, place in writers[row].accept(ids, chosen[begin:end], is_last[begin:end]):
                if shown is not None:
                    kept[row].append(shown[begin + place])

    def _read(
        self,
        read: Sequence[list[int]],
        starts: Sequence[int],
        rows: list[int],
        metadata: Any,  # Any: vLLM's CommonAttentionMetadata of the runner's step
    ) -> Tensor:
        """Let the draft read tokens of some rows from their starts; return states (tokens, H')."""
        from vllm.forward_context import set_forward_context  # noqa: PLC0415  # slow

        drafter, device = self._drafter, self._drafter.device
        ids = torch.tensor([token for one in read for token in one], device=device)
        lengths, num_tokens = torch.tensor([len(one) for one in read]), len(ids)
        ends = torch.cat([torch.zeros(1, dtype=torch.int32), lengths.cumsum(0).int()])
        seq_lens = torch.tensor(starts) + lengths
        row_of = torch.arange(len(rows)).repeat_interleave(lengths).to(device)
        places = [
            start + i for start, one in zip(starts, read, strict=True) for i in range(len(one))
        ]
        positions = torch.tensor(places, device=device)
        table = metadata.block_table_tensor[torch.tensor(rows, device=device)]
        blocks = table[row_of, positions // drafter.block_size].long()
        described = metadata.replace(
            query_start_loc=ends.to(device),
            query_start_loc_cpu=ends,
            seq_lens=seq_lens.to(metadata.seq_lens),
            num_reqs=len(rows),
            num_actual_tokens=num_tokens,
            max_query_len=int(lengths.max()),
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
        drafter.input_ids[:num_tokens] = ids
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
