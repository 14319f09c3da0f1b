import json
from types import SimpleNamespace
from typing import Any

import pytest

from llmservice_server.structures import Compiler, why_not_compiled, why_too_large

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
        ({"grammar": 'a ::= "b"\n' * 1025}, "1025 rules"),
        ({"structural_tag": LONG}, "characters"),
        ({"json": LONG}, "characters"),
        ({"json": {"description": LONG}}, "characters"),
        ({"json": deep(50)}, "513 properties"),
        ({"json": json.dumps(deep(3))}, "513 properties"),
        ({"structural_tag": json.dumps({"format": [deep(1)]})}, "513 properties"),
        ({"json": {"anyOf": [{"minItems": 100_001}]}}, "minItems of the structure is 100001"),
        ({"json": {"maxLength": 1e9}}, "maxLength"),
        ({"json": {"anyOf": [{"maxLength": n} for n in range(33)]}}, "32 different limits"),
        ({"json": {"anyOf": [{"minLength": n} for n in range(33)]}}, "32 different limits"),
        ({"json": {"anyOf": [{"pattern": f"a{{1,{n}}}"} for n in range(33)]}}, "32 different"),
        ({"json": {"pattern": "".join(f"a{{{n}}}" for n in range(33))}}, "32 different limits"),
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
        {"grammar": 'a ::= "b"\n' * 1024},
        {"json": {"maxLength": 100_000}},
        {"json": {"anyOf": [{"maxLength": 1 + n % 32} for n in range(500)]}},
        {"json": {"properties": {"maxLength": {"type": "string"}, "pattern": {}}}},
    ],
)
def test_a_structure_within_the_limits_passes(structure: dict[str, Any]) -> None:
    assert why_too_large(SimpleNamespace(**structure)) is None


class Refused(Exception):
    """Represents vLLM's validation error."""


def refusal_of(text: str, cause: str, function: str = "_validate_structured_outputs") -> Exception:
    """Return an error that a function of this name raises from an error with the text `cause`."""
    code = f"def {function}():\n    raise Refused(text) from ValueError(cause)"
    names: dict[str, Any] = {"Refused": Refused, "text": text, "cause": cause}
    exec(code, names)
    with pytest.raises(Refused) as raised:
        names[function]()
    return raised.value


def test_the_words_of_the_compiler_follow_those_of_vllm() -> None:
    assert why_not_compiled(refusal_of("Invalid.", "line 1: no")) == "Invalid. line 1: no"
    assert why_not_compiled(refusal_of("Failed: no", "no")) == "Failed: no"


def test_the_place_in_the_code_of_the_compiler_is_left_out() -> None:
    place = "[02:14:55] /project/cpp/regex_converter.cc:83: "
    assert why_not_compiled(refusal_of(f"Failed: {place}Unclosed '['\n", "")) == (
        "Failed: Unclosed '['"
    )


def test_an_error_about_something_else_is_not_one_of_the_compiler() -> None:
    assert why_not_compiled(refusal_of("too many", "", function="_validate_logprobs")) is None


class Parameters:
    """Sampling parameters with a structure that only one compiler accepts."""

    def __init__(self, taken_by: str) -> None:
        self.structured_outputs = SimpleNamespace(_backend="as checked before")
        self._taken_by = taken_by

    def verify(self, model: Any, speculation: Any, settings: Any, tokenizer: Any) -> None:
        assert (model, speculation, tokenizer) == ("the model", None, "the tokenizer")
        assert self.structured_outputs._backend is None
        if settings.backend != self._taken_by:
            raise refusal_of("Invalid.", f"{settings.backend} says no")


CONFIGURATION = SimpleNamespace(
    model_config="the model",
    speculative_config=None,
    structured_outputs_config=SimpleNamespace(backend="auto"),
)


FIRST: Any = SimpleNamespace(structured_outputs=SimpleNamespace(_backend="xgrammar"))


@pytest.mark.parametrize(
    ("taken_by", "words", "chosen"),
    [
        ("guidance", "Invalid. xgrammar says no", "as checked before"),
        ("xgrammar", None, "xgrammar"),
    ],
)
def test_a_later_structure_gets_the_compiler_of_the_first_one_or_its_words(
    taken_by: str, words: str | None, chosen: str
) -> None:
    compiler, parameters = Compiler(), Parameters(taken_by)
    compiler.choose(CONFIGURATION, "the tokenizer", FIRST)
    assert compiler.why_it_failed(CONFIGURATION, "the tokenizer", parameters) == words
    # Neither the settings of the engine nor the request are changed.
    assert CONFIGURATION.structured_outputs_config.backend == "auto"
    assert parameters.structured_outputs._backend == "as checked before"

    compiler.choose(CONFIGURATION, "the tokenizer", parameters)
    assert parameters.structured_outputs._backend == chosen
