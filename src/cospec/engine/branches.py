"""Rollouts that branches can leave: the same text up to a token, and another one there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cospec.engine.prompts import check_room, context_lengths, make_row
from cospec.errors import ConfigError
from cospec.types import Completion, Origin

if TYPE_CHECKING:
    from cospec.config import SamplingConfig
    from cospec.engine.rows import Row
    from cospec.models.pair import ModelPair


@dataclass(frozen=True, slots=True)
class Rollout:
    """A completion that branches can leave.

    Attributes:
        completion: What was generated.
        config: Its settings.
        caches: What target and drafter stored of it; None if that was not kept.
        draft_prompt_ids: What the draft model read in place of the prompt; None for the same.
    """

    completion: Completion
    config: SamplingConfig
    caches: list[Any] | None  # Any: only their stores look into them
    draft_prompt_ids: list[int] | None = None


@dataclass(frozen=True, slots=True)
class Branch:
    """Another token at one place of a rollout.

    Attributes:
        rollout: The rollout that it leaves.
        position: Index of the token in the generated text; the tokens before it are shared.
        token_id: The token that stands there instead.
        origin: Where that token comes from: the draft's token at a mismatch is an override.
        stream: Stream of the rollout's seed that it draws from; by default one that no prompt has,
            by its place in the list and its position: numbers that the rollout has not drawn.
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
        index: Place in the list of branches.
        branch: Where it leaves.
        needs_draft: Whether the drafter needs what it stored of the rollout.

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
    if not 0 <= branch.position < len(parent.token_ids):
        raise ConfigError(
            f"a branch leaves at token {branch.position}; its rollout has tokens 0 to "
            f"{len(parent.token_ids) - 1}."
        )
    vocab_size = pair.target.config.get_text_config().vocab_size
    if not 0 <= branch.token_id < vocab_size:
        raise ConfigError(
            f"a branch has token {branch.token_id}; the target has tokens 0 to {vocab_size - 1}."
        )
    row = make_row(pair, index, parent.prompt_ids, branch.rollout.config)
    own = (1 + branch.position) * 2**32 + index
    row.draw_from(own if branch.stream is None else branch.stream)
    row.generated = parent.token_ids[: branch.position]
    row.origins = parent.origins[: branch.position]
    row.caches, row.draft_prompt_ids = caches, branch.rollout.draft_prompt_ids
    check_room(row, context_lengths(pair, "both" if needs_draft else "target"))
    row.emit(branch.token_id, branch.origin)
    return row
