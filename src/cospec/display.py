"""A completion as coloured HTML, for notebooks: origins in colour, probabilities on hover.

Colours are transparent to suit light and dark pages. Each element has its own style, because
notebooks drop style sheets.
"""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

from cospec.text import BROKEN, GrowingText, visible

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from cospec.types import Completion, MismatchTrace

_STYLES = {
    "match": "",
    "override": "background:rgba(213,94,0,.3);font-weight:700",
    "correction": "background:rgba(0,114,178,.3)",
    "bonus": "background:rgba(0,158,115,.2)",
}
_LEGEND = {
    "match": "drafted, the target agreed",
    "override": "override: the draft's token stands",
    "correction": "the target's correction",
    "bonus": "bonus token of the target",
}
VETOES = {
    "exact_prefix": "nothing is overridden at this place or in this text",
    "stop_token": "it would end the text or keep it from ending",
    "forbidden": "the target gives it probability 0",
    "non_finite": "the score is not finite",
    "no_draft": "the drafter gives no probabilities here",
}
"""Reasons why the engine turns an override down, by `MismatchTrace.veto`."""


def pieces(tokenizer: PreTrainedTokenizerBase, token_ids: list[int], text: str) -> list[str]:
    """Return the text that each token adds; joined, they are `text`.

    A character made of several tokens belongs to the last of them.

    Args:
        tokenizer: Tokenizer of the pair.
        token_ids: T token ids.
        text: Text of the completion, which may end before its last token does.
    """
    found, num_told, growing = [], 0, GrowingText(tokenizer)
    for i, token_id in enumerate(token_ids, 1):
        decoded = growing.add(token_id)
        is_whole = i == len(token_ids) or not decoded.endswith(BROKEN)
        end = min(len(decoded), len(text)) if is_whole else num_told
        found.append(text[num_told:end])
        num_told = max(num_told, end)
    return found


def completion_html(completion: Completion, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a completion as HTML; on hover each token shows its probabilities, p and q.

    A mismatch shows those of both tokens.

    Args:
        completion: Completion, with its trace if hovering is to show probabilities.
        tokenizer: Tokenizer of the pair.
    """
    mismatches = {m.position: m for m in completion.reached}
    texts = pieces(tokenizer, completion.token_ids, completion.text)
    spans = []
    tokens = zip(texts, completion.origins, completion.token_probs, strict=True)
    for i, (text, origin, (p, q)) in enumerate(tokens):
        told = _LEGEND[origin]
        if i in mismatches:
            told = f"{told}\n{_ruling(mismatches[i], tokenizer)}"
        elif p is not None:
            told = f"{told}\np {_number(p)}, q {_number(q)}"
        shown = escape(visible(text))
        spans.append(f'<span title="{escape(told)}" style="{_STYLES[origin]}">{shown}</span>')
    legend = " &nbsp; ".join(
        f'<span style="{_STYLES[origin]}">{told}</span>' for origin, told in _LEGEND.items()
    )
    return (
        f'<div style="white-space:pre-wrap">{"".join(spans)}</div>'
        f'<div style="font-size:smaller;opacity:.8">{legend}</div>'
    )


def _ruling(mismatch: MismatchTrace, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return both tokens with the probabilities that both models give them."""
    rows = (
        ("draft's", mismatch.draft_id, mismatch.p_draft_id, mismatch.q_draft_id),
        ("target's", mismatch.target_id, mismatch.p_target_id, mismatch.q_target_id),
    )
    lines = [
        f"{who} {tokenizer.decode([i])!r}: p {_number(p)}, q {_number(q)}" for who, i, p, q in rows
    ]
    score = [] if mismatch.score is None else [f"score {mismatch.score:.3g}"]
    veto = [] if mismatch.veto is None else [f"turned down: {VETOES[mismatch.veto]}"]
    return "\n".join([*lines, *score, *veto])


def _number(value: float | None) -> str:
    """Return a probability, or a dash if there is none, as for a token that was looked up."""
    return "-" if value is None or math.isnan(value) else f"{value:.3g}"
