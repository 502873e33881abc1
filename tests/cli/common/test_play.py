"""Notes before an evaluation."""

from __future__ import annotations

import json

import pytest
import torch

from cospec.arbiters import load_arbiter
from cospec.cli.common.play import check_trained_on
from cospec.errors import ConfigError
from cospec.results import write_tensors
from cospec.tasks import Example
from cospec.tasks.trained_on import hashes_of, write_trained_on
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


def test_a_memory_of_the_problems_is_said_aloud(tmp_path, capsys):
    """Found: csd could be measured on the problems whose mismatches it had counted."""
    examples = [Example(f"p/{i}", f"question {i}", "3") for i in range(4)]
    ids = torch.tensor([1, 2])
    about = {"trained_on": json.dumps(hashes_of(examples[:3]))}
    for name, more in (("audit", about), ("older", None)):
        write_tensors(tmp_path / name, {"draft_id": ids, "target_id": ids + 1}, more)
    known, older = (load_arbiter(f"csd:memory={tmp_path / name}") for name in ("audit", "older"))
    check_trained_on([known, older, load_arbiter("gap")], examples, is_strict=False)
    told = " ".join(capsys.readouterr().err.split())
    assert told.endswith("was trained on 3 of these 4 problems") and told.count("note:") == 1
    for arbiter, message in ((known, "trained on 3 of these 4"), (older, "does not tell what")):
        with pytest.raises(ConfigError, match=message):
            check_trained_on([arbiter], examples, is_strict=True)
