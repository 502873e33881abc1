"""Counts that stock vLLM adds up: strict accepts and overrides apart, without waiting for a GPU.

vLLM's ``spec_decode_num_accepted_tokens`` holds both. The worker that judges is another process
than the one that answers ``/metrics``, and its outputs have no room for ours. So the worker adds to
a small memory-mapped file of eight-byte numbers, whose name both processes derive from the
engine's ``instance_id``, and the server's process reads it (`stat_logger`).

This file knows nothing of vLLM's modules and loads without it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import tempfile
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

COUNTS = ("num_strict_accepts", "num_overrides", "num_mismatches", "num_non_finite_scores")
"""What is counted, in the order of the columns of `StepCounts.add`."""

HELP = {
    "num_strict_accepts": "Drafted tokens that the target agreed with.",
    "num_overrides": "Drafted tokens that stand by the arbiter's ruling.",
    "num_mismatches": "Reached disagreements of draft and target.",
    "num_non_finite_scores": "Arbiter scores that were not finite, and ruled for the target.",
}

_MAX_PENDING = 256
"""Steps whose copies may be under way before the oldest one is waited for."""


class HostQueue:
    """Tensors on their way to the host, handed over in order when they have arrived.

    On a CPU that is at once. On a GPU they are copied into pinned memory beside the computation;
    `put` and `poll` look at what has arrived and do not wait, `flush` waits.
    """

    def __init__(self) -> None:
        self._pending: deque[tuple[Any, list[Tensor], Callable[[list[Tensor]], None]]] = deque()

    def put(self, tensors: Sequence[Tensor], use: Callable[[list[Tensor]], None]) -> None:
        """Have `use` called with copies on the host of `tensors`, all on one device."""
        if tensors[0].device.type != "cuda":
            use([tensor.detach().cpu() for tensor in tensors])
            return
        hosts = []
        for tensor in tensors:
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            hosts.append(host.copy_(tensor.detach(), non_blocking=True))
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._pending.append((event, hosts, use))
        self.poll()

    def poll(self) -> None:
        """Hand over what has arrived; wait only if far too much is under way."""
        while self._pending and (self._pending[0][0].query() or len(self._pending) > _MAX_PENDING):
            event, hosts, use = self._pending.popleft()
            event.synchronize()
            use(hosts)

    def flush(self) -> None:
        """Wait for all of it."""
        while self._pending:
            event, hosts, use = self._pending.popleft()
            event.synchronize()
            use(hosts)


class CountsFile:
    """Totals in a memory-mapped file: one writer adds, readers take what is new.

    Two rows of numbers: what was written, and what was taken by a reader.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        size = 2 * 8 * len(COUNTS)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.fstat(self._fd).st_size < size:
            os.ftruncate(self._fd, size)  # new bytes are zero
        self._map = mmap.mmap(self._fd, size)
        self._numbers = memoryview(self._map).cast("q")

    def add(self, counts: Sequence[int]) -> None:
        """Add to the totals; for one writing process."""
        for i, count in enumerate(counts):
            self._numbers[i] += count

    def totals(self) -> dict[str, int]:
        """What was written so far."""
        return dict(zip(COUNTS, self._numbers[: len(COUNTS)].tolist(), strict=True))

    def take(self) -> dict[str, int]:
        """What was written since the last `take` by any process; zeros if another is taking."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return dict.fromkeys(COUNTS, 0)
        try:
            new = {}
            for i, name in enumerate(COUNTS):
                written = self._numbers[i]
                new[name] = written - self._numbers[len(COUNTS) + i]
                self._numbers[len(COUNTS) + i] = written
            return new
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self, *, remove: bool = False) -> None:
        """Let go of the file."""
        self._numbers.release()
        self._map.close()
        os.close(self._fd)
        if remove:
            with suppress(FileNotFoundError):
                self.path.unlink()


def counts_path(
    vllm_config: Any,  # Any: vLLM's VllmConfig, which need not be installed here
    engine_index: int | None = None,
) -> Path:
    """The file in which an engine and its server meet, on one machine.

    Args:
        vllm_config: Of the engine, in either process.
        engine_index: Which of several data-parallel engines; in a worker None, its own rank.
    """
    parallel = vllm_config.parallel_config
    index = parallel.data_parallel_index if engine_index is None else engine_index
    name, _, _ = str(vllm_config.instance_id).partition("_dp")
    folder = Path(os.environ.get("COSPEC_RUN_DIR") or Path(tempfile.gettempdir()))
    return folder / f"cospec-{os.getuid()}" / f"{name}-{index}.counts"


@dataclass
class StepCounts:
    """Where an adapter hands over what each step counted. Only one rank of an engine may.

    Attributes:
        file: Where the server's process reads; None keeps the totals here.
        totals: Of what has arrived on the host, by name.
    """

    file: CountsFile | None = None

    def __post_init__(self) -> None:
        self.totals = dict.fromkeys(COUNTS, 0)
        self._queue = HostQueue()

    @classmethod
    def for_engine(
        cls,
        vllm_config: Any,  # Any: vLLM's VllmConfig
    ) -> StepCounts:
        """Counts that reach the ``/metrics`` of the engine's server."""
        return cls(CountsFile(counts_path(vllm_config)))

    def add(self, counts: Tensor) -> None:
        """Add the counts of a step, without waiting for the device.

        Args:
            counts: (len(COUNTS),), or (B, len(COUNTS)) by request, integers, on any device.
        """
        self._queue.put([counts.reshape(-1, len(COUNTS)).sum(dim=0)], self._arrived)

    def drain(self) -> dict[str, int]:
        """All totals, after waiting for what is under way."""
        self._queue.flush()
        return dict(self.totals)

    def _arrived(self, hosts: list[Tensor]) -> None:
        counts = [int(count) for count in hosts[0].tolist()]
        for name, count in zip(COUNTS, counts, strict=True):
            self.totals[name] += count
        if self.file is not None:
            self.file.add(counts)
