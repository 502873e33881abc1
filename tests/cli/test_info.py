"""``cospec info`` on a pair."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from cospec import cli


def test_a_pair_is_told_its_memory_costs_and_speed(tiny, capsys):
    tiny("info", "--target", "t", "--draft", "d", "--prompt", "the hen", "--num-tokens", 5)
    out = capsys.readouterr()
    assert "note: the draft has no name" in out.err
    for part in ("float32 on cpu, context 192", "rows of 192 tokens", "ms for 17 tokens"):
        assert part in " ".join(out.out.split())
    assert "of 5 tokens" in out.out
    assert out.out.splitlines()[-1].startswith(("Lossless decoding should", "This pair does not"))
    assert (tiny.asked_for[0].target, tiny.asked_for[0].draft) == ("t", "d")


def test_word_problems_of_the_package_are_the_prompts_by_default(tiny, capsys):
    tiny("info", "--pair", "bundled:family", "--num-tokens", 2)
    assert "of 8 tokens" in capsys.readouterr().out


def test_numbers_that_cannot_be_are_refused(tiny, refusal):
    assert "num_tokens is 0" in refusal(tiny, "info", "--num-tokens", 0)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_and_options(tmp_path, monkeypatch):
    script = tmp_path / "cospec.bash"
    arguments = ["cospec", "--tyro-write-completion", "bash", str(script)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit):
        cli.main()
    program = f"""
        source {script}
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${{#COMP_LINE}}
        $(complete -p cospec | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        echo "${{COMPREPLY[@]}}"
    """
    for words, wanted in (
        (["cospec", "arb"], "arbiters"),
        (["cospec", "eval", "--arb"], "--arbiter"),
    ):
        run = ["bash", "-c", program, "bash", *words]
        done = subprocess.run(run, capture_output=True, text=True, check=True)
        assert wanted in done.stdout, (words, done.stderr)


@pytest.mark.parametrize(
    "option", [("--prompt", "a"), ("--file", "p.txt"), ("--batch-size", 2), ("--num-tokens", 9)]
)
def test_an_option_of_pairs_is_refused_without_one(tiny, refusal, option):
    """Found: it was ignored."""
    assert f"{option[0]} is " in refusal(tiny, "info", *option)
