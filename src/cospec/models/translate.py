"""Translation of a draft with another vocabulary to the target's token ids.

Only tokens that both tokenizers spell alike are ever drafted, as in token-level intersection (Timor
et al., 2502.05202, algorithm 4) and vLLM. Here the draft's own embedding and output matrices are
rearranged, so that the rest of the package sees a model over the target's ids. A token of the
target that the draft lacks is read as the mean of the tokens that spell it, and has next to no
probability. Lossless decoding stays exact, whichever tokens are drafted.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from cospec.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_NEVER = -1e4  # as a logit: exp of it is 0 in float32, and no sum of it is NaN
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_MARKED = ("eos_token_id", "bos_token_id", "pad_token_id", "unk_token_id")
"""Special tokens; the first one counts if the target has one id for several."""
POOR = 0.9
"""Share of shared tokens in texts below which hardly any block is accepted."""


def translate(
    draft: PreTrainedModel,
    theirs: PreTrainedTokenizerBase,
    ours: PreTrainedTokenizerBase,
    width: int,
    texts: Iterable[str],
) -> str:
    """Let a draft read and write the target's ids, in place.

    Args:
        draft: Draft whose matrices are rearranged.
        theirs: The draft's tokenizer.
        ours: The target's.
        width: Width of the target's logits.
        texts: Sample texts, to measure the share of shared tokens.

    Returns:
        A note on the tokens that the two have in common.

    Raises:
        UnsupportedModelError: The draft's last layer is not a linear one.
    """
    model: Any = draft  # its accessors are not typed
    embedding = model.get_input_embeddings()
    num_rows = len(embedding.weight)  # a tokenizer may have more tokens, such as one for padding
    shared = {a: b for a, b in shared_ids(theirs, ours).items() if b < num_rows}
    ids = torch.tensor([shared.get(i, 0) for i in range(width)])  # (V,)
    is_shared = torch.tensor([i in shared for i in range(width)])
    weight = embedding.weight.detach()
    read = weight[ids.to(weight.device)]  # (V, H)
    for i, pieces in _spelt_by(theirs, ours, set(range(min(width, len(ours)))) - shared.keys()):
        if max(pieces) < num_rows:
            read[i] = weight[pieces].float().mean(dim=0)
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise UnsupportedModelError(
            f"{type(draft).__name__} has no linear output layer, whose rows could be put in the "
            "target's order; pass a draft that shares the target's tokenizer."
        )
    place = ids.to(head.weight.device)
    new = nn.Linear(head.in_features, width, device=head.weight.device, dtype=head.weight.dtype)
    new.weight.data = head.weight.detach()[place]
    bias = new.bias.data.zero_() if head.bias is None else head.bias.detach()[place]
    new.bias.data = bias.masked_fill(~is_shared.to(bias.device), _NEVER)
    embedding.weight, embedding.num_embeddings = nn.Parameter(read), width
    embedding.padding_idx = None  # an id of the draft's own vocabulary, perhaps beyond this one
    model.set_output_embeddings(new)
    config = draft.config.get_text_config()
    config.vocab_size, config.tie_word_embeddings = width, False
    return _note(len(shared) / len(ours), _share_of_texts(shared, ours, texts))


def shared_ids(theirs: PreTrainedTokenizerBase, ours: PreTrainedTokenizerBase) -> dict[int, int]:
    """Return the draft's id for each of the target's ids that it spells alike."""
    known = {text: i for i, text in _spellings(theirs).items()}
    found = {i: known[text] for i, text in _spellings(ours).items() if text in known}
    marked: dict[int, int] = {}
    for name in _MARKED:
        a, b = getattr(ours, name, None), getattr(theirs, name, None)
        if a is not None and b is not None:
            marked.setdefault(a, b)
    return found | marked


def _spellings(tokenizer: PreTrainedTokenizerBase) -> dict[int, bytes | str]:
    """Return the bytes of each token by id, whatever alphabet its tokenizer writes them in.

    Special tokens stay names, so that none is taken for the text that looks like it. A byte token
    is left out if a plain token spells the same: no tokenizer writes ``<0x2E>`` where it has ``.``.
    """
    vocabulary, special = tokenizer.get_vocab(), set(tokenizer.all_special_ids)
    spaces = [sum(token.startswith(sign) for token in vocabulary) for sign in ("\u2581", "\u0120")]
    alphabet = _byte_alphabet()
    found: dict[int, bytes | str] = {}
    by_byte: dict[int, bytes] = {}
    for token, i in vocabulary.items():
        if i in special:
            found[i] = token
        elif spaces[0] > spaces[1]:  # as SentencePiece writes them
            if byte := _BYTE.fullmatch(token):
                by_byte[i] = bytes.fromhex(byte[1])
            else:
                found[i] = token.replace("\u2581", " ").encode()
        else:
            found[i] = bytes(alphabet[c] for c in token) if alphabet.keys() >= set(token) else token
    plain = set(found.values())
    return found | {i: byte for i, byte in by_byte.items() if byte not in plain}


def _byte_alphabet() -> dict[str, int]:
    """Return the letters in which byte-level tokenizers (GPT-2's) write bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def _spelt_by(
    theirs: PreTrainedTokenizerBase, ours: PreTrainedTokenizerBase, ids: set[int]
) -> list[tuple[int, list[int]]]:
    """Return the draft's tokens that spell each of the target's `ids`, where there are some."""
    if not ids:
        return []
    texts = [str(ours.decode([i])) for i in sorted(ids)]
    spelt = theirs(texts, add_special_tokens=False)["input_ids"]
    return [(i, pieces) for i, pieces in zip(sorted(ids), spelt, strict=True) if pieces]


def _share_of_texts(
    shared: dict[int, int], ours: PreTrainedTokenizerBase, texts: Iterable[str]
) -> float:
    ids = [i for text in texts for i in ours(text, add_special_tokens=False)["input_ids"]]
    return sum(i in shared for i in ids) / len(ids)


def _note(of_vocabulary: float, of_texts: float) -> str:
    note = (
        f"draft and target tokenize differently: the draft has {of_vocabulary:.1%} of the target's "
        f"tokens, which make up {of_texts:.1%} of sample texts, and drafts no others; cospec info "
        "tells how often its choice stands"
    )
    if of_texts < POOR:
        note += (
            ". That is too little to be fast: every block ends at the first token that is not "
            "shared. vLLM saw 15% of the drafted tokens accepted where 70% were shared, and 61% at "
            "99.8% (its pull request 38174). Take a draft of the target's family"
        )
    return note
