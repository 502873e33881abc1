"""Speed-ups by block length, predicted from measured costs and the accepted tokens of paths."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cospec.models import ModelPair
    from cospec.models.costs import Costs
    from cospec.types import Completion


@torch.inference_mode()
def accepted(pair: ModelPair, completion: Completion, prompt: list[int] | None = None) -> str:
    """Return one digit a token: 1 where the token is the draft's own choice.

    Args:
        pair: The models.
        completion: Completion from any decoder.
        prompt: The draft's own prompt; None for that of the completion.
    """
    prompt, generated = prompt or completion.prompt_ids, completion.token_ids
    ids = torch.tensor([prompt + generated], device=pair.draft_model.device)
    # The prompt needs only its last token's logits. An index: slices are slow (see CachedModel).
    places = torch.arange(len(prompt) - 1, ids.shape[1] - 1, device=ids.device)
    ids = ids.clamp(max=pair.draft_model.config.get_text_config().vocab_size - 1)
    logits = pair.draft_model(input_ids=ids, use_cache=False, logits_to_keep=places).logits
    choice = logits[0].argmax(dim=-1).tolist()  # (1, T, V)
    return "".join(str(int(a == b)) for a, b in zip(choice, generated, strict=True))


def num_blocks(accepted: str, k: int) -> int:
    """Count the target forwards that a path takes with blocks of `k`.

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
    """Return mean acceptance length and speed-up over the target, for each k that costs cover.

    Args:
        costs: Costs of the pair.
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
