"""Separate counts of strict accepts and overrides, taken without waiting for a GPU.

vLLM's ``spec_decode_num_accepted_tokens`` is their sum. The worker that rules is another process
than the one that answers ``/metrics``, and its outputs have no room for our counts. So the worker
adds to a small memory-mapped file of eight-byte numbers, whose name both processes derive from the
engine's ``instance_id``, and the server's process reads it (`stat_logger`).

This file knows nothing of vLLM's modules and loads without it.
"""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import logging
import mmap
import os
import tempfile
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from cospec.errors import ConfigError
from cospec.vllm_plugin.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger(__name__)

_Use: TypeAlias = Callable[[list[Tensor]], None]

COUNTS = ("num_strict_accepts", "num_overrides", "num_mismatches", "num_non_finite_scores")
"""Names of the counts, in the order of the columns of `StepCounts.add`."""

HELP = {
    "num_strict_accepts": "Drafted tokens that the target agreed with.",
    "num_overrides": "Drafted tokens that stand by the arbiter's ruling.",
    "num_mismatches": "Reached disagreements of draft and target.",
    "num_non_finite_scores": "Arbiter scores that were not finite, and ruled for the target.",
}


class HostQueue:
    """Tensors on their way to the host, handed over in order when they have arrived.

    On a CPU that is at once. On a GPU they are copied into pinned memory during the computation,
    and a thread waits for them, so that no step waits and the last one is handed over too.

    Args:
        max_pending: Steps that may wait for the thread; with more, new ones are dropped.

    Attributes:
        num_dropped: Steps that were dropped.
    """

    def __init__(self, max_pending: float = float("inf")) -> None:
        self.max_pending, self.num_dropped = max_pending, 0
        self._pending: SimpleQueue[tuple[Any, list[Tensor], _Use]] = SimpleQueue()  # Any: an event
        self._num_put = self._num_used = 0
        self._used = threading.Condition()
        self._thread: threading.Thread | None = None

    def put(self, tensors: Sequence[Tensor], use: _Use) -> None:
        """Call `use` with copies of `tensors` (all on one device) once they are on the host."""
        if tensors[0].device.type != "cuda":
            use([tensor.detach().clone() for tensor in tensors])
            return
        if self._num_put - self._num_used >= self.max_pending:  # pinned memory would only grow
            if not self.num_dropped:
                logger.warning("CoSpec drops steps of its log: %d wait already", self.max_pending)
            self.num_dropped += 1
            return
        hosts = []
        for tensor in tensors:
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            hosts.append(host.copy_(tensor.detach(), non_blocking=True))
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._num_put += 1
        self._pending.put((event, hosts, use))
        if self._thread is None:
            self._thread = threading.Thread(target=self._hand_over, daemon=True)
            self._thread.start()

    def flush(self) -> None:
        """Wait until all tensors are handed over."""
        with self._used:
            self._used.wait_for(lambda: self._num_used == self._num_put)

    def _hand_over(self) -> None:
        while True:
            event, hosts, use = self._pending.get()
            try:
                event.synchronize()
                use(hosts)
            except Exception:  # lost counts must not end the engine
                logger.exception("CoSpec lost the counts or decisions of a step")
            with self._used:
                self._num_used += 1
                self._used.notify_all()


class CountsFile:
    """Totals in a memory-mapped file: one writer adds, readers take what is new.

    Numbers of eight bytes: the counts that were written, those that readers took, and for each of
    the last `NUM_SLOTS` requests a key made from its id, and its number of overrides.

    Raises:
        OSError: The disk is full, or the folder may not be written to or belongs to another user.
    """

    NUM_SLOTS = 4096

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.parent == _default_folder() and path.parent.lstat().st_uid != os.getuid():
            raise PermissionError(f"{path.parent} belongs to another user; set counts_dir")
        size = 8 * (2 * len(COUNTS) + 2 * self.NUM_SLOTS)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            # Allocated, not only made longer: writing to a hole on a full disk is a bus error.
            os.posix_fallocate(fd, 0, size)  # new bytes are zero
        except OSError:
            os.close(fd)
            raise
        self._fd = fd
        weakref.finalize(self, os.close, fd).atexit = False  # functions run at exit still count
        self._map = mmap.mmap(fd, size)
        numbers = torch.frombuffer(self._map, dtype=torch.int64)
        num = len(COUNTS)
        self._written, self._taken = numbers[: 2 * num].view(2, num)
        self._keys, self._overrides = numbers[2 * num :].view(2, self.NUM_SLOTS)
        self._slots: OrderedDict[str, int] = OrderedDict()

    def add(self, counts: Tensor, overrides: dict[str, int] | None = None) -> None:
        """Add to the totals; only one process may write.

        Args:
            counts: Counts of a step, (len(COUNTS),) int64.
            overrides: Overrides of the step by request id, zeros included.
        """
        self._written += counts
        for request_id, count in (overrides or {}).items():
            slot = self._slots.get(request_id)
            if slot is None:
                is_full = len(self._slots) == self.NUM_SLOTS
                slot = self._slots.popitem(last=False)[1] if is_full else len(self._slots)
                self._overrides[slot] = 0
                self._keys[slot] = _key(request_id)
                self._slots[request_id] = slot
            self._slots.move_to_end(request_id)
            if count:
                self._overrides[slot] += count

    def overrides(self, request_id: str) -> int | None:
        """Overrides of a recent request; None if it is not known."""
        (found,) = torch.nonzero(self._keys == _key(request_id), as_tuple=True)
        return int(self._overrides[found[0]]) if len(found) else None

    def totals(self) -> dict[str, int]:
        """Return the counts that were written so far."""
        return dict(zip(COUNTS, self._written.tolist(), strict=True))

    def take(self) -> dict[str, int]:
        """Return the counts since the last `take` by any process; zeros if another is taking."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return dict.fromkeys(COUNTS, 0)
        try:
            written = self._written.clone()
            new = (written - self._taken).tolist()
            self._taken.copy_(written)
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        return dict(zip(COUNTS, new, strict=True))

    def remove(self) -> None:
        """Remove the name; processes that have the file open go on."""
        with suppress(FileNotFoundError):
            self.path.unlink()


def _key(request_id: str) -> int:
    """A number that stands for a request, never 0."""
    digest = hashlib.blake2b(request_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, signed=True) or 1


def counts_path(
    vllm_config: Any,  # Any: vLLM's VllmConfig, which need not be installed here
    engine_index: int | None = None,
) -> Path:
    """The file through which an engine and its server, on one machine, share counts.

    Args:
        vllm_config: Configuration of the engine, as in either process.
        engine_index: Index among several data-parallel engines; None in a worker, which uses its
            own rank.
    """
    parallel = vllm_config.parallel_config
    index = parallel.data_parallel_index if engine_index is None else engine_index
    name, _, _ = str(vllm_config.instance_id).partition("_dp")
    settings = Settings.from_vllm(vllm_config)
    given = None if settings is None else settings.counts_dir
    folder = _default_folder() if given is None else Path(given)
    return folder / f"{name}-{index}.counts"


def _default_folder() -> Path:
    return Path(tempfile.gettempdir()) / f"cospec-{os.getuid()}"


def open_counts(path: Path) -> CountsFile | None:
    """Open a counts file; if that fails, log it and go on: the engine must not end for that."""
    try:
        return CountsFile(path)
    except OSError as error:
        logger.warning("CoSpec counts nothing on /metrics: %s: %s", path, error)
        return None


def read_counts(
    vllm_config: Any,  # Any: vLLM's VllmConfig
) -> dict[str, int]:
    """Totals of an engine on this machine, by name; pass such as ``llm.llm_engine.vllm_config``.

    Raises:
        ConfigError: The engine has written no counts.
    """
    if not (path := counts_path(vllm_config)).is_file():
        raise ConfigError(
            f"there are no counts at {path}; the engine runs without CoSpec's settings, or on "
            "another machine."
        )
    return CountsFile(path).totals()


@dataclass
class StepCounts:
    """Receives the counts of each step from an adapter. Only one rank of an engine may write.

    Attributes:
        file: File that the server's process reads; None keeps the totals here.
        totals: Totals of the counts that have arrived on the host, by name.
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
        """Make counts that reach the ``/metrics`` of the engine's server, if a file can be had."""
        file = open_counts(counts_path(vllm_config))
        if file is not None:
            atexit.register(file.remove)
        return cls(file)

    def add(
        self,
        counts: Tensor,
        request_ids: Sequence[str] = (),
        num_overrides: Tensor | None = None,
    ) -> None:
        """Add the counts of a step, without waiting for the device.

        Args:
            counts: Counts of the step, (len(COUNTS),) integers, on any device.
            request_ids: Request ids of rows or requests, to tell their overrides apart; may repeat.
            num_overrides: Overrides in this step of the request of each id, integers.
        """
        tensors = [counts] if num_overrides is None else [counts, num_overrides]
        ids = list(request_ids)

        def use(hosts: list[Tensor]) -> None:
            total, *by_request = hosts
            for name, count in zip(COUNTS, total.tolist(), strict=True):
                self.totals[name] += int(count)
            if self.file is not None:
                overrides = [each.tolist() for each in by_request]
                self.file.add(total, dict(zip(ids, overrides[0], strict=True)) if ids else None)

        self._queue.put(tensors, use)

    def drain(self) -> dict[str, int]:
        """All totals, after waiting for pending counts."""
        self._queue.flush()
        return dict(self.totals)
