"""The same decoding as `cospec.engine.speculative`, written to be read and to be trusted.

One prompt at a time, no cache, every forward over the whole text, one token after the other. Tests
hold the engine equal to it for every arbiter. It shares the arbiters, the random numbers and the
mathematics of `cospec.sampling` with the engine, and none of its bookkeeping.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import torch

from cospec.arbiters.guard import SelectiveArbiter
from cospec.sampling import Warper, accepts, draw, residual, row_generator
from cospec.types import Arbiter, MismatchBatch, Needs, Origin

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from cospec.config import SamplingConfig
    from cospec.models.pair import ModelPair


@torch.inference_mode()
def reference_decode(
    pair: ModelPair,
    arbiter: Arbiter,
    prompt_ids: list[int],
    sampling: SamplingConfig,
    *,
    num_speculative_tokens: int,
    draft_confidence_threshold: float = 0.0,
    end_blocks_at_stop: bool = False,
    max_corrections: int | None = None,
    draft_prompt_ids: list[int] | None = None,
    index: int = 0,
) -> tuple[list[int], list[Origin]]:
    """Complete one prompt, slowly.

    Args:
        pair: The models.
        arbiter: Arbiter that rules at mismatches.
        prompt_ids: Token ids.
        sampling: Settings; stop strings are not supported here.
        num_speculative_tokens: Drafted tokens per block, K.
        draft_confidence_threshold: Probability below which a token ends its block.
        end_blocks_at_stop: Whether a block ends after a token that would end the text.
        max_corrections: Corrections after which nothing is overridden and blocks are short.
        draft_prompt_ids: Prompt that the draft reads; None for the same.
        index: Index in the list of prompts, which the random numbers depend on.

    Returns:
        The generated token ids, and the origin of each.
    """
    most = num_speculative_tokens
    is_foreign = isinstance(arbiter, SelectiveArbiter) and arbiter.is_foreign(prompt_ids)
    warper = Warper([sampling], pair.target.device)
    generator = row_generator(sampling, index)
    stop_ids = {*sampling.stop_token_ids, *(() if sampling.ignore_eos else pair.eos_token_ids)}
    tokens, origins, seen = list(prompt_ids), list[Origin](), draft_prompt_ids or prompt_ids
    of = partial(torch.tensor, device=pair.target.device)
    while True:
        u = torch.rand(4 * most + 1, generator=generator, dtype=torch.float64).to(
            pair.target.device
        )
        u_draft, u_accept, u_target, u_arbiter = torch.split(u, [most, most, most + 1, most])
        drafted: list[int] = []
        draft_logits: list[Tensor] = []
        num_corrections = origins.count(Origin.CORRECTION)
        is_lossless = is_foreign or num_corrections >= (max_corrections or math.inf)
        is_short = is_lossless and bool(max_corrections)
        for j in range(min(most, 10) if is_short else most):
            logits = _logits(pair.draft_model, seen + tokens[len(prompt_ids) :] + drafted)[-1]
            draft_logits.append(logits)
            drafted.append(int(draw(warper.probs(logits[None, None]), u_draft[None, None, j])))
            least = draft_confidence_threshold or 0.8 * is_short
            is_unsure = logits.softmax(dim=-1)[drafted[-1]] < least
            if is_unsure or (end_blocks_at_stop and drafted[-1] in stop_ids):
                break
        k = len(drafted)
        target_logits = _logits(pair.target, tokens + drafted)[-k - 1 :]
        p = warper.probs(target_logits[None])[0]
        q = warper.probs(torch.stack(draft_logits)[None])[0]
        is_match = accepts(p[None, :-1], q[None], of([drafted]), u_accept[None, :k])[0]
        instead = draw(torch.cat([residual(p[:-1], q), p[-1:]]), u_target[: k + 1]).tolist()

        num_generated, num_overrides = len(origins), origins.count(Origin.OVERRIDE)
        for j in range(k + 1):
            if j == k:
                token, origin = instead[j], Origin.BONUS
            elif is_match[j]:
                token, origin = drafted[j], Origin.MATCH
            else:
                mismatch = MismatchBatch(
                    rows=of([0]),
                    block_positions=of([j]),
                    positions=of([num_generated + j]),
                    num_overrides=of([num_overrides]),
                    num_mismatches=of([num_corrections + origins.count(Origin.OVERRIDE)]),
                    block_lengths=of([k]),
                    draft_ids=of([drafted[j]]),
                    target_ids=of([instead[j]]),
                    target_logits=target_logits[j][None],
                    draft_logits=draft_logits[j][None],
                    lookahead_matches=_lookahead(is_match, j),
                    lookahead_log_p=_lookahead(_token_log_p(target_logits, drafted), j),
                    block_log_q=_token_log_p(torch.stack(draft_logits), drafted)[None],
                    uniforms=u_arbiter[j][None] if Needs.UNIFORMS in arbiter.needs else None,
                )
                keep = bool(arbiter.rule(mismatch).keep_draft)
                is_exact = is_lossless or num_generated + j < sampling.exact_prefix_tokens
                is_stop = bool({drafted[j], instead[j]} & stop_ids)
                is_possible = p[j, drafted[j]] > 0 or sampling.is_greedy
                if keep and is_possible and not is_exact and not is_stop:
                    token, origin = drafted[j], Origin.OVERRIDE
                else:
                    token, origin = instead[j], Origin.CORRECTION
            tokens.append(token)
            origins.append(origin)
            if token in stop_ids or len(origins) == sampling.max_new_tokens:
                return tokens[len(prompt_ids) :], origins
            if origin is Origin.CORRECTION:
                break


def _logits(model: PreTrainedModel, token_ids: list[int]) -> Tensor:
    """Logits after each token, (T, V) float32."""
    output = model(input_ids=torch.tensor([token_ids], device=model.device), use_cache=False)
    logits: Tensor = output.logits[0].float()
    return logits


def _token_log_p(logits: Tensor, token_ids: list[int]) -> Tensor:
    """Log-probability of each token under the logits before it, (K,)."""
    log_p = logits.log_softmax(dim=-1)
    return torch.stack([log_p[i, token] for i, token in enumerate(token_ids)])


def _lookahead(values: Tensor, place: int) -> Tensor:
    """The values after a place, zeros where the block has ended, (1, K - 1)."""
    ahead = values[place + 1 :]
    return torch.cat([ahead, ahead.new_zeros(len(values) - 1 - len(ahead))])[None]
