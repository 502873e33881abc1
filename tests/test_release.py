"""The files that a release publishes: built here, and listed."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest

import cospec

ROOT = Path(__file__).parent.parent
MAX_WHEEL_BYTES = 30_000_000
PACKAGE_FILES = {
    "", ".py", ".typed", ".md", ".json", ".jsonl", ".safetensors", ".html", ".js", ".css",
}  # fmt: skip


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """Paths of the wheel and the source distribution."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, capture_output=True, check=True)
    name = f"cospec-{cospec.__version__}"
    return folder / f"{name}-py3-none-any.whl", folder / f"{name}.tar.gz"


def source_files() -> set[str]:
    """The files below src that git tracks; where there is no checkout, those that are there."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "src"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        paths = [path.relative_to(ROOT) for path in (ROOT / "src").rglob("*") if path.is_file()]
        names = [path.as_posix() for path in paths if "__pycache__" not in path.parts]
    else:
        names = done.stdout.split("\0")[:-1]
    return {name.removeprefix("src/") for name in names}


def test_the_wheel_holds_the_package_and_nothing_else(dist):
    wheel, _ = dist
    assert wheel.stat().st_size < MAX_WHEEL_BYTES
    with zipfile.ZipFile(wheel) as file:
        names = [name for name in file.namelist() if ".dist-info/" not in name]
    assert set(names) == source_files(), "git add what belongs to the package, remove what does not"
    assert {PurePosixPath(name).suffix for name in names} <= PACKAGE_FILES
    assert "cospec/bundled/arbiters/specialist/model.safetensors" in names


def test_the_source_distribution_holds_the_package_and_its_papers(dist):
    _, source = dist
    with tarfile.open(source) as file:
        tops = {PurePosixPath(name).parts[1] for name in file.getnames()}
    assert tops == {
        "src", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff",
        "PKG-INFO", ".gitignore",
    }  # fmt: skip


def test_the_description_can_be_shown_by_an_index(dist):
    check = [sys.executable, "-m", "twine", "check", "--strict", *map(str, dist)]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_all_files_name_one_version():
    """Unreleased code has a version that no tag can have."""
    newest = re.search(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    if newest == "Unreleased":
        assert cospec.__version__.endswith(".dev0")
    else:
        assert newest == cospec.__version__
        assert f"version: {cospec.__version__}\n" in (ROOT / "CITATION.cff").read_text()
