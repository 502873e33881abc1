"""Imports point one way, in the order that CONTRIBUTING.md lists."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import cospec

SOURCE = Path(cospec.__file__).parent
CONTRIBUTING = Path(__file__).parent.parent / "CONTRIBUTING.md"


def layers() -> list[list[str]]:
    """The packages of CONTRIBUTING's list, from the lowest layer on."""
    block = re.search(r"<!-- layers -->\n```\n(.*?)```", CONTRIBUTING.read_text(), re.DOTALL)
    assert block, "CONTRIBUTING.md has no list after <!-- layers -->"
    return [line.split(", ") for line in block[1].splitlines()]


def runtime_names(tree: ast.Module) -> set[str]:
    """Names of CoSpec that a module imports when it runs, in functions too."""
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name for name in names if name.startswith("cospec.")}
    return found


def runtime_imports(tree: ast.Module) -> set[str]:
    """Packages of CoSpec that a module imports when it runs, in functions too."""
    return {name.split(".")[1] for name in runtime_names(tree)}


def test_no_module_imports_a_package_beside_or_above_its_own():
    rank = {package: i for i, layer in enumerate(layers()) for package in layer}
    wrong = []
    for path in sorted(SOURCE.rglob("*.py")):
        package = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if package == "__init__":
            continue  # imports each name on first use
        for other in runtime_imports(ast.parse(path.read_text())) - {package}:
            if other not in rank or rank[other] >= rank[package]:  # `from cospec import Engine`
                wrong.append(f"{path.relative_to(SOURCE)} imports cospec.{other}")
    assert not wrong


def test_no_modules_import_each_other_in_a_circle():
    paths = [path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py"]
    names = {
        ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__"): (
            path
        )
        for path in paths
    }
    graph = {}
    for module, path in names.items():
        wanted = runtime_names(ast.parse(path.read_text()))
        # A name is a module, or one that a module has.
        found = {name if name in names else name.rpartition(".")[0] for name in wanted}
        graph[module] = found & names.keys() - {module}
    graph["cospec.cli.reproduce"].discard("cospec.cli")  # it parses any command, itself included
    TopologicalSorter(graph).prepare()


def test_every_package_has_a_layer():
    listed = [package for layer in layers() for package in layer]
    assert len(set(listed)) == len(listed)
    found = {p.parent.name for p in SOURCE.glob("*/__init__.py")} | {
        p.stem for p in SOURCE.glob("*.py") if p.stem != "__init__"
    }
    assert found <= set(listed), "give a new package a place in CONTRIBUTING.md's list"


def test_the_check_sees_imports_in_functions_and_passes_over_those_for_types():
    program = "if TYPE_CHECKING:\n    import cospec.cli\ndef f():\n    from cospec.rl import types"
    assert runtime_imports(ast.parse(program)) == {"rl"}
