"""Arbiters on their way to the workers: pickled, and each large constant sent once.

A policy changes from round to round and is small; the embeddings and token kinds of its features
never change and are large. So a tensor of at least `MIN_ELEMENTS` is sent with the first parcel
that needs it, and by its number later. Copies are recognized by their content (Ray makes a new copy
of an arbiter for each call). Both ends belong to one user: a worker unpickles parcels from the
process that started it.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from cospec.types import Arbiter

MIN_ELEMENTS = 2**12


@dataclass
class Sender:
    """The sending end, which has the arbiters."""

    _numbers: dict[bytes, int] = field(default_factory=dict)
    """Numbers of all tensors that were sent, by content."""
    _last: dict[tuple[int, int], tuple[int, Tensor]] = field(default_factory=dict)
    """Numbers of the last parcel's tensors, by identity; these need not be read again."""

    def pack(self, arbiter: Arbiter) -> bytes:
        """Return an arbiter as bytes, without the tensors that were sent before."""
        new: dict[int, Tensor] = {}
        used: dict[tuple[int, int], tuple[int, Tensor]] = {}
        weights: set[int] = set()
        file = io.BytesIO()
        pickler = pickle.Pickler(file)
        pickler.persistent_id = lambda value: self._number(value, new, used, weights)  # type: ignore[method-assign]
        pickler.dump(arbiter)
        self._last = used
        return pickle.dumps((new, file.getvalue()))

    def _number(
        self,
        value: object,
        new: dict[int, Tensor],
        used: dict[tuple[int, int], tuple[int, Tensor]],
        weights: set[int],
    ) -> int | None:
        """Return the number of a large constant tensor, and add it to `new` if it is new."""
        if isinstance(value, nn.Parameter):  # it is pickled as a tensor of its own
            weights.add(value.data_ptr())
        is_constant = type(value) is Tensor and not value.requires_grad
        is_constant = is_constant and value.data_ptr() not in weights  # type: ignore[attr-defined]
        if not is_constant or value.numel() < MIN_ELEMENTS:  # type: ignore[attr-defined]
            return None
        assert isinstance(value, Tensor)
        # A tensor that was changed in place has another version, and is read again. Tensors of the
        # last parcel are kept alive, so that no other tensor gets their ids.
        key = id(value), 0 if value.is_inference() else value._version
        found = used.get(key) or self._last.get(key)
        if found is None:
            on_host = value.detach().cpu()
            content = _digest(on_host)
            if content not in self._numbers:
                self._numbers[content] = len(self._numbers)
                new[self._numbers[content]] = on_host
            found = self._numbers[content], value
        used[key] = found
        return found[0]


def _digest(tensor: Tensor) -> bytes:
    """Return a hash of a tensor's type, shape and numbers."""
    numbers = tensor.contiguous().view(torch.uint8).numpy().data
    about = f"{tensor.dtype} {tuple(tensor.shape)}".encode()
    return hashlib.blake2b(about + b":" + hashlib.blake2b(numbers).digest()).digest()


@dataclass
class Receiver:
    """The receiving end, which rules."""

    _known: dict[int, Tensor] = field(default_factory=dict)

    def unpack(self, parcel: bytes) -> Arbiter:
        """Return the arbiter of a parcel."""
        new, pickled = pickle.loads(parcel)
        self._known |= new
        unpickler: Any = pickle.Unpickler(io.BytesIO(pickled))  # Any: a method is set on it
        unpickler.persistent_load = self._known.__getitem__
        with torch.no_grad():
            arbiter: Arbiter = unpickler.load()
        return arbiter
