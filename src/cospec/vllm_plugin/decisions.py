"""A log of decisions: what the arbiter saw and ruled, as training data for the next one.

Off by default: it holds token ids of users' texts. One JSON object a line; the first line of a file
names the features. Lines are appended under a lock, so that several engines may share a
file. A server that is killed may leave half a line, which readers pass over. The file never grows
over its limit: then the log ends, and later steps cost nothing. A disk that fails ends the log and
never the server.
"""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import json
import logging
import os
from typing import TYPE_CHECKING

import torch

from cospec.errors import ConfigError
from cospec.vllm_plugin.metrics import HostQueue

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from cospec.vllm_plugin.settings import DecisionLogSettings

FORMAT = 1
MAX_PENDING = 256
"""Steps on a GPU that may wait to be written; a slower disk loses the next ones."""
NUM_WIDE = 256
"""From this many features on, copying unwanted rows takes longer than waiting for a GPU."""

logger = logging.getLogger(__name__)


class DecisionLog:
    """Appends reached decisions to a file, without waiting for the device.

    Attributes:
        num_written: Decisions that this process has written.
        num_dropped: Decisions that were lost because the file was full or the disk failed.

    Raises:
        ConfigError: The file cannot be opened.
    """

    def __init__(
        self, settings: DecisionLogSettings, arbiter: str, feature_names: Sequence[str] = ()
    ) -> None:
        """Open the file.

        Args:
            settings: File, share of the requests and size limit.
            arbiter: Name of the arbiter, for the head line.
            feature_names: Names of the F features; empty if the arbiter does not name them.
        """
        self.settings = settings
        self.num_written = 0
        self.num_dropped = 0
        self._is_open = True
        self._queue = HostQueue(MAX_PENDING)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        try:
            self._fd = os.open(settings.path, flags, 0o600)
            if os.fstat(self._fd).st_uid == os.getuid():
                os.fchmod(self._fd, 0o600)  # a file that was there may be open to others
        except OSError as error:
            raise ConfigError(
                f"decisions cannot be written to {settings.path}: {error.strerror}; name a file in "
                "a folder that exists and may be written to."
            ) from None
        head = {"cospec_decisions": FORMAT, "arbiter": arbiter, "features": list(feature_names)}
        self._append([json.dumps(head)], is_head=True)
        atexit.register(self.close)

    def wants(self, request_id: str) -> bool:
        """Return whether a request is in the sample: by its id, so that all processes agree."""
        digest = hashlib.sha256(request_id.encode()).digest()
        return int.from_bytes(digest[:8]) < self.settings.sampling_rate * 2**64

    def add(
        self,
        request_ids: Sequence[str],
        is_reached: Tensor,
        *,
        positions: Tensor,
        block_positions: Tensor,
        draft_ids: Tensor,
        target_ids: Tensor,
        keep_draft: Tensor,
        score: Tensor | None = None,
        features: Tensor | None = None,
        probability: Tensor | None = None,
    ) -> None:
        """Write down the reached decisions of a step, when they have come to the host.

        Args:
            request_ids: Request id of each row, T of them.
            is_reached: Whether the row is a mismatch that was reached, (T,) bool.
            positions: Index in the generated text, (T,).
            block_positions: Index in the block, (T,).
            draft_ids: The draft's token, (T,).
            target_ids: The target's token, (T,).
            keep_draft: The ruling that counted, (T,) bool.
            score: Score of the ruling, (T,) float, if there is one.
            features: Features that the arbiter saw, (T, F) float, if it returns them.
            probability: Probability of keeping the draft's token, (T,) float, if chance decided.
        """
        if not self._is_open:
            return
        rows = self._wanted(request_ids, is_reached.device)
        is_wide = features is not None and features.shape[1] >= NUM_WIDE
        if is_wide or rows.device.type != "cuda":  # on a GPU it waits for the step
            rows = rows[is_reached[rows]]
        if not len(rows):
            return
        columns = {
            "position": positions,
            "block_position": block_positions,
            "draft_id": draft_ids,
            "target_id": target_ids,
            "keep_draft": keep_draft,
            "score": score,
            "features": features,
            "probability": probability,
        }
        given = {name: column for name, column in columns.items() if column is not None}
        names, ids = list(given), list(request_ids)

        def use(hosts: list[Tensor]) -> None:
            lines = []
            for i, reached, *values in zip(*(host.tolist() for host in hosts), strict=True):
                if reached:
                    told = dict(zip(names, map(_rounded, values), strict=True))
                    if probability is not None:  # whole: 0.9999996 is not 1
                        told["probability"] = values[names.index("probability")]
                    lines.append(json.dumps({"request_id": ids[i], **told}))
            self._append(lines)

        self._queue.put([rows, *(each[rows] for each in (is_reached, *given.values()))], use)

    def _wanted(self, request_ids: Sequence[str], device: torch.device) -> Tensor:
        """Return the rows of the requests in the sample, (N,) int64."""
        is_wanted = {request_id: self.wants(request_id) for request_id in set(request_ids)}
        wanted = [i for i, request_id in enumerate(request_ids) if is_wanted[request_id]]
        rows = torch.tensor(wanted, dtype=torch.int64, pin_memory=device.type == "cuda")
        return rows.to(device, non_blocking=True)

    def close(self) -> None:
        """Write pending decisions and close the file."""
        atexit.unregister(self.close)
        self._queue.flush()
        if self._is_open:
            self._is_open = False
            os.close(self._fd)

    def _append(self, lines: list[str], *, is_head: bool = False) -> None:
        """Append whole lines while they fit."""
        if not lines:
            return
        if not self._is_open:
            self.num_dropped += len(lines)
            return
        try:
            num_written = self._append_locked(lines)
        except OSError as error:
            self._stop(f"writing to {self.settings.path} failed: {error}")
            num_written = 0
        if not is_head:
            self.num_written += num_written
            self.num_dropped += len(lines) - num_written

    def _append_locked(self, lines: list[str]) -> int:
        """Append the lines that fit, in one call; return their number."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)  # several engines may share the file
        try:
            size = os.fstat(self._fd).st_size
            # A process that was killed may have left half a line, which readers pass over.
            is_torn = size > 0 and os.pread(self._fd, 1, size - 1) != b"\n"
            parts, end, num_written = [b"\n" * is_torn], size + is_torn, 0
            for line in lines:
                parts.append(line.encode() + b"\n")
                end += len(parts[-1])
                if end > self.settings.max_bytes:
                    parts.pop()
                    break
                num_written += 1
            data = b"".join(parts)
            if data and os.write(self._fd, data) < len(data):
                os.ftruncate(self._fd, size)
                raise OSError("the disk took only a part of a line")
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        if num_written < len(lines):
            self._stop(f"{self.settings.path} has reached max_bytes={self.settings.max_bytes}")
        return num_written

    def _stop(self, reason: str) -> None:
        logger.warning("CoSpec writes no more decisions: %s", reason)
        self._is_open = False
        os.close(self._fd)


def _rounded(value: object) -> object:
    """A number as JSON allows it: floats with six digits, null if not finite."""
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if abs(value) < float("inf") else None
    return value
