"""The mathematics of speculative sampling.

``p`` is the target's distribution and ``q`` the draft's, as in Leviathan et al. (2211.17192,
appendix A.1). A token ``x`` drawn from ``q`` is accepted with probability ``min(1, p(x) / q(x))``,
else a token is drawn from ``norm(max(p - q, 0))``. The emitted token then follows ``p`` exactly.

Every random choice uses uniform numbers from the caller, so a row's outcome depends on its own
generator alone. This file knows nothing of models or caches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from cospec.config import SamplingConfig


def row_generator(config: SamplingConfig, index: int) -> torch.Generator:
    """Generator of one prompt's row; streams of different (seed, index) are unrelated.

    Args:
        config: The prompt's settings; a seed of None draws one from the operating system.
        index: Index of the prompt in the given list.
    """
    seed = None if config.seed is None else config.seed % 2**64
    state = np.random.SeedSequence(seed, spawn_key=(index,)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


_TEMPERATURES = 1e-30, 3e38
"""Smallest and largest temperature; beyond them float32 has 0 and infinity, and -inf / inf is
NaN."""
_ALL_TOKENS = 2**31 - 1


class Warper:
    """Turns logits into the distributions that the rows of a batch sample from.

    The order is that of transformers: temperature, top-k, top-p, min-p. A greedy row has all its
    mass on the argmax, so that the accept rule above compares argmaxes.
    """

    def __init__(self, configs: Sequence[SamplingConfig], device: torch.device) -> None:
        """Collect the settings of the rows, one entry per row, on `device`."""

        def column(values: Sequence[float], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)[:, None, None]  # (B, 1, 1)

        self.most_top_k = min(max((c.top_k for c in configs), default=0), _ALL_TOKENS)
        self.has_top_p = any(c.top_p < 1 for c in configs)
        self.has_min_p = any(c.min_p for c in configs)
        self.is_greedy = column([c.is_greedy for c in configs], torch.bool)
        least, most = _TEMPERATURES
        temperatures = [float(min(max(c.temperature, least), most)) for c in configs]
        self.temperature = column(temperatures, torch.float32)
        sizes = [min(c.top_k, _ALL_TOKENS) or _ALL_TOKENS for c in configs]
        self.top_k = column(sizes, torch.int64)
        self.top_p = column([c.top_p for c in configs], torch.float32)
        self.min_p = column([c.min_p for c in configs], torch.float32)

    def probs(self, logits: Tensor) -> Tensor:
        """Distributions to sample from.

        Args:
            logits: (B, N, V), any float dtype.

        Returns:
            (B, N, V) float32, rows sum to 1.
        """
        warped = logits.float()
        warped = (warped - warped.amax(dim=-1, keepdim=True)) / self.temperature
        if self.most_top_k:
            most = min(self.most_top_k, warped.shape[-1])
            best = warped.topk(most, dim=-1).values  # sorted
            kth = best.gather(-1, (self.top_k.clamp(max=most) - 1).expand(*warped.shape[:-1], 1))
            is_cut = (warped < kth) & (self.top_k <= most)
            warped = warped.masked_fill(is_cut, float("-inf"))
        if self.has_top_p:
            warped = self._cut_top_p(warped)
        probs = warped.softmax(dim=-1)
        if self.has_min_p:
            is_cut = probs < self.min_p * probs.amax(dim=-1, keepdim=True)
            probs = warped.masked_fill(is_cut, float("-inf")).softmax(dim=-1)
        return torch.where(self.is_greedy, one_hot(logits.argmax(dim=-1), logits.shape[-1]), probs)

    def _cut_top_p(self, logits: Tensor) -> Tensor:
        ascending, order = logits.sort(dim=-1)
        is_cut = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - self.top_p
        is_cut[..., -1] = False  # the most probable token always stays
        is_cut = is_cut & (self.top_p < 1)
        return logits.masked_fill(is_cut.scatter(-1, order, is_cut), float("-inf"))


def one_hot(token_ids: Tensor, vocab_size: int) -> Tensor:
    """All mass on one token: (...) ids to (..., V) float32."""
    probs = torch.zeros(*token_ids.shape, vocab_size, device=token_ids.device)
    return probs.scatter_(-1, token_ids[..., None], 1.0)


def draw(probs: Tensor, uniforms: Tensor) -> Tensor:
    """Sample by inverting the cumulative distribution; a token of probability 0 is never drawn.

    Args:
        probs: (..., V), rows need not be normalized.
        uniforms: (...) in [0, 1), float64.

    Returns:
        Token ids, (...) int64.
    """
    cdf = probs.double().cumsum(dim=-1)
    cdf = cdf / cdf[..., -1:]
    ids = torch.searchsorted(cdf, uniforms[..., None].contiguous(), right=True)[..., 0]
    return ids.clamp(max=probs.shape[-1] - 1)


def residual(p: Tensor, q: Tensor) -> Tensor:
    """Distribution to draw from after a rejection: max(p - q, 0), not normalized.

    Args:
        p: Target probabilities, (..., V), rows sum to 1.
        q: Draft probabilities, (..., V).

    Returns:
        (..., V). Rows where it vanishes (p equals q up to rounding) fall back to p.
    """
    rest = (p - q).clamp(min=0)
    return torch.where(rest.sum(dim=-1, keepdim=True) > 0, rest, p)


def accepts(p: Tensor, q: Tensor, token_ids: Tensor, uniforms: Tensor) -> Tensor:
    """The accept test of speculative sampling, u < p(x) / q(x), without the division.

    Args:
        p: Target probabilities, (B, K, V).
        q: Draft probabilities, (B, K, V).
        token_ids: Drafted tokens, (B, K).
        uniforms: (B, K) in [0, 1), float64.

    Returns:
        (B, K) bool.
    """
    index = token_ids[..., None]
    p_x, q_x = p.gather(-1, index)[..., 0], q.gather(-1, index)[..., 0]  # (B, K)
    return uniforms * q_x < p_x


@dataclass(frozen=True, slots=True)
class Uniforms:
    """The uniform numbers of a block, each row's from its own generator, float64 in [0, 1).

    The layout is fixed, so a row's numbers do not depend on what happened to it.
    """

    draft: Tensor
    """(B, K)"""
    accept: Tensor
    """(B, K)"""
    target: Tensor
    """(B, K + 1)"""
    arbiter: Tensor
    """(B, K)"""

    @classmethod
    def draw(cls, generators: list[torch.Generator], k: int, device: torch.device) -> Uniforms:
        """Draw a block's numbers for each row."""
        numbers = torch.stack(
            [
                torch.rand(4 * k + 1, generator=g, dtype=torch.float64, device=g.device)
                for g in generators
            ]
        ).to(device)  # (B, 4K + 1)
        return cls(*torch.split(numbers, [k, k, k + 1, k], dim=1))


@dataclass(frozen=True, slots=True)
class Chance:
    """The distributions and random numbers that the rows of a batch draw with in one block.

    Attributes:
        warper: Their distributions; None if every row is greedy.
        uniforms: Their random numbers; None if nothing is drawn.
    """

    warper: Warper | None
    uniforms: Uniforms | None

    @property
    def numbers(self) -> Uniforms:
        """The random numbers, where something is drawn."""
        assert self.uniforms is not None, "sampling needs uniforms"
        return self.uniforms

    @classmethod
    def draw(
        cls,
        configs: Sequence[SamplingConfig],
        generators: list[torch.Generator],
        k: int,
        device: torch.device,
        *,
        needs_uniforms: bool = False,
    ) -> Chance:
        """Draw the random numbers of a block, if it needs any.

        Args:
            configs: Settings of the rows.
            generators: One generator per row.
            k: Drafted tokens of the block.
            device: Device of the distributions and numbers.
            needs_uniforms: Whether the arbiter rules by chance, so that greedy rows need numbers
                too.
        """
        is_greedy = all(config.is_greedy for config in configs)
        warper = None if is_greedy else Warper(configs, device)
        uniforms = None
        if needs_uniforms or not is_greedy:
            uniforms = Uniforms.draw(generators, k, device)
        return cls(warper, uniforms)
