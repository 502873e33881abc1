"""Every command that the docs show is one that the command line takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from cospec.cli import COMMANDS, parse

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
BLOCK = re.compile(r"```bash\n(.*?)```", re.DOTALL)
SPAN = re.compile(r"`cospec ([a-z]+) ([^`]*--[^`]+)`")


def commands() -> dict[str, list[str]]:
    """The arguments of each command in a shell block."""
    found = {}
    for page in PAGES:
        for line in script_lines("".join(BLOCK.findall(page.read_text()))):
            words = shlex.split(line, comments=True)
            for i, word in enumerate(words[:-1]):
                if word == "cospec" and words[i + 1] in COMMANDS:
                    args = words[i + 1 :]
                    found[f"{page.relative_to(ROOT)}: {shlex.join(args)[:70]}"] = args
    return found


def script_lines(script: str) -> list[str]:
    """Lines of a script; one that ends inside of quotes, or with a backslash, takes the next."""
    lines = [""]
    for line in script.replace("\\\n", " ").splitlines():
        lines[-1] += line
        try:
            shlex.split(lines[-1], comments=True)
        except ValueError:
            lines[-1] += "\n"
        else:
            lines.append("")
    return lines


@pytest.mark.parametrize("args", [pytest.param(a, id=name) for name, a in commands().items()])
def test_a_command_in_a_block_is_understood(args):
    assert isinstance(parse(args), COMMANDS[args[0]])


def test_options_in_the_text_exist(capsys):
    shown: dict[str, set[str]] = {}
    for page in PAGES:
        for verb, rest in SPAN.findall(page.read_text()):
            shown.setdefault(verb, set()).update(re.findall(r"--[a-z][a-z-]*", rest))
    assert len(shown) > 5
    for verb, options in shown.items():
        with pytest.raises(SystemExit):
            parse([verb, "--help"])
        known = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))
        assert options <= known, verb


def test_commands_of_many_pages_are_found():
    assert len({name.partition(":")[0] for name in commands()}) > 10
