"""Training data from worked solutions, without a token decoded.

Where a problem comes with a solution that the models could have written, one forward of each model
over it finds every place at which their tokens differ after the solution so far, and the solution
tells whose token is right. At a temperature the tokens are drawn as decoding draws them, once for
each place. That is teacher forcing: far cheaper than two branches played to their ends, and hidden
states take tens of thousands of such places. It cannot tell whether other words would have been
right as well: that is left to the rounds.

The rest of a block is not known here: the look-ahead features are 0, and a policy that is
normalised by these decisions leaves them out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from cospec.config import SamplingConfig
from cospec.errors import TaskError
from cospec.models.cache import CachedModel
from cospec.rl.types import SolutionData
from cospec.sampling import Warper, accepts, draw, residual, row_generator
from cospec.types import MismatchBatch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

    from cospec.features import ScalarFeatures
    from cospec.models import ModelPair
    from cospec.models.cache import Output
    from cospec.tasks import Example, Task

_BATCH_SIZE = 16  # on a CPU, what a layer writes stays in its cache
_MAX_LOGITS = 2**27
"""Largest number of logits of one reading, so that a large vocabulary does not fill the memory."""


@dataclass(frozen=True, slots=True)
class Solution:
    """One problem with its worked solution, as token ids."""

    ids: list[int]
    """Prompt, solution and the end of the text."""
    num_prompt_tokens: int
    place: int = 0
    """Index of the problem among all that are read, which decides its draws."""


def encode_solutions(
    pair: ModelPair, task: Task, examples: Sequence[Example], start: int = 0
) -> list[Solution]:
    """Encode solutions after their prompts, without those that the pair's context does not hold.

    Args:
        pair: The models.
        task: Makes the prompts.
        examples: Problems, whose ``metadata`` hold a ``solution`` each.
        start: Index of the first of them among all that are read.

    Raises:
        TaskError: A problem has no worked solution.
    """
    tokenizer = pair.tokenizer
    assert tokenizer is not None, "whoever trains has checked that"
    found = []
    for place, example in enumerate(examples, start):
        text = example.metadata.get("solution")
        if text is None:
            raise TaskError(
                f"{example.id} has no worked solution to train on; set num_solutions to 0, or "
                "take a task whose problems have one (jsonl: a field named solution)."
            )
        prompt = task.part_of(example).prompt(example, tokenizer)
        if isinstance(prompt, str):
            ids = tokenizer(prompt)["input_ids"]
            whole = tokenizer(f"{prompt} {text.strip()}")["input_ids"]
            if whole[: len(ids)] != ids:
                continue  # the first word of the solution merges into the last token of the prompt
        else:
            ids = prompt
            whole = ids + tokenizer(text.strip(), add_special_tokens=False)["input_ids"]
        if tokenizer.eos_token_id is not None:
            whole = [*whole, tokenizer.eos_token_id]
        if len(whole) <= pair.context_length:
            found.append(Solution(whole, len(ids), place))
    return found


def solution_decisions(
    pair: ModelPair,
    features: ScalarFeatures,
    solutions: Sequence[Solution],
    on_read: Callable[[int], None] = lambda _: None,
    temperature: float = 0.0,
) -> SolutionData:
    """Find the decisions whose right token a solution tells; where it is neither's, there is none.

    Args:
        pair: The models.
        features: Input of the policy.
        solutions: Solutions of problems that no evaluation uses.
        on_read: Called with the number of solutions that were read.
        temperature: Temperature of both models' tokens.
    """
    found = [SolutionData(torch.empty(0, len(features.names)), torch.empty(0))]
    vocab_size = pair.target.config.get_text_config().vocab_size
    waiting = sorted(solutions, key=lambda one: len(one.ids))
    while waiting:
        size = min(_BATCH_SIZE, max(1, _MAX_LOGITS // (len(waiting[-1].ids) * vocab_size)))
        part, waiting = waiting[-size:], waiting[:-size]
        found.append(_decisions(pair, features, part, temperature))
        on_read(len(part))
    return SolutionData(*map(torch.cat, zip(*found, strict=True)))


@torch.inference_mode()
def _decisions(
    pair: ModelPair, features: ScalarFeatures, part: Sequence[Solution], temperature: float
) -> SolutionData:
    """Find the decisions of a few solutions of like length."""
    device = pair.target.device
    ids = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(one.ids) for one in part], batch_first=True
    ).to(device)  # (B, T)
    num_prompt, num_all = (
        torch.tensor(numbers, device=device)[:, None]
        for numbers in zip(*((one.num_prompt_tokens, len(one.ids)) for one in part), strict=True)
    )
    sees_hidden = features.num_hidden > 0
    target, p = _read(pair.target, ids, sees_hidden)
    _, q = _read(pair.draft_model, ids, sees_hidden)
    target_ids, draft_ids = _tokens(p.logits, q.logits, part, temperature)
    place = torch.arange(ids.shape[1] - 1, device=device)  # the token after it is in question
    is_answer = (place >= num_prompt - 1) & (place < num_all - 1)
    right, t, d = ids[:, 1:], target_ids[:, :-1], draft_ids[:, :-1]
    rows, at = (is_answer & (t != d) & ((t == right) | (d == right))).nonzero(as_tuple=True)
    if not len(rows):
        return SolutionData(torch.empty(0, len(features.names)), torch.empty(0))
    none = torch.zeros_like(rows)
    states = {}
    if p.hidden is not None and q.hidden is not None:
        states = {
            "target_hidden": p.hidden[rows, at],
            "target_hidden_after": _states_after(target, ids.shape[1], rows, at, d[rows, at]),
            "draft_hidden": q.hidden[rows, at],
        }
    batch = MismatchBatch(
        rows=rows,
        block_positions=none,
        positions=at - num_prompt[rows, 0] + 1,
        num_overrides=none,
        num_mismatches=none,
        block_lengths=torch.ones_like(rows),
        draft_ids=d[rows, at],
        target_ids=t[rows, at],
        target_logits=p.logits[rows, at],
        draft_logits=q.logits[rows, at],
        lookahead_matches=rows.new_zeros(len(rows), 0, dtype=torch.bool),
        lookahead_log_p=torch.zeros(len(rows), 0, device=device),
        **states,
    )
    is_draft = d[rows, at] == right[rows, at]
    # Cloned: tensors of inference mode cannot take part in training.
    return SolutionData(
        features(batch).cpu().clone(), torch.where(is_draft, 1.0, -1.0).cpu().clone()
    )


def _tokens(
    target_logits: Tensor, draft_logits: Tensor, part: Sequence[Solution], temperature: float
) -> tuple[Tensor, Tensor]:
    """Return the target's and the draft's token after each place, (B, T) from logits (B, T, V).

    Where the draft's token is accepted, the target's is the same.
    """
    if not temperature:
        return target_logits.argmax(dim=-1), draft_logits.argmax(dim=-1)
    found = []
    warper = Warper([SamplingConfig(temperature=temperature)], target_logits.device)
    for one, *logits in zip(part, target_logits, draft_logits, strict=True):
        p, q = (warper.probs(each[None]) for each in logits)  # (1, T, V)
        coins = row_generator(SamplingConfig(seed=0), one.place)
        uniforms = torch.rand(3, len(one.ids), generator=coins, dtype=torch.float64)
        uniforms = torch.nn.functional.pad(uniforms, (0, p.shape[1] - len(one.ids))).to(p.device)
        proposal, acceptance, correction = uniforms[:, None]  # (1, T) each
        draft_ids = draw(q, proposal)
        is_accepted = accepts(p, q, draft_ids, acceptance)
        target_ids = torch.where(is_accepted, draft_ids, draw(residual(p, q), correction))
        found.append(torch.cat([target_ids, draft_ids]))
    return tuple(torch.stack(found, dim=1))


def _states_after(
    target: CachedModel, num_read: int, rows: Tensor, at: Tensor, draft_ids: Tensor
) -> Tensor:
    """Return the target's hidden states after the draft's tokens, (M, H).

    Each token is read into the cache of the whole texts, over the solution's own token. Later
    tokens of the text must not see it, so the last mismatch of each row is read first.

    Args:
        target: Has read B whole texts, and has room for one token more.
        num_read: Tokens of each text with padding, T.
        rows: Rows of the mismatches, in order, (M,).
        at: The last places before them, rising in each row, (M,).
        draft_ids: What is read, (M,).
    """
    turn = torch.arange(len(rows), device=rows.device) - torch.searchsorted(rows, rows)
    num_turns = int(turn.max()) + 1
    shape = int(rows[-1]) + 1, num_turns
    starts = rows.new_full(shape, num_read)  # a row without a mismatch reads something at its end
    starts[rows, turn] = at + 1
    tokens = torch.zeros_like(starts)
    tokens[rows, turn] = draft_ids
    hidden = []
    for i in reversed(range(num_turns)):
        window = target.window(starts[:, i], 1, num_read + 1)
        states = target.read(tokens[:, i : i + 1], window).hidden
        assert states is not None, "capture hidden states"
        hidden.append(states[:, 0])
    return torch.stack(hidden[::-1], dim=1)[rows, turn]


def _read(model: PreTrainedModel, ids: Tensor, sees_hidden: bool) -> tuple[CachedModel, Output]:
    """Return logits and last hidden states of whole texts (B, T), as the engine would see them.

    The model comes first, with a cache of the texts that has room for one token more.
    """
    cached = CachedModel(model, capture_hidden=sees_hidden)
    num_rows, num_tokens = ids.shape
    cached.reserve(num_rows, num_tokens + 1)
    starts = torch.zeros(num_rows, dtype=torch.int64, device=ids.device)
    window = cached.window(starts, num_tokens, num_tokens)
    return cached, cached.read(ids, window, num_logits=num_tokens)
