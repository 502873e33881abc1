"""An arbiter of your own, from the class to a comparison with lossless decoding.

It keeps the draft's token where the target gives it nearly as much probability as its own choice,
and where the target agrees with what the draft wrote next.

Usage: ``python examples/my_arbiter.py``
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cospec import Engine, MismatchBatch, ModelPair, Needs, Ruling, SamplingConfig, load_arbiter

PROMPTS = [
    "Question: A farm has 12 hens and each lays 5 eggs a week. How many eggs in a week?\nAnswer:",
    "Question: Ann has 48 clips and sells half of them. How many are left?\nAnswer:",
]


@dataclass(frozen=True)
class Margin:
    """Keep the draft's token if p(target's) - p(draft's) is small and the next token matches."""

    max_margin: float = 0.2
    """Largest difference of the two probabilities under the target."""

    knobs_to_try: ClassVar[tuple[str, ...]] = ("max_margin=0.1", "max_margin=0.2", "max_margin=0.4")
    """Settings for `cospec bench --tune-knobs`."""
    needs: ClassVar[Needs] = Needs.TARGET_LOGITS | Needs.LOOKAHEAD
    """Fields of the `MismatchBatch` that `rule` reads, besides ids and positions."""

    @property
    def name(self) -> str:
        """Name in reports, with the setting."""
        return f"margin:max_margin={self.max_margin}"

    def rule(self, batch: MismatchBatch) -> Ruling:
        """Rule on all mismatches of a block at once; M is their number."""
        p = batch.log_p.exp()  # (M, V)
        p_draft = p.gather(1, batch.draft_ids[:, None])[:, 0]  # (M,)
        p_target = p.gather(1, batch.target_ids[:, None])[:, 0]  # (M,)
        score = self.max_margin - (p_target - p_draft)
        matches = batch.lookahead_matches
        assert matches is not None, "declared in needs"
        agrees_next = matches[:, :1].any(dim=1)  # False at the end of a block
        return Ruling((score > 0) & agrees_next, score)


def main() -> None:
    """Decode with the arbiter and without, and print a line for each."""
    pair = ModelPair.from_pretrained("bundled:family")
    for arbiter in (load_arbiter("lossless"), Margin(0.2), Margin(1.0)):
        engine = Engine(pair, arbiter, num_speculative_tokens=8)
        done = engine.generate(PROMPTS, SamplingConfig(max_new_tokens=80, stop=("\nQuestion:",)))
        overrides = sum(completion.stats.num_overrides for completion in done)
        forwards = sum(completion.stats.num_target_forwards for completion in done)
        print(f"{arbiter.name:<24} overrides {overrides:2d}   target forwards {forwards:2d}")


if __name__ == "__main__":
    main()
