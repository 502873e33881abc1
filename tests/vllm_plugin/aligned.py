"""Our engine with the one habit of vLLM's that a law has to allow for.

vLLM takes the first token of each request from the forward of its prompt, without a draft; blocks
begin after it. `AlignedBackend` does the same: a lossless engine writes one token, and the rest is
a branch that leaves there with that very token.
"""

from __future__ import annotations

from dataclasses import replace

from cospec.arbiters import AlwaysTarget
from cospec.backends.base import Rollout
from cospec.backends.engine import EngineBackend
from cospec.engine import Branch, Engine
from cospec.types import Origin


class AlignedBackend(EngineBackend):
    def complete(self, items, arbiter, *, keep_handles=False):
        short = [replace(item.sampling, max_new_tokens=1) for item in items]
        firsts = Engine(self.pair, AlwaysTarget(), self.config).rollouts(
            [item.prompt for item in items], short, streams=[item.stream for item in items]
        )
        leaves = [
            (replace(first, config=item.sampling), 0, item.stream)
            for first, item in zip(firsts, items, strict=True)
        ]
        return self._go_on(leaves, arbiter, keep_handles)

    def branch(self, points, arbiter, *, keep_handles=False):
        whole = [self.as_branch(point) for point in points]
        short = [
            replace(
                one,
                rollout=replace(
                    one.rollout,
                    config=replace(
                        one.rollout.config,
                        max_new_tokens=min(one.position + 2, one.rollout.config.max_new_tokens),
                    ),
                ),
            )
            for one in whole
        ]
        firsts = Engine(self.pair, AlwaysTarget(), self.config).branches(short, keep_caches=True)
        leaves, done = [], {}
        for i, (first, one) in enumerate(zip(firsts, whole, strict=True)):
            if len(first.completion.token_ids) == one.position + 1:  # the token ended the text
                done[i] = Rollout(first.completion, (self.pair, first))
            else:
                leaf = replace(first, config=one.rollout.config), one.position + 1, one.stream
                leaves.append((i, leaf))
        ends = self._go_on([leaf for _, leaf in leaves], arbiter, keep_handles)
        done |= {i: end for (i, _), end in zip(leaves, ends, strict=True)}
        return [done[i] for i in range(len(points))]

    def _go_on(self, leaves, arbiter, keep_handles):
        branches = [
            Branch(first, place, first.completion.token_ids[place], Origin.BONUS, stream)
            for first, place, stream in leaves
        ]
        ends = self._engine(arbiter).branches(branches, keep_caches=keep_handles)
        return self._rollouts(ends, keep_handles)
