"""Notes before an evaluation."""

from __future__ import annotations

import pytest

from cospec.cli.common.play import check_trained_on
from cospec.errors import ConfigError
from cospec.tasks import Example
from cospec.tasks.trained_on import write_trained_on
from tests.arbiters.trained import learned


def test_the_label_of_an_arbiter_cannot_steer_the_terminal(tmp_path, capsys):
    """Found: it was printed as it came, perhaps from a stranger's config."""
    examples = [Example(f"p/{i}", f"question {i}", "3") for i in range(4)]
    write_trained_on(tmp_path, examples[:3])
    arbiter = learned(label="\x1b[2Jours", folder=tmp_path)
    check_trained_on([arbiter], examples, is_strict=False)
    told = "note: \\x1b[2Jours was trained on 3 of these 4 problems\n"
    assert capsys.readouterr().err == told
    with pytest.raises(ConfigError, match="trained on 3 of these 4 problems; draw others"):
        check_trained_on([arbiter], examples, is_strict=True)
