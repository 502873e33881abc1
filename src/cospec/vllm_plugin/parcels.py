"""Arbiters on their way to the workers: pickled, and each large constant sent once.

A policy changes from round to round and is small; the embeddings and token kinds of its features
never change and are large. So a tensor of at least `MIN_ELEMENTS` is sent with the first parcel
that needs it, and by its number later. Both ends belong to one user: a worker unpickles what the
process that started it has sent.
"""

from __future__ import annotations

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
    """The end that has the arbiters."""

    _known: dict[tuple[int, int], tuple[int, Tensor]] = field(default_factory=dict)

    def pack(self, arbiter: Arbiter) -> bytes:
        """Return an arbiter as bytes, without the tensors that were sent before."""
        new: dict[int, Tensor] = {}
        weights: set[int] = set()
        file = io.BytesIO()
        pickler = pickle.Pickler(file)
        pickler.persistent_id = lambda value: self._number(value, new, weights)  # type: ignore[method-assign]
        pickler.dump(arbiter)
        return pickle.dumps((new, file.getvalue()))

    def _number(self, value: object, new: dict[int, Tensor], weights: set[int]) -> int | None:
        """Return the number of a large tensor, and add it to the new ones if it is one."""
        if isinstance(value, nn.Parameter):  # it is pickled as a tensor of its own
            weights.add(value.data_ptr())
        is_constant = type(value) is Tensor and not value.requires_grad
        is_constant = is_constant and value.data_ptr() not in weights  # type: ignore[attr-defined]
        if not is_constant or value.numel() < MIN_ELEMENTS:  # type: ignore[attr-defined]
            return None
        assert isinstance(value, Tensor)
        # A tensor that was changed in place has another version, and is sent again. It is kept
        # alive here, so that no other one gets its id.
        key = id(value), 0 if value.is_inference() else value._version
        if key not in self._known:
            self._known[key] = len(self._known), value
            new[self._known[key][0]] = value.detach().cpu()
        return self._known[key][0]


@dataclass
class Receiver:
    """The end that rules."""

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
