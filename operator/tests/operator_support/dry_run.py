"""Requests in which the API server validates an object without storing it."""

from collections.abc import Mapping
from typing import Any, Final

from llmservice_operator.api import Manifest
from llmservice_operator.kinds import LLMSERVICES
from operator_support.processes import Api
from operator_support.services import a_body

NAMESPACE: Final = "default"
"""Any existing namespace suffices, because nothing is stored in it."""


def an_object(spec: Mapping[str, Any], name: str = "valid") -> dict[str, Any]:
    """Return an LLMService as a user sends it. `spec` replaces parts of a minimal spec."""
    return a_body(spec, metadata={"name": name, "namespace": NAMESPACE})


def create(api: Api, service: Mapping[str, Any]) -> Manifest:
    """Return the object that the API server would store. Raises ApiError if it is refused."""
    return api.create(LLMSERVICES, service, fieldValidation="Strict", dryRun="All")
