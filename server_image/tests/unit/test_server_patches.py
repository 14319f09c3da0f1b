"""Tests that every function that the server replaces in vLLM has a test with several versions."""

import ast
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "src" / "llmservice_server"
TESTS = HERE.parent / "engine" / "test_engine_versions.py"
"""File with the tests that run with each version of vLLM under test."""

OWN = {"self", "writer", "cycle"}
"""Variables with objects that are not vLLM's. Functions of these objects are also replaced."""


def replaced(tree: ast.Module) -> Iterator[str]:
    """Yield `owner.function` for each function of another library that a module replaces."""
    functions = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    for node in ast.walk(tree):
        match node:
            case ast.ClassDef(bases=[ast.Attribute(ast.Name("vllm"), owner)]):
                yield from (f"{owner}.{name}" for name in _overridden(node))
            case ast.Assign(targets=[ast.Attribute(owner, name)], value=value):
                is_function = isinstance(value, ast.Lambda) or (
                    isinstance(value, ast.Name) and value.id in functions
                )
                match owner:
                    case ast.Name(it) | ast.Attribute(ast.Name("vllm"), it) if is_function:
                        if it not in OWN:
                            yield f"{it}.{name}"


def _overridden(owner: ast.ClassDef) -> Iterator[str]:
    """Yield the methods of a class that override those of its base class.

    These are the public methods, and the private ones that call the method of the base class.
    """
    for method in owner.body:
        if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef):
            name = method.name
            calls_base = f"super().{name}(" in ast.unparse(method)
            if not name.startswith("_") or (calls_base and name != "__init__"):
                yield name


def marked(tree: ast.Module) -> Iterator[str]:
    """Yield the names of the functions that the `patches` marks in a file contain."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(attr="patches"), args=named):
                yield from (ast.literal_eval(each) for each in named)


def test_every_replaced_function_of_vllm_has_a_test_on_every_version() -> None:
    found = {
        name for path in SOURCES.glob("*.py") for name in replaced(ast.parse(path.read_text()))
    }
    assert len(found) > 12
    assert found == set(marked(ast.parse(TESTS.read_text())))


def test_a_replaced_function_is_found_however_it_is_replaced() -> None:
    source = """
class Own(vllm.Engine):
    def __init__(self): super().__init__()
    def add(self): pass
    def _send(self): super()._send()
    def _own(self): pass

def wrapped(): pass

vllm.Params.check = wrapped
owner.tell = lambda: None
self.value = 3
owner.name = name
"""
    assert list(replaced(ast.parse(source))) == [
        "Engine.add",
        "Engine._send",
        "Params.check",
        "owner.tell",
    ]
