"""Generates structured outputs and tools that take long to compile or to check."""

import json
import random
from typing import Any

EXPRESSIONS = (
    "(a{1,300}){1,300}",
    "(a|aa)+$",
    "((a*)*)*b",
    "(?=a)" * 50,
    "[\\u0000-\\uffff]{1,5000}",
    "(a|b|c){1000}",
    ".*" * 200,
    "(.{0,1000}a){20}",
    "\\p{L}" * 300,
)


def a_structure(chance: random.Random, size: int) -> tuple[str, Any]:
    """Return the name of a body field for structured output, and its value."""
    kind = chance.choice(("json", "json", "json", "regex", "choice", "grammar", "structural_tag"))
    value: Any
    if kind == "json":
        value = _schema(chance, size)
        if chance.random() < 0.5:
            asked = {"name": "a", "schema": value, "strict": True}
            return "response_format", {"type": "json_schema", "json_schema": asked}
    elif kind == "regex":
        value = _expression(chance, size)
    elif kind == "choice":
        number = chance.choice((16, 4000, size // 12))
        value = [f"{each:08}" + "a" * (size // number - 12) for each in range(number)]
    elif kind == "grammar":
        value = _grammar(chance, size)
    else:
        tag = {"begin": "<a>", "schema": _schema(chance, min(size, 100_000)), "end": "</a>"}
        structures = [tag] * chance.choice((1, 50))
        value = {"type": "structural_tag", "structures": structures, "triggers": ["<a"]}
        return "response_format", value
    return "structured_outputs", {kind: value}


def tools(chance: random.Random, size: int) -> list[Any]:
    """Return tools that together have about this size in bytes."""
    number = chance.choice((1, 100, 1000, size // 60))
    schema = _schema(chance, max(10, size // number - 60))
    # The shortest schema of its kind may be longer than its share.
    number = min(number, 1 + size // (60 + len(json.dumps(schema))))
    functions = ({"name": f"f{place}", "parameters": schema} for place in range(number))
    return [{"type": "function", "function": function} for function in functions]


def _schema(chance: random.Random, size: int) -> Any:
    """Return a JSON schema. The server limits structures to 128 KiB, so most are shorter."""
    size = chance.choice((size, min(size, 120_000), min(size, 20_000)))
    kind = chance.randrange(9)
    number = max(1, size // 40)
    if kind == 0:
        names = {f"property{each}": {"type": "string"} for each in range(min(number, 500))}
        return {"type": "object", "properties": names, "required": list(names)}
    if kind == 1:
        return {"enum": [f"{each:030}" for each in range(number)]}
    if kind == 2:
        return {"anyOf": [{"type": "string", "maxLength": each} for each in range(number)]}
    if kind == 3:
        return _nested(min(number, 400))
    if kind == 4:
        rules = {f"a{each}": {"$ref": f"#/$defs/a{each + 1}"} for each in range(number)}
        return {"$ref": "#/$defs/a0", "$defs": {**rules, f"a{number}": {"type": "null"}}}
    if kind == 5:
        return {"type": "string", "pattern": _expression(chance, size)}
    if kind == 6:
        return {"type": "string", "minLength": 99_000, "maxLength": 100_000}
    if kind == 7:
        item = {"type": "array", "items": {"type": "integer"}, "minItems": 300, "maxItems": 300}
        return {"type": "array", "items": item, "minItems": 300, "maxItems": 300}
    wide = {f"p{each}": _nested(3) for each in range(min(500, number))}
    return {"allOf": [{"type": "object", "properties": wide}] * max(1, size // 40_000)}


def _nested(depth: int) -> Any:
    schema: Any = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def _expression(chance: random.Random, size: int) -> str:
    expression = chance.choice(EXPRESSIONS)
    if chance.random() < 0.5:
        wanted = chance.choice((size, min(size, 120_000), min(size, 10_000)))
        return "|".join([expression] * max(1, wanted // len(expression)))
    return expression


def _grammar(chance: random.Random, size: int) -> str:
    number = chance.choice((size, min(size, 120_000), min(size, 20_000))) // 24
    kind = chance.randrange(3)
    if kind == 0:
        return "root ::= root root | " + " | ".join(f'"{each:06}"' for each in range(number))
    if kind == 1:
        rules = [f'a{each} ::= a{each + 1} "b" | "c"' for each in range(number)]
        return "\n".join(["root ::= a0", *rules, f'a{number} ::= "d"'])
    return "root ::= " + "(" * number + '"a"' + ")" * number
