"""Rollouts, and branches of them: the same text up to a token, and another token there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cospec.engine.prompts import check_room, context_lengths, make_row
from cospec.errors import ConfigError, whole_number
from cospec.types import Completion, Origin

if TYPE_CHECKING:
    from cospec.config import SamplingConfig
    from cospec.engine.rows import Row
    from cospec.models.pair import ModelPair


@dataclass(frozen=True, slots=True)
class Rollout:
    """A completion that branches can start from.

    Attributes:
        completion: The completion.
        config: Its settings.
        caches: Caches of target and drafter; None if they were not kept.
        draft_prompt_ids: Prompt that the draft model read; None for the same.
    """

    completion: Completion
    config: SamplingConfig
    caches: list[Any] | None  # Any: only their stores look into them
    draft_prompt_ids: list[int] | None = None


@dataclass(frozen=True, slots=True)
class Branch:
    """Another token at one place of a rollout.

    Attributes:
        rollout: Rollout that it starts from.
        position: Index of the token in the generated text; the tokens before it are shared.
        token_id: The token that stands there instead.
        origin: Origin of that token: the draft's token at a mismatch is an override.
        stream: Stream of the rollout's seed to draw from. The default depends on its index in the
            list and its position, and is one that no prompt has, so that its numbers are new.
    """

    rollout: Rollout
    position: int
    token_id: int
    origin: Origin = Origin.OVERRIDE
    stream: int | None = None


def branch_row(pair: ModelPair, index: int, branch: Branch, *, needs_draft: bool) -> Row:
    """Return a row that stands after the branch's token.

    Args:
        pair: The models.
        index: Index in the list of branches.
        branch: Branch to start.
        needs_draft: Whether the drafter needs its cache of the rollout.

    Raises:
        ConfigError: The rollout or the target has no such token, or the caches were not kept.
        PromptError: The completion would not fit the context.
    """
    parent, caches = branch.rollout.completion, branch.rollout.caches
    if caches is None or (needs_draft and (len(caches) < 2 or caches[1] is None)):
        raise ConfigError(
            "the rollout of a branch has not kept both models' caches; make it with the rollouts "
            "of an engine that has both (draft-only decoding keeps none), or pass keep_caches=True "
            "to the engine's branches."
        )
    position = whole_number("position of a branch", branch.position)
    token_id = whole_number("token_id of a branch", branch.token_id)
    if not 0 <= position < len(parent.token_ids):
        raise ConfigError(
            f"a branch leaves at token {position}; its rollout has tokens 0 to "
            f"{len(parent.token_ids) - 1}."
        )
    vocab_size = pair.target.config.get_text_config().vocab_size
    if not 0 <= token_id < vocab_size:
        raise ConfigError(
            f"a branch has token {token_id}; the target has tokens 0 to {vocab_size - 1}."
        )
    row = make_row(pair, index, parent.prompt_ids, branch.rollout.config)
    own = (1 + position) * 2**32 + index
    stream = own if branch.stream is None else whole_number("stream of a branch", branch.stream)
    if stream < 0:
        raise ConfigError(f"stream of a branch is {stream}; a stream is 0 or positive.")
    row.draw_from(stream)
    row.generated = parent.token_ids[:position]
    row.origins = parent.origins[:position]
    row.caches, row.draft_prompt_ids = caches, branch.rollout.draft_prompt_ids
    check_room(row, context_lengths(pair, "both" if needs_draft else "target"))
    row.emit(token_id, branch.origin)
    return row
