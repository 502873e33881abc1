"""A drafter of your own: it follows the text's own habits and needs no model.

After each token it proposes the token that came after it the last time, k times over. Lossless
decoding stays exact with any drafter; a good one only makes it faster.

Usage: ``python examples/my_drafter.py``
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from cospec import Engine, ModelPair, SamplingConfig, load_arbiter
from cospec.drafters import Drafter, found_proposal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cospec.config import DecodeConfig
    from cospec.drafters import DraftRow
    from cospec.sampling import Chance
    from cospec.types import Needs, Proposal

PROMPTS = ["Question: Tim has 3 red and 4 red and 5 red balls. How many red balls?\nAnswer:"]


class HabitDrafter(Drafter):
    """Propose what followed each token where it occurred last."""

    def __init__(self, pair: ModelPair, config: DecodeConfig, needs: Needs) -> None:
        """Take the block length and the device; `needs` is refused by the engine if unmet."""
        self._k, self._device = config.k, pair.target.device
        self._vocab_size: int = pair.target.config.get_text_config().vocab_size

    def propose(self, rows: Sequence[DraftRow], chance: Chance) -> Proposal:
        """Return up to k tokens for each row."""
        drafted = [self._habit(row.prompt_ids + row.generated) for row in rows]
        # Where a row samples, its tokens must come from `Proposal.probs`, or sampling is not exact.
        # This gives each token a distribution with all of its mass on it.
        return found_proposal(drafted, self._vocab_size, chance, self._device)

    def _habit(self, text: list[int]) -> list[int]:
        """Return up to k tokens; none if the last token is new."""
        followers = dict(itertools.pairwise(text))
        drafted: list[int] = []
        token = text[-1]
        while len(drafted) < self._k and token in followers:
            token = followers[token]
            drafted.append(token)
        return drafted


def main() -> None:
    """Show that the text is the target's own, and what the drafter saved."""
    pair, sampling = ModelPair.from_pretrained("bundled:family"), SamplingConfig(max_new_tokens=60)
    engine = Engine(pair, load_arbiter("lossless"), drafter=HabitDrafter, num_speculative_tokens=4)
    (done,) = engine.generate(PROMPTS, sampling)
    (plain,) = Engine.target_only(pair).generate(PROMPTS, sampling)
    print(f"same text as the target alone: {done.token_ids == plain.token_ids}")
    print(f"{done.stats.num_tokens} tokens in {done.stats.num_target_forwards} target forwards")


if __name__ == "__main__":
    main()
