"""Objects that the API server judges without storing them."""

from collections.abc import Mapping
from typing import Any, Final

from llmservice_operator.api import Manifest
from llmservice_operator.kinds import LLMSERVICES
from operator_support.processes import Api
from operator_support.services import a_body

NAMESPACE: Final = "default"
"""Any namespace that exists: nothing is stored there."""


def an_object(spec: Mapping[str, Any], name: str = "valid") -> dict[str, Any]:
    """Return an LLMService as a user sends it; `spec` replaces parts of a minimal one."""
    return a_body(spec, metadata={"name": name, "namespace": NAMESPACE})


def create(api: Api, service: Mapping[str, Any]) -> Manifest:
    """Return what the API server would store; raises ApiError where it refuses."""
    return api.create(LLMSERVICES, service, fieldValidation="Strict", dryRun="All")
