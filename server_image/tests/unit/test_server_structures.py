import json
from types import SimpleNamespace
from typing import Any

import pytest

from llmservice_server.structures import why_too_large

LONG = "a" * 131_073


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"properties": {str(number): {} for number in range(513)}}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("structure", "found"),
    [
        ({"choice": ["a"] * 4097}, "4097 choices"),
        ({"choice": ["a" * 1000] * 132}, "132004 characters"),
        ({"regex": LONG}, "131077 characters"),
        ({"grammar": LONG}, "characters"),
        ({"structural_tag": LONG}, "characters"),
        ({"json": LONG}, "characters"),
        ({"json": {"description": LONG}}, "characters"),
        ({"json": deep(50)}, "513 properties"),
        ({"json": json.dumps(deep(3))}, "513 properties"),
        ({"structural_tag": json.dumps({"format": [deep(1)]})}, "513 properties"),
        ({"json": {"anyOf": [{"minItems": 100_001}]}}, "minItems of the structure is 100001"),
        ({"json": {"maxLength": 1e9}}, "maxLength"),
    ],
)
def test_a_structure_that_would_compile_for_long_gets_the_limit(
    structure: dict[str, Any], found: str
) -> None:
    reason = why_too_large(SimpleNamespace(**structure))
    assert reason is not None
    assert found in reason
    assert "it may" in reason


@pytest.mark.parametrize(
    "structure",
    [
        {"choice": ["a label"] * 4096},
        {"regex": "[0-9]{3}"},
        {"json": {"type": "object", "properties": {str(n): {} for n in range(512)}}},
        {"json": "no schema {"},
        {"json_object": True},
        {"json": {"maxLength": 100_000}},
    ],
)
def test_a_structure_within_the_limits_passes(structure: dict[str, Any]) -> None:
    assert why_too_large(SimpleNamespace(**structure)) is None
