"""A checkpoint on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.arbiters.trained import learned

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint with two operating points, on no pair in particular."""
    points = {"operating_points": {"bold": {"threshold": 0.125, "why": "fast"}}}
    learned(threshold=0.625, about=points).save(tmp_path / "arbiter", "# A card\n")
    return tmp_path / "arbiter"
