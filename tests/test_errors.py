"""Errors that say what to type: the line has to work where the package was installed from."""

from __future__ import annotations

import json
import pickle
from importlib import metadata
from types import SimpleNamespace

import pytest

from cospec.errors import MissingExtraError, pip_line


@pytest.mark.parametrize(
    ("origin", "line"),
    [
        (None, "pip install 'cospec[gguf]'"),
        (
            {"url": "file:///home/ann/my%20code", "dir_info": {"editable": True}},
            "pip install -e '/home/ann/my code[gguf]'",
        ),
        (
            {"url": "file:///tmp/cospec-0.2.0-py3-none-any.whl", "archive_info": {}},
            "pip install 'cospec[gguf] @ file:///tmp/cospec-0.2.0-py3-none-any.whl'",
        ),
    ],
)
def test_an_extra_is_installed_from_where_the_package_came(monkeypatch, origin, line):
    """Found: of a checkout pip looked for the package on an index, where it is not."""
    told = None if origin is None else json.dumps(origin)
    found = SimpleNamespace(read_text=lambda name: told if name == "direct_url.json" else None)
    monkeypatch.setattr(metadata, "distribution", {"cospec": found}.__getitem__)
    assert pip_line("gguf") == line
    assert str(MissingExtraError("gguf", "gguf")).endswith(f"run: {line}")


def test_an_error_of_a_missing_extra_comes_back_from_another_process():
    """Found: it could not be unpickled, so that the advice was lost."""
    error = MissingExtraError("Ray", "ray")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
