"""Network of a trained arbiter: features in, one logit for the draft's token out."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from cospec.errors import ConfigError, check_least

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class PolicyConfig:
    """Shape of a policy."""

    kind: Literal["mlp", "linear"] = "mlp"
    """mlp has hidden layers with SiLU, linear has none."""
    hidden_size: int = 64
    """Width of the hidden layers."""
    num_layers: int = 1
    """Hidden layers."""
    init_logit: float = -2.0
    """Logit of an untrained policy: -2 keeps about one drafted token in eight."""
    hidden_projection: int = 16
    """Width of the learned projection of hidden states, where there are any."""
    dropout: float = 0.0
    """Share of inputs dropped at random in updates."""
    correction: bool = False
    """After worked solutions, let the rounds learn only a linear correction of the logit from the
    scalars (including those that solutions cannot show), and freeze the rest."""

    def __post_init__(self) -> None:
        if self.kind not in ("mlp", "linear"):
            raise ConfigError(f"kind of policy is {self.kind!r}; it must be mlp or linear.")
        check_least(1, hidden_size=self.hidden_size, num_layers=self.num_layers)
        check_least(1, hidden_projection=self.hidden_projection)
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout}; it must be in [0, 1).")


class Correction(nn.Linear):
    """Zero-initialised linear correction to the logit, computed from the scalar features."""

    def __init__(self, num_scalars: int) -> None:
        super().__init__(num_scalars, 1)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, _: torch.Generator | None = None) -> Tensor:
        """Return logits, (N,), from normalized scalars with a logit after them, (N, S + 1)."""
        return x[:, -1] + super().forward(x[:, :-1])[:, 0]


class Policy(nn.Module):
    """Logit of keeping the draft's token from normalized features.

    Args:
        num_features: F.
        config: Shape of the policy.
        seed: Seed of the initial weights.
        num_hidden: Number of features that are hidden states: the last ones.

    Attributes:
        mean: Means, which are subtracted from the features, (F,).
        std: Spreads, which the features are divided by, (F,).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, num_features: int, config: PolicyConfig, seed: int = 0, num_hidden: int = 0
    ) -> None:
        super().__init__()
        self.config = config
        self.num_hidden = num_hidden
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("std", torch.ones(num_features))
        widths = [num_features - num_hidden + (config.hidden_projection if num_hidden else 0)]
        if config.kind == "mlp":
            widths += [config.hidden_size] * config.num_layers
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers: list[nn.Module] = []
            for before, after in itertools.pairwise(widths):
                layers += [nn.Linear(before, after), nn.SiLU()]
            head = nn.Linear(widths[-1], 1)
            if num_hidden:
                self.projection = nn.Linear(num_hidden, config.hidden_projection, bias=False)
        nn.init.zeros_(head.weight)
        nn.init.constant_(head.bias, config.init_logit)
        self.layers = nn.Sequential(*layers, head)
        if config.correction:
            self.correction = Correction(num_features - num_hidden)

    def normalize_by(
        self, features: Tensor, constant_spread: float = 1.0, is_used: Tensor | None = None
    ) -> None:
        """Freeze the mean and spread of the training data.

        Args:
            features: (N, F).
            constant_spread: Spread of a feature that never changes: 1 leaves it at its own scale,
                infinity leaves it out.
            is_used: Features that may be used at all, (F,) bool; by default all.
        """
        if not len(features):
            return
        self.mean.copy_(features.mean(dim=0))
        std = features.std(dim=0, unbiased=len(features) > 1)
        self.std.copy_(torch.where(std > 1e-6, std, constant_spread))
        if is_used is not None:
            self.std[~is_used] = torch.inf

    def take_up(self, features: Tensor, is_used: Tensor | None = None) -> None:
        """Normalize, by new data, scalars that were left out before.

        The logit stays as it is: their weights are 0, and only the correction can give them others.

        Args:
            features: (N, F).
            is_used: Features that may be used at all, (F,) bool; by default all.
        """
        spread = features.std(dim=0, unbiased=len(features) > 1)
        is_new = self.std.isinf() & (spread > 1e-6)
        if is_used is not None:
            is_new &= is_used
        is_new[len(is_new) - self.num_hidden :] = False
        self.mean[is_new] = features.mean(dim=0)[is_new]
        self.std[is_new] = spread[is_new]
        first = self.layers[0]
        assert isinstance(first, nn.Linear)
        with torch.no_grad():
            first.weight[:, is_new[: len(is_new) - self.num_hidden].nonzero()[:, 0]] = 0.0

    def set_linear(self, weights: Tensor, bias: Tensor) -> None:
        """Set the weights of a linear policy whose hidden projection has width 1.

        Args:
            weights: Weights of the normalized features, (F,).
            bias: Bias of the logit, a scalar.
        """
        head = self.layers[0]
        assert isinstance(head, nn.Linear) and len(self.layers) == 1
        num_scalars = len(weights) - self.num_hidden
        scalars = weights[:num_scalars]
        with torch.no_grad():
            if self.num_hidden:
                self.projection.weight.copy_(weights[None, num_scalars:])
                scalars = torch.cat([scalars, scalars.new_ones(1)])
            head.weight.copy_(scalars[None])
            head.bias.copy_(bias)

    def linear(self) -> tuple[Tensor, Tensor]:
        """Return the weights of a linear policy, (F,), and its bias, as `set_linear` takes them."""
        head = self.layers[0]
        assert isinstance(head, nn.Linear) and len(self.layers) == 1
        weights = head.weight.detach()[0]
        if self.num_hidden:
            states = weights[-1] * self.projection.weight.detach()[0]
            weights = torch.cat([weights[:-1], states])
        return weights, head.bias.detach()[0]

    def forward(self, features: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return logits, (N,), from raw features (N, F).

        Outliers are cut at 10 spreads; where a feature is not finite, the logit is NaN.

        Args:
            features: Raw, (N, F).
            generator: Generator of the dropout; None for no dropout.
        """
        x = self.corrigible(features, generator)
        return self.correction(x) if self.config.correction else x[:, -1]

    def normalized(self, features: Tensor) -> Tensor:
        """Return features in spreads from their mean, (N, F), cut at 10; NaN if not finite."""
        x = (features.float() - self.mean) / self.std
        return torch.where(x.isfinite(), x.clamp(-10, 10), torch.nan)

    def corrigible(self, features: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the input of a correction: normalized scalars and the logit, (N, S + 1)."""
        x = self.normalized(features)
        scalars = x[:, : x.shape[1] - self.num_hidden]
        if generator is not None and self.config.dropout:
            is_kept = torch.rand(x.shape, generator=generator) >= self.config.dropout
            x = x * is_kept / (1 - self.config.dropout)
        if self.num_hidden:
            hidden = self.projection(x[:, -self.num_hidden :])
            x = torch.cat([x[:, : -self.num_hidden], hidden], dim=1)
        return torch.cat([scalars, self.layers(x)], dim=1)
