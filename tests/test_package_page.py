"""The package of docs/package.md builds, installs and passes the test that the page shows."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cospec import load_arbiter
from cospec.tasks import load_task

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "package.md").read_text()


def block(language):
    """The only code block of a language."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return found


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Build the wheel from the page's files and put its content on the path, as pip would."""
    package = tmp_path / "my-cospec" / "my_cospec"
    package.mkdir(parents=True)
    (package.parent / "pyproject.toml").write_text(block("toml"))
    (package / "__init__.py").touch()
    for name in re.findall(r"(\w+)\.py +examples/my_\1\.py", PAGE):
        (package / f"{name}.py").write_text((ROOT / "examples" / f"my_{name}.py").read_text())
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=package.parent, capture_output=True, check=True)
    site = tmp_path / "site"
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(site)
    (site / "test_margin.py").write_text(block("python"))
    monkeypatch.syspath_prepend(str(site))
    yield
    for name in [*sys.modules]:
        if name.partition(".")[0] in ("my_cospec", "test_margin"):
            del sys.modules[name]


def test_the_package_gives_its_names_and_passes_its_own_test(installed):
    assert load_task("apples,largest=50").name == "apples"
    assert load_arbiter("margin:max_margin=0.1").max_margin == 0.1
    importlib.import_module("test_margin").test_a_margin_that_is_never_met_is_lossless()
