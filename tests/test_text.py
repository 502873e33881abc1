"""Text that is shown to a person cannot steer what shows it."""

from __future__ import annotations

import math

import pytest
import torch

from cospec.text import plain_dict, typed, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 東 🙂\tand\nmore", "plain é 東 🙂\tand\nmore"),
        ("\x1b[31mred\x1b]0;title\x07", r"\x1b[31mred\x1b]0;title\x07"),
        ("back\rwards\x08", r"back\rwards\x08"),
        ("\x9b31m", r"\x9b31m"),
        ("user\u202etxt.exe", r"user\u202etxt.exe"),
        ("\u2066a\u2069\u2028", r"\u2066a\u2069\u2028"),
        ("half \ud800", r"half \ud800"),
    ],
)
def test_controls_become_visible_and_text_stays(text, shown):
    assert visible(text) == shown
    assert visible(shown) == shown
    visible(text).encode()


def test_what_is_written_as_json_has_no_nan():
    """Found: the features of a mismatch had, where the draft's logits were NaN."""
    values = [("features", torch.tensor([1.0, math.nan])), ("p", math.inf), ("k", 3), ("name", "a")]
    assert plain_dict(values) == {"features": [1.0, None], "p": None, "k": 3, "name": "a"}


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        (r"a\nb", "a\nb"),
        (r"\\nabla", r"\nabla"),
        (r"\\\n", "\\\n"),
        (r"\d\t", r"\d\t"),
        ("\n", "\n"),
    ],
)
def test_a_typed_line_break_is_one_and_a_doubled_backslash_is_none(text, meant):
    assert typed(text) == meant
