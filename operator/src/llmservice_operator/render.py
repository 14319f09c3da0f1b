"""`llmservice-operator render`: prints the objects of an LLMService, without a cluster."""

from __future__ import annotations

from typing import Any, Final

import yaml

from llmservice_operator import api
from llmservice_operator.api.spec import LLMService
from llmservice_operator.children import Context, build_all
from llmservice_operator.desired.extra_args import build_notices
from llmservice_operator.errors import InvalidFile, InvalidSpec
from llmservice_operator.settings import OperatorSettings
from llmservice_operator.workload import resolve_pin

_OTHER_KINDS: Final = ("Deployment", "InferenceService", "LLMInferenceService", "Model")
_ELSEWHERE: Final = ": docs/migrating.md lists its fields and those of an LLMService"


def render_file(text: str, settings: OperatorSettings) -> str:
    """Return the objects of every LLMService in the YAML `text` as YAML documents.

    Comments before the documents name the arguments and variables to change.

    Raises InvalidSpec, which names the field and the remedy, and InvalidFile if there are several
    errors. The errors include those that the API server or kubectl reports in a cluster: text that
    is not YAML, another kind, or an unknown field.
    """
    services = read_services(text)
    problems: list[InvalidSpec] = []
    manifests: list[api.Manifest] = []
    notices: list[str] = []
    for service in services:
        notices += (f"{service.name}: {each}" for each in build_notices(service.spec))
        try:
            manifests += _render(service, settings)
        except InvalidSpec as problem:
            problems.append(_in(service.name, problem) if len(services) > 1 else problem)
    _raise(problems)
    return commented("\n".join(notices)) + yaml.safe_dump_all(manifests, sort_keys=False, width=100)


def read_services(text: str) -> list[LLMService]:
    """Return every LLMService in the YAML `text`. Raises the same errors as `render_file`."""
    try:
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except yaml.YAMLError as error:
        raise InvalidSpec(f"is not valid YAML: {error}", "the file") from error
    if not documents:
        raise InvalidSpec("holds no LLMService", "the file")
    problems = [
        _in(_name_of(document, number), problem) if len(documents) > 1 else problem
        for number, document in enumerate(documents, start=1)
        for problem in _problems(document)
    ]
    _raise(problems)
    return [LLMService.parse(document) for document in documents]


def commented(lines: str) -> str:
    """Return the lines as YAML comments."""
    return "".join(f"# {line}".rstrip() + "\n" for line in lines.splitlines())


def _render(service: LLMService, settings: OperatorSettings) -> list[api.Manifest]:
    return build_all(Context.of(service, settings, resolve_pin(service, None, settings)))


def _problems(document: Any) -> list[InvalidSpec]:
    if not isinstance(document, dict):
        problem = "must hold objects with apiVersion, kind, metadata and spec"
        return [InvalidSpec(problem, "the file")]
    for field, expected in (("apiVersion", api.API_VERSION), ("kind", api.KIND)):
        if document.get(field) != expected:
            hint = _ELSEWHERE if document.get("kind") in _OTHER_KINDS else ""
            return [InvalidSpec(f"must be {expected}, not {document.get(field)!r}{hint}", field)]
    return LLMService.problems(document)


def _name_of(document: Any, number: int) -> str:
    metadata = document.get("metadata") if isinstance(document, dict) else None
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return str(name) if name else f"document {number}"


def _in(name: str, problem: InvalidSpec) -> InvalidSpec:
    return InvalidSpec(problem.message, f"{name}: {problem.field}")


def _raise(problems: list[InvalidSpec]) -> None:
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise InvalidFile(problems)
