"""The CustomResourceDefinition, generated from the Pydantic models.

Pydantic writes JSON Schema 2020-12, while Kubernetes accepts only a "structural" subset of an older
draft. A keyword without a structural form is an error, so nothing is lost silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import yaml
from pydantic import BaseModel

from llmservice_operator import api
from llmservice_operator.api.fields import ATOMIC, VALIDATIONS, published_rules
from llmservice_operator.api.spec import LLMService, LLMServiceSpec
from llmservice_operator.api.status import LLMServiceStatus

_DROPPED: Final = {"title", "propertyNames", "$defs"}
"""Keywords without meaning for Kubernetes."""

_KEPT: Final = {
    "default",
    "description",
    "enum",
    "format",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minItems",
    "minLength",
    "minimum",
    "required",
    "type",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-list-type",
    VALIDATIONS,
}

_COLUMNS: Final = (
    # name, type, path, priority (1: only with -o wide)
    ("Model", "string", ".spec.model.uri", 0),
    ("Ready", "string", ".status.ready", 0),
    ("GPUs", "integer", ".status.gpus", 0),
    ("Reason", "string", '.status.conditions[?(@.type=="Ready")].reason', 0),
    ("URL", "string", ".status.url", 0),
    ("Load", "string", ".status.autoscaling.load", 1),
    ("SLO", "integer", ".status.slo.attainmentPercent", 1),
    ("Engine", "string", ".status.engine.version", 1),
    ("Image", "string", ".status.engine.image", 1),
    ("Age", "date", ".metadata.creationTimestamp", 0),
)


def render_crd() -> str:
    """Return the CRD as YAML, with a note that it is generated."""
    note = "# Generated from llmservice_operator/api by `make generate`; do not edit.\n"
    return note + yaml.safe_dump(build_crd(), sort_keys=False, width=100)


def build_crd() -> dict[str, Any]:
    """Return the CRD as a manifest."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{api.PLURAL}.{api.GROUP}"},
        "spec": {
            "group": api.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": api.KIND,
                "listKind": f"{api.KIND}List",
                "plural": api.PLURAL,
                "singular": api.SINGULAR,
                "shortNames": list(api.SHORT_NAMES),
                "categories": ["all"],
            },
            "versions": [
                {
                    "name": api.VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": _root_schema()},
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.replicas",
                            "statusReplicasPath": ".status.replicas",
                            "labelSelectorPath": ".status.selector",
                        },
                    },
                    "additionalPrinterColumns": [_column(*column) for column in _COLUMNS],
                }
            ],
        },
    }


def _column(name: str, kind: str, path: str, priority: int) -> dict[str, Any]:
    column: dict[str, Any] = {"name": name, "type": kind, "jsonPath": path}
    return column | {"priority": priority} if priority else column


def _root_schema() -> dict[str, Any]:
    return {
        "type": "object",
        "description": _one_line(LLMService.__doc__ or ""),
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": f"Always {api.API_VERSION}."},
            "kind": {"type": "string", "description": f"Always {api.KIND}."},
            # The field is declared so that the rule on the name can refer to it.
            "metadata": {"type": "object", "properties": {"name": {"type": "string"}}},
            "spec": structural_schema(LLMServiceSpec),
            "status": structural_schema(LLMServiceStatus),
        },
        VALIDATIONS: published_rules(LLMService),
    }


def structural_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the model's schema in structural form.

    Raises ValueError for a type that has no structural form, such as a union of two objects.
    """
    schema = model.model_json_schema(by_alias=True, mode="validation")
    return _structural(schema, schema.get("$defs", {}))


def _structural(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    if "$ref" in schema:
        definition = definitions[schema["$ref"].removeprefix("#/$defs/")]
        siblings = {key: value for key, value in schema.items() if key != "$ref"}
        return _structural({**definition, **siblings}, definitions)
    if "anyOf" in schema and not schema.get("x-kubernetes-int-or-string"):
        return _structural(_without_null(schema), definitions)
    result: dict[str, Any] = {}
    for keyword, value in schema.items():
        match keyword:
            case "properties":
                result[keyword] = {
                    name: _structural(each, definitions) for name, each in value.items()
                }
            case "items" if ATOMIC.items() <= schema.items():
                result[keyword] = _without_defaults(_structural(value, definitions))
            case "items" | "additionalProperties":
                result[keyword] = _structural(value, definitions)
            case "anyOf":
                result[keyword] = value
            case "description":
                result[keyword] = _one_line(value)
            case "default":
                if (kept := _without_unset(value)) not in (None, {}, []):
                    result[keyword] = kept
            case _ if keyword in _KEPT:
                result[keyword] = value
            case _ if keyword not in _DROPPED:
                raise ValueError(f"{keyword} has no structural form: {schema}")
    return dict(sorted(result.items(), key=_reading_order))


def _without_defaults(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema without its defaults, at every depth.

    The schema is that of an atomic list. If the API server added defaults to the stored list, a
    manifest without them would always differ from it, and every apply would change the object. So
    only the operator knows these defaults.
    """
    nested = ("items", "additionalProperties")
    return {
        keyword: {name: _without_defaults(each) for name, each in value.items()}
        if keyword == "properties"
        else _without_defaults(value)
        if keyword in nested and isinstance(value, Mapping)
        else value
        for keyword, value in schema.items()
        if keyword != "default"
    }


def _reading_order(entry: tuple[str, Any]) -> tuple[int, str]:
    """Return a sort key that puts the description and the type first, and long parts last."""
    keyword, _ = entry
    first, last = ("description", "type", "default"), (VALIDATIONS, "properties")
    if keyword in first:
        return first.index(keyword), ""
    return (len(first) + 1 + last.index(keyword), "") if keyword in last else (len(first), keyword)


def _without_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return X for `X | None`. An absent field means None."""
    alternatives = [each for each in schema["anyOf"] if each != {"type": "null"}]
    if len(alternatives) != 1:
        raise ValueError(f"a union has no structural form: {schema}")
    siblings = {key: value for key, value in schema.items() if key != "anyOf"}
    return {**alternatives[0], **siblings}


def _without_unset(value: Any) -> Any:
    """Return a default without its empty fields, at every depth."""
    if not isinstance(value, Mapping):
        return value
    kept = {key: _without_unset(each) for key, each in value.items()}
    return {key: each for key, each in kept.items() if each not in (None, {}, [])}


def _one_line(text: str) -> str:
    return " ".join(text.split())
