"""Proxy tuning (2401.08565): add to the target's logits what tuning changed in the draft's.

Usage: python experiments/text_to_sql/proxy.py UNTUNED TARGET DRAFT DATA OUT [options of arms.py]

UNTUNED is the draft before it was tuned. `lossless` is then the proxy-tuned target.
"""

from __future__ import annotations

import sys

import arms

from cospec import ModelPair
from cospec.engine import speculative
from cospec.models.cache import CachedModel, Output


class ProxyTuned(CachedModel):
    """A target beside the tuned and the untuned draft; each has a cache of its own."""

    drafts: ModelPair

    def __init__(self, model, capture_hidden=False) -> None:
        super().__init__(model, capture_hidden)
        self.small = [CachedModel(one) for one in self.drafts.models]

    def reserve(self, num_rows, num_slots) -> None:
        """Make room in all caches."""
        super().reserve(num_rows, num_slots)
        for one in self.small:
            one.reserve(num_rows, num_slots)

    def copy_row(self, source, destination) -> None:
        """Copy a row in all caches."""
        super().copy_row(source, destination)
        for one in self.small:
            one.copy_row(source, destination)

    def clear(self, row, start) -> None:
        """Clear a row in all caches."""
        super().clear(row, start)
        for one in self.small:
            one.clear(row, start)

    def read(self, token_ids, window, num_logits=1) -> Output:
        """Read with all three (prompts too), and add the difference."""
        found = super().read(token_ids, window, num_logits)
        tuned, untuned = (one.read(token_ids, window, num_logits).logits for one in self.small)
        return Output(found.logits + tuned - untuned, found.hidden)

    def _copy(self, copies) -> None:
        """Copy what prompts share, in all caches."""
        super()._copy(copies)
        for one in self.small:
            one._copy(copies)


def main() -> None:
    """Put the other target in place of the engine's, and run arms.py."""
    untuned, _, draft = sys.argv[1:4]
    ProxyTuned.drafts = ModelPair.from_pretrained(draft, untuned, dtype="float32")
    speculative.CachedModel = ProxyTuned
    del sys.argv[1]
    arms.main()


if __name__ == "__main__":
    main()
