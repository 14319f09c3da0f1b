"""`llmservice-operator render`: prints the objects of an LLMService, without a cluster."""

from __future__ import annotations

from typing import Any

import yaml

from llmservice_operator import api
from llmservice_operator.api.spec import LLMService
from llmservice_operator.children import Context, build_all
from llmservice_operator.errors import InvalidSpec
from llmservice_operator.settings import OperatorSettings
from llmservice_operator.workload import resolve_pin


def render_file(text: str, settings: OperatorSettings) -> str:
    """Return the objects of every LLMService in the YAML `text`, as YAML documents.

    Raises InvalidSpec with the field and the remedy, also for what the API server would refuse
    before the operator sees it: text that is no YAML, another kind, an unknown field.
    """
    manifests = [
        manifest for service in read_services(text) for manifest in _render(service, settings)
    ]
    return yaml.safe_dump_all(manifests, sort_keys=False, width=100)


def read_services(text: str) -> list[LLMService]:
    """Return every LLMService in the YAML `text`. Raises InvalidSpec as `render_file` does."""
    try:
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except yaml.YAMLError as error:
        raise InvalidSpec(f"is not valid YAML: {error}", "the file") from error
    if not documents:
        raise InvalidSpec("holds no LLMService", "the file")
    return [_parse(document) for document in documents]


def _render(service: LLMService, settings: OperatorSettings) -> list[api.Manifest]:
    return build_all(Context.of(service, settings, resolve_pin(service, None, settings)))


def _parse(document: Any) -> LLMService:
    if not isinstance(document, dict):
        raise InvalidSpec("must hold objects with apiVersion, kind, metadata and spec", "the file")
    for field, expected in (("apiVersion", api.API_VERSION), ("kind", api.KIND)):
        if document.get(field) != expected:
            raise InvalidSpec(f"must be {expected}, not {document.get(field)!r}", field)
    return LLMService.parse(document, refuse_unknown_fields=True)
