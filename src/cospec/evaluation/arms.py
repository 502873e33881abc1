"""Arms of an evaluation: named ways to decode the same problems."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cospec.arbiters import AlwaysTarget
from cospec.arbiters.observed import placed
from cospec.config import DecodeConfig
from cospec.engine import Engine
from cospec.errors import ConfigError
from cospec.evaluation.summary import DRAFT, LOSSLESS, TARGET

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cospec.backends.jobs import Decoder, Decoders
    from cospec.models import ModelPair
    from cospec.types import Arbiter


@dataclass(frozen=True, slots=True)
class EngineDecoders:
    """Engines of this package on a pair."""

    pair: ModelPair

    def plain(self, role: Literal["target", "draft"], config: DecodeConfig) -> Decoder:
        """Return a decoder with one model alone."""
        kind = Engine.target_only if role == "target" else Engine.draft_only
        return kind(self.pair, config)

    def ruled(self, arbiter: Arbiter, config: DecodeConfig) -> Decoder:
        """Return a decoder with the pair under an arbiter."""
        return Engine(self.pair, placed(arbiter, self.pair), config)


@dataclass(frozen=True, slots=True)
class Arm:
    """A way to decode."""

    name: str
    arbiter: str | None
    """The spec of its arbiter; None for plain decoding."""
    engine: Decoder


def make_arms(
    pair: ModelPair,
    arbiters: Sequence[tuple[str, Arbiter]] = (),
    decode: DecodeConfig | None = None,
    decoders: Decoders | None = None,
) -> list[Arm]:
    """Return the arms target, draft and lossless, and one for each arbiter under its name.

    Args:
        pair: The models.
        arbiters: Pairs of a spec and its arbiter; the lossless one adds no second arm.
        decode: Block length, batch size and other decoding options.
        decoders: Makes the decoder of each arm; by default the engine of this package.

    Raises:
        ConfigError: Two arms would have the same name.
        ArbiterError: No block length is given, and the arbiters were trained at several.
    """
    check_names((arbiter.name, spec) for spec, arbiter in arbiters)
    decode = (decode or DecodeConfig()).with_options(keep_trace=False)
    decode = decode.for_arbiters(arbiter for _, arbiter in arbiters)
    decoders = decoders or EngineDecoders(pair)
    arms = [
        Arm(TARGET, None, decoders.plain("target", decode)),
        Arm(DRAFT, None, decoders.plain("draft", decode)),
        Arm(LOSSLESS, LOSSLESS, decoders.ruled(AlwaysTarget(), decode)),
    ]
    return arms + [
        Arm(arbiter.name, spec, decoders.ruled(arbiter, decode))
        for spec, arbiter in arbiters
        if arbiter.name != LOSSLESS
    ]


def check_names(arms: Iterable[tuple[str, str]]) -> None:
    """Refuse arms that could not be told apart in a result.

    Args:
        arms: Name and spec of each arm besides target, draft and lossless. A lossless one adds no
            arm.

    Raises:
        ConfigError: Two arms have one name.
    """
    taken = {TARGET, DRAFT}
    for name, spec in arms:
        if name in taken:
            raise ConfigError(
                f"two arms are called {name!r}, the second one by {spec!r}; name each arbiter "
                "once, and none like the arms target and draft."
            )
        if name != LOSSLESS:
            taken.add(name)
