"""What an arbiter sees of a mismatch, as a fixed list of numbers.

The features of the ``scalar`` spec are the same for every pair, so that what is learnt on one pair
can be tried on another, and in every engine, so that an arbiter trained here rules alike in vLLM.
The ``hidden`` spec adds the models' own states, which mean something on one pair only.
Features are raw; whoever learns from them normalises and freezes what it normalised with.

Where the ideas come from: the gap and rank of relaxed acceptance rules, entropies and divergences
of cascades (2405.19261) and fuzzy decoding (2502.20704), the look-ahead of FLy (2511.22972), the
position in block and text of our own audit.
"""

from __future__ import annotations

import hashlib
import string
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, get_args

import torch

from cospec.errors import ConfigError, unknown_name
from cospec.types import Needs

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from cospec.models import ModelPair
    from cospec.types import MismatchBatch

FeatureSpec: TypeAlias = Literal["scalar", "hidden"]
"""Names of what `make_features` makes."""

KINDS = ("digit", "punctuation", "space", "word", "piece")
"""Kinds of tokens; whatever is none of the first three is a word if a space leads it."""

SCALAR_NAMES = (
    "log_p_draft",
    "log_p_target",
    "log_q_draft",
    "log_q_target",
    "gap_p",
    "gap_q",
    "log_rank_p_draft",
    "log_rank_q_target",
    "entropy_p",
    "entropy_q",
    "margin_p",
    "margin_q",
    "kl_p_q",
    "kl_q_p",
    "overlap",
    "lookahead_run",
    "lookahead_share",
    "lookahead_log_p",
    "lookahead_min_log_p",
    "lookahead_tokens",
    "block_position",
    "log_position",
    "log_num_overrides",
    *(f"draft_{kind}" for kind in KINDS),
    *(f"target_{kind}" for kind in KINDS),
)
"""The features in order. Logarithms are natural; log-probabilities are cut at `FLOOR`."""

OF_THE_DRAFT = ("log_q_draft", "entropy_q", "margin_q")
"""Those that the draft alone tells before the target has read anything; besides them the kind of
its token and its hidden state, whose names begin with ``draft_``."""

OF_A_JUDGE = ("target_hidden_after_", "draft_hidden_")
"""How the names begin of the states that AutoJudge (2504.20039) looks at, and of nothing else."""

FLOOR = -20.0
SCALAR_NEEDS = Needs.LOGITS | Needs.LOOKAHEAD


@dataclass(frozen=True)
class ScalarFeatures:
    """The ``scalar`` spec, version 1.

    Attributes:
        kinds: Index into `KINDS` of each token, (V,) int64.
    """

    kinds: Tensor

    needs = SCALAR_NEEDS

    @property
    def names(self) -> tuple[str, ...]:
        """Of the F features, in order; those of hidden states come last."""
        return SCALAR_NAMES

    @property
    def is_of_draft(self) -> Tensor:
        """Whether each feature is known before the target has read anything, (F,) bool."""
        return torch.tensor([n.startswith("draft_") or n in OF_THE_DRAFT for n in self.names])

    @property
    def is_of_judge(self) -> Tensor:
        """Whether each feature is one that AutoJudge looks at, (F,) bool; none of the scalars."""
        return torch.tensor([name.startswith(OF_A_JUDGE) for name in self.names])

    @property
    def num_hidden(self) -> int:
        """How many of the features are hidden states."""
        return len(self.names) - len(SCALAR_NAMES)

    @staticmethod
    def for_tokenizer(tokenizer: PreTrainedTokenizerBase | None, vocab_size: int) -> ScalarFeatures:
        """Look up the kind of every token; without a tokenizer all are word pieces."""
        kinds = torch.full((vocab_size,), KINDS.index("piece"))
        if tokenizer is not None:
            for i in range(min(len(tokenizer), vocab_size)):
                kinds[i] = KINDS.index(kind_of(str(tokenizer.decode([i]))))
        return ScalarFeatures(kinds)

    def on(self, pair: ModelPair) -> Self:
        """The same features with what they look up on the device of a pair."""
        return replace(self, kinds=self.kinds.to(pair.target.device))

    def __call__(self, batch: MismatchBatch) -> Tensor:
        """The features of each mismatch, (M, F) float32, all finite if the logits are."""
        logs = torch.stack([batch.log_p, batch.log_q], dim=1)  # (M, 2, V): p and q
        probs, logs = logs.exp(), logs.clamp(min=FLOOR)
        ids = torch.stack([batch.draft_ids, batch.target_ids], dim=1)  # (M, 2)
        chosen = logs.gather(2, ids[:, None].expand(-1, 2, -1))  # (M, 2, 2): of both tokens
        p_d, p_t, q_d, q_t = chosen.flatten(1).unbind(dim=1)
        ranks = (logs > torch.stack([p_d, q_t], dim=1)[:, :, None]).sum(dim=2).float()  # (M, 2)
        first, second = logs.topk(2, dim=2).values.unbind(dim=2)
        kl_p_q, minus_kl_q_p = (probs * (logs[:, :1] - logs[:, 1:])).sum(dim=2).unbind(dim=1)
        columns = [
            *(p_d, p_t, q_d, q_t, p_t - p_d, q_d - q_t),
            *ranks.log1p().unbind(dim=1),
            *(-(probs * logs).sum(dim=2)).unbind(dim=1),
            *(first - second).unbind(dim=1),
            *(kl_p_q, -minus_kl_q_p),
            probs.amin(dim=1).sum(dim=1),
            *_lookahead(batch),
            batch.block_positions.float(),
            batch.positions.float().log1p(),
            batch.num_overrides.float().log1p(),
        ]
        kinds = self.kinds.to(ids.device)[ids]  # (M, 2)
        # Not one_hot, which looks at the values and so may wait for the device.
        flags = (kinds[:, :, None] == torch.arange(len(KINDS), device=ids.device)).float()
        return torch.cat([torch.stack(columns, dim=1), flags.flatten(1)], dim=1)

    def to_dict(self) -> dict[str, Any]:  # Any: a JSON object
        """The spec as a saved arbiter records it."""
        return {"spec": "scalar", "hash": spec_hash(self.names), "names": list(SCALAR_NAMES)}


@dataclass(frozen=True)
class HiddenFeatures(ScalarFeatures):
    """The ``hidden`` spec, version 2: the scalars, last hidden states, embeddings of both tokens.

    The states are the target's before and after it read the drafted token, and the draft's; the
    embeddings are the target's. Version 1, which older checkpoints have, has no embeddings.

    Attributes:
        hidden_sizes: Widths of the target's and the draft's states.
        embeddings: The target's of all tokens, (V, E); (0, E) until it is known of which pair; None
            in version 1.
    """

    hidden_sizes: tuple[int, int]
    embeddings: Tensor | None = None

    needs = SCALAR_NEEDS | Needs.HIDDEN

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of the F features, in order."""
        target, draft = self.hidden_sizes
        widths = {"target_hidden": target, "target_hidden_after": target, "draft_hidden": draft}
        if self.embeddings is not None:
            width = self.embeddings.shape[1]
            widths |= {"draft_embedding": width, "target_embedding": width}
        states = (f"{name}_{i}" for name, width in widths.items() for i in range(width))
        return (*SCALAR_NAMES, *states)

    def on(self, pair: ModelPair) -> Self:
        """The same features with the embeddings of a pair, on its device."""
        embeddings = None if self.embeddings is None else _embeddings(pair)
        return replace(super().on(pair), embeddings=embeddings)

    def __call__(self, batch: MismatchBatch) -> Tensor:
        """The features of each mismatch, (M, F) float32."""
        before, after, draft = batch.target_hidden, batch.target_hidden_after, batch.draft_hidden
        assert before is not None and after is not None, "declare Needs.TARGET_HIDDEN"
        assert draft is not None, "declare Needs.DRAFT_HIDDEN"
        states = [before, after, draft]
        if self.embeddings is not None:
            states += [self.embeddings[batch.draft_ids], self.embeddings[batch.target_ids]]
        return torch.cat([super().__call__(batch), *(state.float() for state in states)], dim=1)

    def to_dict(self) -> dict[str, Any]:  # Any: a JSON object
        """The spec as a saved arbiter records it: the names of states follow from the widths."""
        sizes: dict[str, Any] = {"hidden_sizes": list(self.hidden_sizes)}
        if self.embeddings is not None:
            sizes["embedding_size"] = self.embeddings.shape[1]
        return super().to_dict() | {"spec": "hidden"} | sizes


def make_features(spec: FeatureSpec, pair: ModelPair) -> ScalarFeatures:
    """The features of a spec, fitted to the vocabulary and the widths of a pair.

    Raises:
        ConfigError: There is no such spec.
    """
    if spec not in get_args(FeatureSpec):
        raise ConfigError(unknown_name("features", spec, get_args(FeatureSpec)))
    vocab_size = pair.target.config.get_text_config().vocab_size
    scalar = ScalarFeatures.for_tokenizer(pair.tokenizer, vocab_size)
    if spec == "scalar":
        return scalar
    heads = [model.get_output_embeddings() for model in (pair.target, pair.draft_model)]  # type: ignore[no-untyped-call]
    target, draft = (head.weight.shape[1] for head in heads)
    return HiddenFeatures(scalar.kinds, (target, draft), _embeddings(pair))


def _embeddings(pair: ModelPair) -> Tensor:
    """The target's embeddings of all tokens, (V, E)."""
    table = pair.target.get_input_embeddings().weight
    assert isinstance(table, torch.Tensor)
    return table.detach()


def _lookahead(batch: MismatchBatch) -> list[Tensor]:
    """Matches until the first mismatch, their share, the log-probabilities, and how many count."""
    matches, log_p = batch.lookahead_matches, batch.lookahead_log_p  # (M, K - 1)
    assert matches is not None and log_p is not None, "declare Needs.LOOKAHEAD"
    num_ahead = (batch.block_lengths - 1 - batch.block_positions).float()  # (M,)
    run = matches.int().cumprod(dim=1).sum(dim=1).float()
    share = matches.sum(dim=1) / num_ahead.clamp(min=1)
    log_p = log_p.clamp(min=FLOOR)
    least = torch.nn.functional.pad(log_p, (0, 1)).min(dim=1).values
    return [run, share, log_p.sum(dim=1), least, num_ahead]


def kind_of(text: str) -> str:
    """The kind of a token by its text, one of `KINDS`."""
    bare = text.strip()
    if not bare:
        return "space"
    if bare.isdecimal():
        return "digit"
    if all(c in string.punctuation or not (c.isalnum() or c.isspace()) for c in bare):
        return "punctuation"
    return "word" if text[0].isspace() else "piece"


def spec_hash(names: tuple[str, ...]) -> str:
    """A short hash of a list of features, by which a saved arbiter knows its own."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
