"""Finds, for each reason of a condition, the tests that cause it: they have the marker `causes`.

This module reads the source of all tests, because no tier can collect the tests of every tier.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llmservice_operator.api.reasons import Reason

TESTS = ("operator/tests", "server_image/tests", "e2e/tests")


@dataclass(frozen=True)
class Cause:
    """A test that is marked as the cause of a reason."""

    reason: Reason
    test: str
    """Pytest's name of the test: PATH::NAME."""


def causes_in(repository: Path) -> Iterator[Cause]:
    """Yield each marked test in the repository with its reason.

    Raises ValueError for a wrong marker.
    """
    for folder in TESTS:
        for path in sorted((repository / folder).rglob("test_*.py")):
            yield from causes_of(path.read_text(), str(path.relative_to(repository)))


def causes_of(source: str, path: str) -> Iterator[Cause]:
    """Yield each marked test in one file with its reason.

    The marker may be on the test or on one of its parameters.

    Raises ValueError for a wrong marker.
    """
    if ".causes(" not in source:
        return
    tree = ast.parse(source)
    marks = set[ast.AST]()
    for test in ast.walk(tree):
        if isinstance(test, ast.FunctionDef | ast.AsyncFunctionDef):
            for mark in (each for it in test.decorator_list for each in _marks(it)):
                marks.update(ast.walk(mark))
                if not test.name.startswith("test_"):
                    raise ValueError(f"{path}: {test.name} causes a reason and is no test.")
                for argument in mark.args:
                    yield Cause(_reason(argument, f"{path}::{test.name}"), f"{path}::{test.name}")
    used = {_word(node) for node in ast.walk(tree) if node not in marks}
    for argument in (each for mark in _marks(tree) for each in mark.args):
        reason = _reason(argument, path)
        if not used & {reason.value, f"Reason.{reason.name}"}:
            raise ValueError(f"{path}: a test is marked to cause {reason} and never looks for it.")


def _marks(tree: ast.AST) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr="causes")):
                yield node


def _reason(argument: ast.expr, test: str) -> Reason:
    word = _word(argument) or ast.unparse(argument)
    for reason in Reason:
        if word in (reason.value, f"Reason.{reason.name}"):
            return reason
    raise ValueError(
        f"{test} is marked to cause {word}, and api/reasons.py declares no such reason."
    )


def _word(node: ast.AST) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return f"{node.value.id}.{node.attr}"
    return None
