"""Training data from texts of known worth, without playing branches.

The texts are worked solutions that come with the problems, or the models' own answers with their
scores (`cospec.rl.samples`). One forward of each model over a text finds every place at which the
models' next tokens differ, and the text tells whose token is right. At a temperature the tokens are
drawn as in decoding, once for each place. This is teacher forcing: far cheaper than playing two
branches to their ends, and a policy on hidden states needs tens of thousands of such places. It
cannot tell whether other words would have been right as well: that is left to the rounds, or to a
`Fork` at each place, where the target goes on from the other token.

The rest of a block is not known here. So the features of the block and of later tokens are 0, and a
policy that is normalized by these decisions leaves them out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from cospec.config import SamplingConfig
from cospec.errors import TaskError
from cospec.models.cache import CachedModel
from cospec.models.prefill import cheapest_order
from cospec.rl.types import SolutionData
from cospec.rulings import in_width, make_batch, rank_in_row
from cospec.sampling import Warper, accepts, draw, residual, row_generator
from cospec.tasks.base import answered
from cospec.types import Needs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import PreTrainedModel

    from cospec.features import ScalarFeatures
    from cospec.models import ModelPair
    from cospec.models.cache import Output, SavedRow
    from cospec.tasks import Example, Task

_BATCH_SIZE = 16  # on a CPU, the output of a layer stays in its cache
_MAX_LOGITS = 2**27
"""Largest number of logits of one reading, so that a large vocabulary does not fill the memory."""


@dataclass(frozen=True, slots=True)
class Solution:
    """One problem with its worked solution, as token ids."""

    ids: list[int]
    """Prompt, solution and the end of the text."""
    num_prompt_tokens: int
    place: int = 0
    """Index of the problem among all that are read; it decides the draws."""
    worth: float = 1.0
    """Weight of its decisions; negative for a text to keep away from."""

    @property
    def rest(self) -> list[int]:
        """Last token of the prompt, and all that comes after it."""
        return self.ids[self.num_prompt_tokens - 1 :]


class Fork(NamedTuple):
    """A place where a solution could have gone on with another token."""

    solution: Solution
    position: int
    """Index of the token among those after the prompt."""
    token_id: int
    """Token to go on with in place of the solution's."""
    cache: SavedRow
    """The target's cache of the whole solution."""


def encode_solutions(
    pair: ModelPair, task: Task, examples: Sequence[Example], start: int = 0
) -> list[Solution]:
    """Encode solutions after their prompts; those that do not fit into the context are left out.

    Args:
        pair: The models.
        task: Makes the prompts.
        examples: Problems; the ``metadata`` of each hold a ``solution``.
        start: Index of the first problem among all that are read.

    Raises:
        TaskError: A problem has no worked solution, or one that is not a text.
    """
    check_solutions(examples)
    tokenizer = pair.tokenizer
    assert tokenizer is not None, "whoever trains has checked that"
    found = []
    for place, example in enumerate(examples, start):
        text = example.metadata["solution"]
        prompt = task.part_of(example).prompt(example, tokenizer)
        if isinstance(prompt, str):
            ids = pair.encode(prompt)
            whole = pair.encode(answered(prompt, text.strip()))
            if whole[: len(ids)] != ids:
                continue  # the first word of the solution merges into the last token of the prompt
        else:
            ids = prompt
            whole = ids + pair.encode(text.strip(), add_special_tokens=False)
        if tokenizer.eos_token_id is not None:
            whole = [*whole, tokenizer.eos_token_id]
        if len(whole) <= pair.context_length:
            found.append(Solution(whole, len(ids), place))
    return found


def check_solutions(examples: Sequence[Example]) -> None:
    """Refuse problems without a worked solution, or with one that is not a text.

    Raises:
        TaskError: There is such a problem.
    """
    for example in examples:
        text = example.metadata.get("solution")
        if text is None:
            raise TaskError(
                f"{example.id} has no worked solution to train on; set num_solutions to 0, or "
                "take a task whose problems have one (jsonl: a field named solution)."
            )
        if not isinstance(text, str):
            raise TaskError(
                f"the solution of {example.id} is {text!r:.60}; it must be a string (jsonl: put it "
                "in quotes)."
            )


def solution_decisions(
    pair: ModelPair,
    features: ScalarFeatures,
    solutions: Sequence[Solution],
    on_read: Callable[[int], None] = lambda _: None,
    temperature: float = 0.0,
    worth_of: Callable[[list[Fork]], list[float]] | None = None,
) -> SolutionData:
    """Find the decisions for which a solution tells the right token.

    There is no decision where the solution's token is neither model's.

    Args:
        pair: The models.
        features: Input of the policy.
        solutions: Solutions of problems that no evaluation uses.
        on_read: Called with the number of solutions that were read.
        temperature: Temperature of both models' tokens.
        worth_of: Gives the worths of texts that go on from other tokens, such as
            `cospec.rl.forks.ForkPlayer`; by default these are worth 0.
    """
    found = [SolutionData(torch.empty(0, len(features.names)), torch.empty(0))]
    vocab_size = pair.target.config.get_text_config().vocab_size
    backward = solutions[::-1]
    waiting = [backward[i] for i in reversed(cheapest_order([one.ids for one in backward]))]
    while waiting:
        longest = max(len(one.rest) for one in waiting[-_BATCH_SIZE:])
        size = min(_BATCH_SIZE, max(1, _MAX_LOGITS // (longest * vocab_size)))
        part, waiting = waiting[-size:], waiting[:-size]
        found.append(_decisions(pair, features, part, temperature, worth_of))
        on_read(len(part))
    return SolutionData.joined(found)


@torch.inference_mode()
def _decisions(
    pair: ModelPair,
    features: ScalarFeatures,
    part: Sequence[Solution],
    temperature: float,
    worth_of: Callable[[list[Fork]], list[float]] | None,
) -> SolutionData:
    """Find the decisions of a few solutions of similar length."""
    device = pair.target.device
    sees_hidden = features.num_hidden > 0
    target, p = _read(pair.target, part, sees_hidden)
    _, q = _read(pair.draft_model, part, sees_hidden)
    q = q._replace(logits=in_width(q.logits, p.logits.shape[-1]))
    target_ids, draft_ids = _tokens(p.logits, q.logits, part, temperature)  # (B, R) each
    ids = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(one.rest) for one in part], batch_first=True, padding_value=-1
    ).to(device)
    right, t, d = ids[:, 1:], target_ids[:, :-1], draft_ids[:, :-1]
    is_settled = (right >= 0) & (t != d) & ((t == right) | (d == right))
    rows, at = is_settled.nonzero(as_tuple=True)
    if not len(rows):
        return SolutionData(torch.empty(0, len(features.names)), torch.empty(0))
    is_draft = d[rows, at] == right[rows, at]
    if worth_of is None:
        worth = torch.tensor([one.worth for one in part], device=device)[rows]
    else:  # before later reads change the target's cache
        caches = [target.save_row(i, len(one.ids)) for i, one in enumerate(part)]
        worth = _gains(part, caches, right, t, d, (rows, at), worth_of)
    none = torch.zeros_like(rows)
    batch = make_batch(
        features.needs,
        {
            Needs.TARGET_LOGITS: lambda: (p.logits[rows, at],),
            Needs.DRAFT_LOGITS: lambda: (q.logits[rows, at],),
            Needs.LOOKAHEAD: lambda: (
                rows.new_zeros(len(rows), 0, dtype=torch.bool),
                torch.zeros(len(rows), 0, device=device),
            ),
            Needs.TARGET_HIDDEN: lambda: (
                _states(p)[rows, at],
                _states_after(target, part, rows, at, d[rows, at]),
            ),
            Needs.DRAFT_HIDDEN: lambda: (_states(q)[rows, at],),
            Needs.BLOCK_LOG_Q: lambda: (torch.zeros(len(rows), 1, device=device),),
        },
        rows=rows,
        block_positions=none,
        positions=at,
        num_overrides=none,
        num_mismatches=none,
        block_lengths=torch.ones_like(rows),
        draft_ids=d[rows, at],
        target_ids=t[rows, at],
    )
    x, delta = features(batch).cpu(), torch.where(is_draft, worth, -worth).cpu()
    is_finite = x.isfinite().all(dim=1)  # NaN and infinity would spread to the whole policy
    # Copied: tensors of inference mode cannot take part in training.
    return SolutionData(x[is_finite].clone(), delta[is_finite].clone())


def _gains(
    part: Sequence[Solution],
    caches: Sequence[SavedRow],
    right: Tensor,
    target_ids: Tensor,
    draft_ids: Tensor,
    decisions: tuple[Tensor, Tensor],
    worth_of: Callable[[list[Fork]], list[float]],
) -> Tensor:
    """Return the worth of the solution's token minus that of the other one, (M,).

    After either token the target goes on by itself. After the solution's token it repeats the
    solution up to the next place where its own token differs. From there on its text is that of
    the fork at that place; without such a place its text is the solution.

    Args:
        part: B solutions.
        caches: The target's cache of each solution.
        right: Tokens of the solutions, (B, R); -1 after their ends.
        target_ids: The target's tokens, (B, R).
        draft_ids: The draft's tokens, (B, R).
        decisions: Rows and places of the decisions, (M,) each.
        worth_of: Gives the worths of forks.
    """
    leaves = (right >= 0) & (target_ids != right)  # places where the target leaves the solution
    others = torch.where(leaves, target_ids, draft_ids)
    is_fork = leaves.clone()
    is_fork[decisions] = True
    places = is_fork.nonzero().tolist()
    tokens = others[is_fork].tolist()
    forks = [
        Fork(part[row], at, token, caches[row])
        for (row, at), token in zip(places, tokens, strict=True)
    ]
    worth = {(row, at): x for (row, at), x in zip(places, worth_of(forks), strict=True)}
    gains = []
    for row, at in zip(*map(Tensor.tolist, decisions), strict=True):
        later = leaves[row, at + 1 :].nonzero()[:, 0].tolist()
        own = worth[row, at + 1 + later[0]] if later else part[row].worth
        gains.append(own - worth[row, at])
    return torch.tensor(gains, device=right.device)


def _tokens(
    target_logits: Tensor, draft_logits: Tensor, part: Sequence[Solution], temperature: float
) -> tuple[Tensor, Tensor]:
    """Return the target's and the draft's token after each place, (B, R) from logits (B, R, V).

    Where the draft's token is accepted, the target's token is the same.
    """
    if not temperature:
        return target_logits.argmax(dim=-1), draft_logits.argmax(dim=-1)
    found = []
    warper = Warper([SamplingConfig(temperature=temperature)], target_logits.device)
    for one, *logits in zip(part, target_logits, draft_logits, strict=True):
        p, q = (warper.probs(each[None]) for each in logits)  # (1, R, V)
        coins = row_generator(SamplingConfig(seed=0), one.place)
        uniforms = torch.rand(3, len(one.ids), generator=coins, dtype=torch.float64)
        uniforms = uniforms[:, one.num_prompt_tokens - 1 :]
        uniforms = torch.nn.functional.pad(uniforms, (0, p.shape[1] - len(one.rest))).to(p.device)
        proposal, acceptance, correction = uniforms[:, None]  # (1, R) each
        draft_ids = draw(q, proposal)
        is_accepted = accepts(p, q, draft_ids, acceptance)
        target_ids = torch.where(is_accepted, draft_ids, draw(residual(p, q), correction))
        found.append(torch.cat([target_ids, draft_ids]))
    return tuple(torch.stack(found, dim=1))


def _states(output: Output) -> Tensor:
    """Return the last hidden states of a reading, (B, R, H)."""
    assert output.hidden is not None, "the reading captures what the features need"
    return output.hidden


def _states_after(
    target: CachedModel, part: Sequence[Solution], rows: Tensor, at: Tensor, draft_ids: Tensor
) -> Tensor:
    """Return the target's hidden states after the draft's tokens, (M, H).

    Each token is read into the cache of the whole texts, over the text's own token. Later tokens of
    the text must not see it, so the last mismatch of each row is read first.

    Args:
        target: Model whose cache holds the B texts and has room for one more token.
        part: The texts.
        rows: Rows of the mismatches, in order, (M,).
        at: Indices in `Solution.rest` of the tokens before them, rising in each row, (M,).
        draft_ids: Tokens that are read, (M,).
    """
    turn = rank_in_row(rows)
    num_turns = int(turn.max()) + 1
    # A row without a mismatch reads something after its end.
    ends = torch.tensor([len(one.ids) for one in part], device=rows.device)
    firsts = torch.tensor([one.num_prompt_tokens for one in part], device=rows.device)
    starts = ends[:, None].repeat(1, num_turns)
    starts[rows, turn] = firsts[rows] + at
    tokens = torch.zeros_like(starts)
    tokens[rows, turn] = draft_ids
    of_turn = starts.T.tolist()
    hidden = []
    for i in reversed(range(num_turns)):
        window = target.window(of_turn[i], 1)
        states = target.read(tokens[:, i : i + 1], window).hidden
        assert states is not None, "capture hidden states"
        hidden.append(states[:, 0])
    return torch.stack(hidden[::-1], dim=1)[rows, turn]


def _read(
    model: PreTrainedModel, part: Sequence[Solution], sees_hidden: bool
) -> tuple[CachedModel, Output]:
    """Return the model, and logits (B, R, V) and last hidden states of the texts after prompts.

    The model's cache holds the texts and has room for one more token. A beginning that prompts
    share is read once.
    """
    cached = CachedModel(model, capture_hidden=sees_hidden)
    prompts = [one.ids[: one.num_prompt_tokens - 1] for one in part]
    longest = max(len(one.rest) for one in part)
    end = max(map(len, prompts)) + longest
    cached.reserve(len(part), end + 1)
    if any(prompts):
        cached.prefill(prompts, 0)
    rests = [one.rest + one.rest[-1:] * (longest - len(one.rest)) for one in part]
    window = cached.window([len(prompt) for prompt in prompts], longest)
    return cached, cached.read(torch.tensor(rests, device=cached.device), window, longest)
