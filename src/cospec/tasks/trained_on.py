"""Remember the questions that an arbiter was trained on, so that a test on them is noticed.

A trained arbiter's folder holds sorted sets of hashes for its train and tune problems: one of the
texts of the questions, and one of the keys that twins share (`twin_key`) where a task has them. A
hash has five bytes: 3,000 questions against 100,000 give a false alarm in one run of 3,600.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cospec.errors import CheckpointError
from cospec.results import write_tensors
from cospec.tasks.gsm_symbolic import TEMPLATE, twin_key
from cospec.tasks.splits import normalize

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from cospec.tasks.base import Example

FILE = "trained_on.safetensors"
_BYTES = 5


@dataclass(frozen=True, slots=True)
class Overlap:
    """Test problems that an arbiter has met in training."""

    num_same: int
    """Questions that it was trained on, word for word."""
    num_twins: int
    """Other questions that differ from one of those by names alone."""


def write_trained_on(
    folder: Path, examples: Iterable[Example], more: Mapping[str, Sequence[str]] | None = None
) -> None:
    """Write hashes of the problems that an arbiter was trained or tuned on, and `more` hashes.

    These are hexadecimal, from `hashes_of`.
    """
    names = ("questions", "twins")
    found = {
        name: set(hashes) - {b""} for name, hashes in zip(names, _hashes(examples), strict=True)
    }
    for name, hashes in (more or {}).items():
        found[name] |= set(map(bytes.fromhex, hashes))
    write_tensors(folder / FILE, {name: _packed(hashes) for name, hashes in found.items()})


def hashes_of(examples: Iterable[Example]) -> dict[str, list[str]]:
    """Return the hashes of some questions as hexadecimal text, by kind."""
    questions, twins = _hashes(examples)
    return {
        "questions": [one.hex() for one in questions],
        "twins": [one.hex() for one in twins if one],
    }


def overlap(folder: Path, examples: Sequence[Example]) -> Overlap | None:
    """Count the test problems that the arbiter in a folder was trained on.

    Returns:
        The counts; None if the folder has no record, since an older version or no ``cospec train``
        made it.

    Raises:
        CheckpointError: The file is damaged.
    """
    known = read_hashes(folder)
    return None if known is None else _overlap(known, examples)


def overlap_of(hashes: Mapping[str, Sequence[str]], examples: Sequence[Example]) -> Overlap:
    """Count the test problems among questions that are known by their hashes.

    Args:
        hashes: From `hashes_of`.
        examples: The test problems.
    """
    known = {name: set(map(bytes.fromhex, hashes.get(name, ()))) for name in ("questions", "twins")}
    return _overlap(known, examples)


def _overlap(known: Mapping[str, set[bytes]], examples: Sequence[Example]) -> Overlap:
    same = [
        (question in known["questions"], twin in known["twins"])
        for question, twin in zip(*_hashes(examples), strict=True)
    ]
    num_twins = sum(is_twin and not is_same for is_same, is_twin in same)
    return Overlap(sum(is_same for is_same, _ in same), num_twins)


def unseen(folder: Path, examples: Sequence[Example]) -> list[Example]:
    """Return the problems that the arbiter in a folder was neither trained nor tuned on.

    These are all of them if the folder has no record.

    Raises:
        CheckpointError: The file is damaged.
    """
    known = read_hashes(folder) or {"questions": set()}
    hashes, _ = _hashes(examples)
    return [e for e, one in zip(examples, hashes, strict=True) if one not in known["questions"]]


def read_hashes(folder: Path) -> dict[str, set[bytes]] | None:
    """Return the hashes in an arbiter's folder, by kind; None if it has no record.

    Raises:
        CheckpointError: The file is damaged.
    """
    from safetensors import SafetensorError  # noqa: PLC0415
    from safetensors.torch import load_file  # noqa: PLC0415  # brings torch

    path = folder / FILE
    if not path.exists():
        return None
    try:
        tensors = load_file(path)
        return {name: _unpacked(tensors[name]) for name in ("questions", "twins")}
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}); restore it, or remove it to go without the check."
        ) from None


def _hashes(examples: Iterable[Example]) -> tuple[list[bytes], list[bytes]]:
    """Hash the text of each question, and the key of its twins (empty if its task has none)."""
    questions, twins = [], []
    for example in examples:
        questions.append(_hash(normalize(example.question)))
        template = example.metadata.get(TEMPLATE)
        twin = b""
        if isinstance(template, int):
            twin = _hash(twin_key(template, example.question))
        twins.append(twin)
    return questions, twins


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:_BYTES]


def _packed(hashes: set[bytes]) -> Tensor:
    """Return hashes as a sorted tensor, (N, 5) uint8."""
    import torch  # noqa: PLC0415

    data = bytearray(b"".join(sorted(hashes)))
    if not data:
        return torch.empty(0, _BYTES, dtype=torch.uint8)
    return torch.frombuffer(data, dtype=torch.uint8).view(-1, _BYTES)


def _unpacked(tensor: Tensor) -> set[bytes]:
    if tensor.dim() != 2 or tensor.shape[1] != _BYTES:
        raise ValueError(f"its shape is {tuple(tensor.shape)}, not (N, {_BYTES})")
    data = tensor.numpy().tobytes()
    return {data[i : i + _BYTES] for i in range(0, len(data), _BYTES)}
