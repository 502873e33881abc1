"""Promises of the code base: light imports, true ``__all__`` lists, small pieces."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import cospec
from cospec.errors import MissingExtraError

SOURCE = Path(cospec.__file__).parent
FILES = {str(path.relative_to(SOURCE)): path for path in sorted(SOURCE.rglob("*.py"))}
MAX_MODULE_LINES, MAX_FUNCTION_LINES = 400, 60
LONG_MODULES: dict[str, str] = {}
"""By path: the reason."""
LONG_FUNCTIONS = {
    "engine/reference.py:reference_decode": "one loop, to be read from top to bottom and trusted",
}
"""By path and qualified name: the reason."""
RIDDLES = ("What", "How", "Of", "Who", "Which", "Whether", "Why", "Whatever")
"""First words that a docstring or the string under a field may not have."""


def tree(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text())


def module_name(name: str) -> str:
    parts = ["cospec", *Path(name).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def exports(name: str) -> bool:
    """Return True if a file assigns ``__all__``."""
    targets = [t for node in tree(name).body if isinstance(node, ast.Assign) for t in node.targets]
    return any(isinstance(t, ast.Name) and t.id == "__all__" for t in targets)


def functions(node: ast.AST, prefix: str = "") -> dict[str, int]:
    """Lines of every function, from ``def`` to its end, by qualified name."""
    found = {}
    for child in ast.iter_child_nodes(node):
        is_function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
        inner = prefix
        if is_function or isinstance(child, ast.ClassDef):
            inner = f"{prefix}{child.name}."
        if is_function:
            found[inner[:-1]] = child.end_lineno - child.lineno + 1
        found |= functions(child, inner)
    return found


@pytest.mark.parametrize("module", ["cospec", "cospec.errors", "cospec.config"])
def test_importing_loads_nothing_heavy(module):
    heavy = ["torch", "transformers", "tokenizers", "vllm", "fastapi", "matplotlib", "numpy"]
    program = (
        f"import sys, {module}\n"
        f"print([name for name in {heavy!r} if name in sys.modules], cospec.__file__)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert run.stdout.strip() == f"[] {cospec.__file__}"
    assert run.stderr == ""


@pytest.mark.parametrize("name", [name for name in FILES if exports(name)])
def test_every_name_in_all_exists(name):
    try:
        module = importlib.import_module(module_name(name))
    except MissingExtraError as error:
        pytest.skip(str(error))
    assert sorted(set(module.__all__)) == sorted(module.__all__), "a name is listed twice"
    missing = [each for each in module.__all__ if not hasattr(module, each)]
    assert not missing


def test_every_public_name_of_the_package_is_in_its_all():
    assert set(cospec.__all__) == {*cospec._HOMES, "__version__"}
    with pytest.raises(AttributeError, match="no attribute 'engin'"):
        cospec.engin  # noqa: B018


def test_no_module_and_no_function_is_too_long():
    for name, path in FILES.items():
        num_lines = len(path.read_text().splitlines())
        assert num_lines <= MAX_MODULE_LINES or name in LONG_MODULES, name
        for function, num in functions(tree(name)).items():
            where = f"{name}:{function}"
            assert num <= MAX_FUNCTION_LINES or where in LONG_FUNCTIONS, where


def test_the_exceptions_are_still_needed():
    for name in LONG_MODULES:
        assert len(FILES[name].read_text().splitlines()) > MAX_MODULE_LINES
    for where in LONG_FUNCTIONS:
        name, _, function = where.partition(":")
        assert functions(tree(name))[function] > MAX_FUNCTION_LINES


def test_every_module_says_what_it_knows():
    assert [name for name in FILES if not ast.get_docstring(tree(name))] == []


def test_no_docstring_begins_as_a_riddle():
    found = []
    for path in [*FILES.values(), *sorted(Path(__file__).parent.rglob("*.py"))]:
        for body in [getattr(n, "body", None) for n in ast.walk(ast.parse(path.read_text()))]:
            for place, statement in enumerate(body if isinstance(body, list) else []):
                match statement:
                    case ast.Expr(ast.Constant(str(text))):
                        first = text.split(maxsplit=1)[0].rstrip(",:;")
                        # Under a field, where it is not the first statement, it may be a condition.
                        if first in RIDDLES or (first == "Where" and place == 0):
                            found.append(f"{path}:{statement.lineno}: {text}")
    assert not found, "begin with a verb or a noun"
