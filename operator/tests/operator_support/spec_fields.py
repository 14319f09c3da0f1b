"""Fields of the spec by their path, such as engine.batching.maxNumSeqs."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from llmservice_operator.api.crd import build_crd
from llmservice_operator.api.fields import VALIDATIONS

ROOT: Final[Mapping[str, Any]] = build_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
"""The schema of the whole object in the CRD."""

SCHEMA: Final[Mapping[str, Any]] = ROOT["properties"]["spec"]
"""The schema of the spec in the CRD."""


def rules_of(schema: Mapping[str, Any]) -> Iterator[Mapping[str, str]]:
    """Yield the rules of a schema and of all schemas in it."""
    yield from schema.get(VALIDATIONS, ())
    inner = schema.get("items"), schema.get("additionalProperties")
    for child in (*schema.get("properties", {}).values(), *filter(None, inner)):
        yield from rules_of(child)


def schema_of(field: str) -> Mapping[str, Any]:
    """Return the schema of one field."""
    schema = SCHEMA
    for name in field.split("."):
        schema = schema["properties"][name]
    return schema


def is_set(spec: Any, field: str) -> bool:
    """Return whether a spec, as a user writes it, has the field."""
    for name in field.split("."):
        if not isinstance(spec, dict) or name not in spec:
            return False
        spec = spec[name]
    return True
