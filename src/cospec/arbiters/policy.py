"""The network behind a learned arbiter: features in, one logit for the draft's token out."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from cospec.errors import ConfigError

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
    """What an untrained policy says: -2 keeps about one drafted token in eight."""

    def __post_init__(self) -> None:
        if self.kind not in ("mlp", "linear"):
            raise ConfigError(f"kind of policy is {self.kind!r}; it must be mlp or linear.")
        if self.hidden_size < 1 or self.num_layers < 1:
            raise ConfigError(
                f"hidden_size is {self.hidden_size} and num_layers {self.num_layers}; both must be "
                "at least 1."
            )

    def to_dict(self) -> dict[str, Any]:  # Any: a JSON object
        """The settings as a JSON object."""
        return asdict(self)


class Policy(nn.Module):
    """Logit of keeping the draft's token from normalised features.

    Args:
        num_features: F.
        config: Its shape.
        seed: Of the initial weights.

    Attributes:
        mean: Subtracted from the features, (F,).
        std: They are divided by it, (F,).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, num_features: int, config: PolicyConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("std", torch.ones(num_features))
        widths = [num_features]
        if config.kind == "mlp":
            widths += [config.hidden_size] * config.num_layers
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers: list[nn.Module] = []
            for before, after in itertools.pairwise(widths):
                layers += [nn.Linear(before, after), nn.SiLU()]
            head = nn.Linear(widths[-1], 1)
        nn.init.zeros_(head.weight)
        nn.init.constant_(head.bias, config.init_logit)
        self.layers = nn.Sequential(*layers, head)

    def normalise_by(self, features: Tensor) -> None:
        """Freeze mean and spread of what is learnt from.

        Args:
            features: (N, F). A feature that never changes is left at its own scale.
        """
        if not len(features):
            return
        self.mean.copy_(features.mean(dim=0))
        std = features.std(dim=0, unbiased=len(features) > 1)
        self.std.copy_(torch.where(std > 1e-6, std, torch.ones_like(std)))

    def forward(self, features: Tensor) -> Tensor:
        """Logits, (N,), from raw features (N, F); outliers are cut at 10 spreads."""
        x = ((features.float() - self.mean) / self.std).clamp(-10, 10)
        logits: Tensor = self.layers(x)[:, 0]
        return logits
