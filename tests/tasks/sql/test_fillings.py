"""The files of fillings: they go with their process, however it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from cospec.tasks.sql.fillings import Fillings

if TYPE_CHECKING:
    import pytest

PROGRAM = (
    "from cospec.tasks.sql.fillings import Fillings\n"
    "fillings = Fillings({}, {})\n"
    "print(fillings._folder, flush=True)\n"
    "input()\n"
)


def started(home: Path) -> subprocess.Popen[str]:
    """A process that makes a folder for fillings, tells its name and waits."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(home)},
        text=True,
    )


def test_what_a_killed_process_left_is_removed_and_what_a_live_one_uses_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found: each run that was killed left its files in the temporary folder for good."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with started(tmp_path) as killed, started(tmp_path) as alive:
        folders = []
        for process in (killed, alive):
            assert process.stdout is not None
            folders.append(Path(process.stdout.readline().strip()))
        (folders[0] / "shop-0.sqlite").touch()
        killed.kill()
        killed.wait()
        Fillings({}, {})
        assert folders[0].exists(), "it might be one that is not locked yet"
        for folder in folders:
            os.utime(folder, (0, 0))
        ours = Fillings({}, {})
        assert [folder.exists() for folder in folders] == [False, True]
        assert ours._folder.parent == folders[1].parent == tmp_path
        alive.communicate("\n")
    assert not folders[1].exists()


def test_links_and_files_of_that_name_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (kept := tmp_path / "kept").mkdir()
    (kept / "file").touch()
    (link := tmp_path / "cospec-fillings-link").symlink_to(kept)
    (file := tmp_path / "cospec-fillings-file").touch()
    for path in (kept, file):
        os.utime(path, (0, 0))
    os.utime(link, (0, 0), follow_symlinks=False)
    Fillings({}, {})
    assert (kept / "file").exists() and link.is_symlink() and file.exists()
