"""The way from `Engine.generate` to the accept test is short."""

from __future__ import annotations

import ast
import itertools
from pathlib import Path

import cospec

ENGINE = Path(cospec.__file__).parent / "engine"


def calls(function: ast.FunctionDef) -> set[str]:
    """Names of the functions and methods that a function calls."""
    found = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
    names = {node.attr for node in found if isinstance(node, ast.Attribute)}
    return names | {node.id for node in found if isinstance(node, ast.Name)}


def test_generate_is_four_calls_from_the_accept_test():
    bodies: dict[str, set[str]] = {}
    for name in ("engine", "speculative", "verify"):
        for node in ast.walk(ast.parse((ENGINE / f"{name}.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                bodies.setdefault(node.name, calls(node))
    for caller, callee in itertools.pairwise(["generate", "_blocks", "step", "verify", "accepts"]):
        assert callee in bodies[caller], f"{caller} does not call {callee}"
