"""Measured costs of forwards on this machine, and the speed-up they predict by block length.

A block of k costs k draft steps and one target forward over k + 1 tokens; plain decoding costs one
target forward over one token for each. Everything else (sampling, Python) is left out, so that the
prediction is of what the models allow (Leviathan et al., 2211.17192, section 3.3, with the measured
cost of a longer forward in place of a constant).
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from cospec.models.cache import CachedModel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cospec.models import ModelPair
    from cospec.types import Completion


@dataclass(frozen=True, slots=True)
class Costs:
    """Median seconds of forwards of a pair, all rows together."""

    batch_size: int
    """Rows of a forward."""
    context: int
    """Tokens in the cache before it."""
    draft_step_s: float
    """One draft forward over one token a row."""
    verify_s: list[float]
    """Entry n - 1: one target forward over n tokens a row, with all logits."""

    def to_dict(self) -> dict[str, Any]:  # Any: a JSON object
        """The costs as a JSON object."""
        return asdict(self)


@torch.inference_mode()
def measure_costs(
    pair: ModelPair, *, max_tokens: int, context: int, batch_size: int = 1, num_trials: int = 15
) -> Costs:
    """Time a draft step and target forwards over 1 to `max_tokens` tokens, taking turns.

    Args:
        pair: The models.
        max_tokens: Longest target forward.
        context: Tokens in the cache; cut to what the pair's context holds.
        batch_size: Rows of every forward.
        num_trials: Of each; the first two warm up and are left out.
    """
    context = max(1, min(context, pair.context_length - max_tokens))
    steps = [_forward(pair.draft_model, context, batch_size, 1)]
    steps += [_forward(pair.target, context, batch_size, n) for n in range(1, max_tokens + 1)]
    seconds: list[list[float]] = [[] for _ in steps]
    for _ in range(num_trials + 2):
        for step, found in zip(steps, seconds, strict=True):
            found.append(step())
    draft, *verify = [median(found[2:]) for found in seconds]
    return Costs(batch_size, context, draft, verify)


def _forward(
    model: Any,
    context: int,
    batch_size: int,
    num_tokens: int,  # Any: a transformers model
) -> Callable[[], float]:
    """Return a function that reads `num_tokens` tokens a row after `context`, in seconds."""
    cached = CachedModel(model)
    ids = torch.arange(batch_size * context, device=cached.device).view(batch_size, context)
    ids = ids * 7 % cached.vocab_size
    cached.reserve(batch_size, context + num_tokens)
    cached.prefill(ids.tolist(), 0)
    starts = torch.full((batch_size,), context, device=cached.device)

    def run() -> float:
        _synchronise(cached.device)
        start = time.perf_counter()
        window = cached.window(starts, num_tokens, context + num_tokens)
        cached.read(ids[:, :1].expand(-1, num_tokens), window, num_tokens)
        _synchronise(cached.device)
        return time.perf_counter() - start

    return run


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.inference_mode()
def accepted(pair: ModelPair, completion: Completion) -> str:
    """Return one digit a token: 1 where the draft's own choice there is what stands."""
    prompt, generated = completion.prompt_ids, completion.token_ids
    ids = torch.tensor([prompt + generated], device=pair.draft_model.device)
    logits = pair.draft_model(input_ids=ids, use_cache=False).logits[0]  # (T, V)
    choice = logits[len(prompt) - 1 : -1].argmax(dim=-1).tolist()
    return "".join(str(int(a == b)) for a, b in zip(choice, generated, strict=True))


def num_blocks(accepted: str, k: int) -> int:
    """Target forwards that a path takes with blocks of `k`.

    Args:
        accepted: One digit a token: 1 where the drafted token would stand.
        k: Drafted tokens a block; 0 for plain decoding.
    """
    blocks, place = 0, 0
    while place < len(accepted):
        run = 0
        while run < k and place + run < len(accepted) and accepted[place + run] == "1":
            run += 1
        place += run + 1  # and the target's own token: a correction or a bonus
        blocks += 1
    return blocks


def predicted_speedups(costs: Costs, paths: Iterable[str]) -> list[dict[str, float]]:
    """For each k that the costs cover: mean acceptance length and speed-up over the target alone.

    Args:
        costs: Of the pair.
        paths: ``accepted`` of each path, see `num_blocks`.
    """
    paths = list(paths)
    num_tokens = sum(map(len, paths))
    rows = []
    for k in range(1, len(costs.verify_s)):
        blocks = sum(num_blocks(path, k) for path in paths)
        seconds = blocks * (k * costs.draft_step_s + costs.verify_s[k])
        rows.append(
            {
                "k": k,
                "mean_acceptance_length": num_tokens / blocks,
                "speedup": num_tokens * costs.verify_s[0] / seconds,
            }
        )
    return rows
